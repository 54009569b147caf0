"""Kernel files: found, expanded, and their kernels' parameters read off them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oclbn.plan.operations import OPERATIONS
from oclbn.program import sources
from oclbn.program.sources import Parameter, SourceError, kernel_directory, load, parameters

FILES = sorted(path.name for path in kernel_directory().glob("*.cl"))


@pytest.mark.parametrize("name", FILES)
def test_includes_are_expanded(name: str) -> None:
    source = load(name)
    assert '#include "' not in source.text
    assert source.text.count("#ifndef TYPES_CLH") == 1
    assert len(source.origins) == len(source.text.splitlines())


@pytest.mark.parametrize("name", FILES)
def test_every_line_knows_where_it_came_from(name: str) -> None:
    source = load(name)
    folder = kernel_directory()
    files = {str(path.relative_to(folder)): path.read_text().splitlines() for path in folder.rglob("*.*")}
    for line, (file, number) in zip(source.text.splitlines(), source.origins, strict=True):
        if number and not line.startswith("#line") and "#include" not in files[file][number - 1]:
            assert line == files[file][number - 1]


def test_line_directives_lead_back_to_the_file() -> None:
    lines = load("forward.cl").text.splitlines()
    back = max(index for index, line in enumerate(lines) if line.startswith("#line") and "forward.cl" in line)
    number = int(lines[back].split()[1])
    original = (kernel_directory() / "forward.cl").read_text().splitlines()
    assert lines[back + 1 : back + 20] == original[number - 1 : number + 18]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of kernels."""
    monkeypatch.setattr(sources, "kernel_directory", lambda: tmp_path)
    load.cache_clear()
    sources._heads.cache_clear()
    yield tmp_path
    load.cache_clear()
    sources._heads.cache_clear()


def test_a_pattern_is_put_in_at_each_place(folder: Path) -> None:
    (folder / "once.clh").write_text("int one;\n")
    (folder / "many.inc").write_text('#include "once.clh"\nint NAME;\n#undef NAME\n')
    (folder / "all.cl").write_text('#define NAME a\n#include "many.inc"\n#define NAME b\n#include "many.inc"\n')
    source = load("all.cl")
    assert source.text.count("int NAME;") == 2
    assert source.text.count("int one;") == 1
    lines = source.text.splitlines()
    for (file, number), line, before in zip(source.origins[1:], lines[1:], lines[:-1], strict=True):
        if line.startswith("#line"):
            continue
        if before.startswith("#line"):
            assert before == f'#line {number} "{file}"'
        if number:
            assert line in ("", (folder / file).read_text().splitlines()[number - 1])


@pytest.mark.parametrize("ending", ["clh", "inc"])
def test_a_file_that_includes_itself_is_named(folder: Path, ending: str) -> None:
    (folder / "all.cl").write_text(f'#include "a.{ending}"\n')
    (folder / f"a.{ending}").write_text('#include "b.inc"\n')
    (folder / "b.inc").write_text(f'#include "a.{ending}"\n')
    if ending == "inc":
        with pytest.raises(SourceError, match=r"kernel file a\.inc includes itself, by way of b\.inc"):
            load("all.cl")
    else:  # as with a guard in it
        assert load("all.cl").origins[-1][0] == "all.cl"


@pytest.mark.parametrize("path", sorted(kernel_directory().rglob("*.inc")), ids=lambda path: path.name)
def test_patterns_leave_nothing_defined(path: Path) -> None:
    """What is set before, as the head says, is undefined at the end, and so is what is defined in between."""
    text = path.read_text()
    told = re.search(r"^// Set before, undefined after: (.*?)\n\n", text, re.DOTALL | re.MULTILINE)
    entries = told[1].replace("//", "").split(";") if told else []
    before = set(re.findall(r"(?:^|;)\s*(\w+)", ";".join(entries)))
    words = {word for entry in entries for word in re.findall(r"\w+", entry)}
    defined = set(re.findall(r"^#define (\w+)", text, re.MULTILINE))
    undefined = set(re.findall(r"^#undef (\w+)$", text, re.MULTILINE))
    set_for_others = {"NAME", "ROWS", "PUT", "BEHIND"} if '#include "' in text else set()
    assert defined - set_for_others <= undefined
    assert before <= undefined
    assert undefined - defined <= words


@pytest.mark.parametrize("name", FILES)
def test_one_kernel_of_a_file_stands_where_it_stood(name: str) -> None:
    whole = load(name)
    kernels = re.findall(r"^__kernel .*\bvoid (\w+)\(", whole.text, re.MULTILINE)
    lines = whole.text.splitlines()
    taken = [0] * len(lines)
    for kernel in kernels:
        one = sources.with_one(whole, kernel)
        assert re.findall(r"^__kernel .*\bvoid (\w+)\(", one.text, re.MULTILINE) == [kernel]
        assert one.text.count("{") == one.text.count("}")
        assert one.origins == whole.origins
        left = one.text.splitlines()
        assert [line for line in left if line] == [a for a, b in zip(lines, left, strict=True) if a == b and b]
        taken = [count + (a == b) for count, a, b in zip(taken, lines, left, strict=True)]
    # Every line is in all of these texts, or in one of them: a kernel's.
    assert set(taken) <= {1, len(kernels)}


def test_parameters_come_in_order_with_their_types() -> None:
    found = parameters("accumulate.cl", "accumulate")
    assert found == (
        Parameter("into", "buffer"),
        Parameter("into_start", "long"),
        Parameter("added", "buffer"),
        Parameter("added_start", "long"),
        Parameter("count", "long"),
        Parameter("scale", "ACC"),
        Parameter("momentum", "ACC"),
    )


def test_lists_of_parameters_are_written_out(folder: Path) -> None:
    (folder / "lists.clh").write_text(
        "#define ARRAY_ARGUMENTS(a) a, const long a##_start  // an aside\n"
        "#define MORE_ARGUMENTS \\\n    __global ACC *ARRAY_ARGUMENTS(b), /* [n] */ \\\n    const int data\n"
    )
    head = "const __global ACC *restrict ARRAY_ARGUMENTS(in), // [n]\n MORE_ARGUMENTS, const ACC last"
    (folder / "all.cl").write_text(f'#include "lists.clh"\n__kernel void one(\n{head})\n{{\n}}\n')
    assert [(parameter.name, parameter.type) for parameter in parameters("all.cl", "one")] == [
        ("in", "buffer"),
        ("in_start", "long"),
        ("b", "buffer"),
        ("b_start", "long"),
        ("data", "int"),
        ("last", "ACC"),
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_planned_kernel_exists(operation: str) -> None:
    wanted = OPERATIONS[operation]
    for kernel in filter(None, (wanted.resident, *wanted.split)):
        source = "moments.cl" if kernel.startswith("moments") else wanted.source
        names = [parameter.name for parameter in parameters(source, kernel)]
        assert len(names) == len(set(names)) > 5
        assert {parameter.type for parameter in parameters(source, kernel)} <= {"buffer", "int", "long", "ACC"}


def test_a_missing_file_and_a_missing_kernel_are_named() -> None:
    with pytest.raises(SourceError, match=r"kernel file backwards\.cl is not in "):
        load("backwards.cl")
    with pytest.raises(SourceError, match=r"forward\.cl has no kernel trane"):
        sources.parameters("forward.cl", "trane")
    with pytest.raises(SourceError, match=r"forward\.cl has no kernel trane"):
        sources.with_one(load("forward.cl"), "trane")
