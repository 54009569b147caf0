"""The user's tuning table: where it is, what is refused, and that writing one entry spares the others."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

import platformdirs
import pytest

from oclbn.errors import MissingExtraError, ParameterError
from oclbn.files import whole
from oclbn.tuning import usertable
from oclbn.tuning.usertable import DeviceNames

ONE = DeviceNames("Portable Computing Language", "OpenCL 3.0 PoCL 3.1", "pthread-znver3", "3.1")
OTHER = DeviceNames("Portable Computing Language", "OpenCL 3.0 PoCL 3.0", "pthread-znver3", "3.0")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "tuning.toml"


def test_it_is_among_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCLBN_TUNING", raising=False)
    assert usertable.path() == platformdirs.user_config_path("oclbn") / "tuning.toml"


def test_a_variable_names_another_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLBN_TUNING", "mine.toml")
    assert usertable.path() == Path("mine.toml")
    monkeypatch.setenv("OCLBN_TUNING", "")
    assert usertable.path() is None


def test_without_a_home_there_is_none(homeless: None) -> None:
    assert usertable.path() is None
    assert usertable.why_none() == "this user has no home directory"


def test_a_missing_table_has_no_entries(table: Path) -> None:
    assert usertable.read(table) == ()


def test_what_is_written_is_read(table: Path) -> None:
    choices = {"lanes": 64, "stream": False, "variant": "split"}
    usertable.write(table, ONE, choices, "1.2.3")
    (entry,) = usertable.read(table)
    assert (entry.device, entry.oclbn, entry.choices) == (ONE, "1.2.3", choices)
    assert table.read_text().startswith("#")


def test_two_versions_of_a_driver_have_an_entry_each(table: Path) -> None:
    usertable.write(table, ONE, {"vec": 4}, "1")
    usertable.write(table, OTHER, {"vec": 8}, "1")
    assert [(entry.device, entry.choices) for entry in usertable.read(table)] == [
        (ONE, {"vec": 4}),
        (OTHER, {"vec": 8}),
    ]


def test_an_entry_is_replaced_and_all_else_stays(table: Path) -> None:
    usertable.write(table, ONE, {"vec": 4}, "1")
    usertable.write(table, OTHER, {"vec": 8}, "1")
    table.write_text("# my own words\n" + table.read_text().replace("{vec = 8}", "{vec = 8} # by hand"))
    usertable.write(table, ONE, {"lanes": 2}, "2")
    assert [dict(entry.choices) for entry in usertable.read(table)] == [{"lanes": 2}, {"vec": 8}]
    assert "# my own words" in table.read_text()
    assert "# by hand" in table.read_text()


def test_an_entry_without_choices_is_taken_out(table: Path) -> None:
    usertable.write(table, ONE, {"vec": 4}, "1")
    usertable.write(table, OTHER, {"vec": 8}, "1")
    usertable.write(table, ONE, {}, "1")
    assert [entry.device for entry in usertable.read(table)] == [OTHER]
    usertable.write(table, OTHER, {}, "1")
    assert usertable.read(table) == ()
    usertable.write(table, OTHER, {"vec": 2}, "1")
    assert [dict(entry.choices) for entry in usertable.read(table)] == [{"vec": 2}]


def test_an_empty_list_of_entries_is_added_to(table: Path) -> None:
    table.parent.mkdir()
    table.write_text("device = []\n")
    usertable.write(table, ONE, {"vec": 4}, "1")
    assert [entry.device for entry in usertable.read(table)] == [ONE]


def test_two_entries_of_one_device_become_one(table: Path) -> None:
    usertable.write(table, ONE, {"vec": 4}, "1")
    text = table.read_text()
    table.write_text(text + text[text.index("[[device]]") :])
    assert len(usertable.read(table)) == 2
    usertable.write(table, ONE, {"vec": 2}, "1")
    assert [dict(entry.choices) for entry in usertable.read(table)] == [{"vec": 2}]


def test_a_table_that_cannot_be_used_is_not_written_to(table: Path) -> None:
    table.parent.mkdir()
    table.write_text("[[device]\n")
    with pytest.raises(ParameterError, match="no TOML"):
        usertable.write(table, ONE, {"vec": 4}, "1")
    assert table.read_text() == "[[device]\n"


def test_a_write_that_fails_leaves_the_old_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usertable.write(table, ONE, {"vec": 4}, "1")
    kept = table.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        usertable.write(table, OTHER, {"vec": 8}, "1")
    assert table.read_bytes() == kept
    assert os.listdir(table.parent) == [table.name]  # noqa: PTH208


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("vec = ", "is no TOML", id="cut off"),
        pytest.param("vec = 4", "has 'vec'; it wants entries", id="choices of no device"),
        pytest.param("[device.mine]\nvec = 4", "device is no list", id="the form of the shipped table"),
        pytest.param("device = [1]", "entry 1 is 1", id="an entry that is a number"),
        pytest.param("[[device]]\nchoices = {vec = 4}", "names no device", id="an entry for everything"),
        pytest.param("[[device]]\nname = 'a'\nvec = 4", "entry 1: 'vec' is none of", id="a choice beside choices"),
        pytest.param("[[device]]\nname = 4", "name is 4; it wants a text", id="a name that is a number"),
        pytest.param(
            "[[device]]\nname = 'a'\n[[device]]\nname = 'b'\nchoices = 1", "entry 2: choices is 1", id="second"
        ),
        pytest.param(b"\xff", "is no text, and so no tuning table; name another file", id="not UTF-8"),
        pytest.param("x = 1 +", "is no TOML: .*; a tuning table has entries .*; name another file", id="a program"),
        pytest.param("[[device]]\nname =", "is no TOML: .*; mend it, or delete it", id="a table"),
    ],
)
def test_broken_tables(table: Path, text: str | bytes, says: str) -> None:
    table.parent.mkdir()
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError, match=says) as caught:
        usertable.read(table)
    assert str(table) in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes and devices")
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/full"])
def test_what_has_no_end_is_no_table(table: Path, kind: str) -> None:
    table.parent.mkdir()
    os.mkfifo(table) if kind == "pipe" else table.symlink_to(kind)
    with pytest.raises(ParameterError, match=r"cannot be read: Not a regular file, so it is not read$"):
        usertable.read(table)


def test_the_variable_that_names_a_table_is_told(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.parent.mkdir()
    table.write_text("vec = 4")
    with pytest.raises(ParameterError) as caught:
        usertable.read(table)
    assert "OCLBN_TUNING" not in str(caught.value)
    monkeypatch.setenv("OCLBN_TUNING", str(table))
    with pytest.raises(ParameterError, match=r"^tuning table .* \(named by OCLBN_TUNING\) has 'vec'"):
        usertable.read(table)


def test_the_example_in_the_documentation_is_a_table(table: Path) -> None:
    example = "\n".join(line.strip() for line in str(usertable.__doc__).splitlines() if line.startswith("    "))
    assert tomllib.loads(example)
    table.parent.mkdir()
    table.write_text(example)
    (entry,) = usertable.read(table)
    assert entry.choices


def test_writing_without_tomlkit_names_the_extra(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomlkit", None)
    with pytest.raises(MissingExtraError, match=r"oclbn\[cli\]"):
        usertable.write(table, ONE, {"vec": 4}, "1")
    assert not table.exists()
