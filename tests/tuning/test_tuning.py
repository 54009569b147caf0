"""Choices per device: overrides over the user's table over what is shipped, from device to family to default."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oclbn import tuning
from oclbn.errors import ParameterError
from oclbn.plan.operations import OPERATIONS
from oclbn.plan.variants import plan
from oclbn.plan.words import DeviceLimits, Problem, Tuning
from oclbn.tools.bench.suites import SUITES
from oclbn.tuning import levels, shipped_for, tuning_for, using

POCL = ("Portable Computing Language", "OpenCL 3.0 PoCL 3.1", "pthread-znver3", "cpu")
RUSTICL = ("rusticl", "OpenCL 3.0 ", "llvmpipe (LLVM 15.0.6, 256 bits)", "cpu")
CARD = ("NVIDIA CUDA", "OpenCL 3.0 CUDA 12.4", "NVIDIA H100", "gpu")


@pytest.fixture(autouse=True)
def _no_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever runs this may have tuned."""
    monkeypatch.setenv("OCLBN_TUNING", "")
    tuning.forget()
    yield
    tuning.forget()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that makes a text the user's table."""

    def written(text: str) -> Path:
        table = tmp_path / "tuning.toml"
        table.write_text(text)
        monkeypatch.setenv("OCLBN_TUNING", str(table))
        tuning.forget()
        return table

    return written


def test_a_processor_walks_whole_rows() -> None:
    tuning = tuning_for(*POCL)
    assert tuning.lanes == 1
    assert tuning.vec > 1


def test_a_card_gets_groups() -> None:
    assert tuning_for(*CARD).lanes > 1


def test_intels_vectors_are_as_wide_as_the_processors() -> None:
    """By what the device calls its native width: with AVX2 vectors of 16 would be two registers each."""
    for width, vec in ((16, 16), (8, 8)):
        name = f"AMD EPYC / OpenCL 3.1 (Build 0) /  / vectors of {width} floats"
        assert tuning_for("Intel(R) OpenCL", "OpenCL 3.1 LINUX", name, "cpu").vec == vec


def test_a_family_beats_the_default_key_by_key() -> None:
    tuning, default = tuning_for(*RUSTICL), tuning_for("?", "?", "?", "cpu")
    assert tuning.lanes > 1 == default.lanes
    assert tuning.most_steps > 0 == default.most_steps
    assert tuning.chunk_bytes == default.chunk_bytes


def test_an_unknown_kind_is_treated_as_a_card() -> None:
    assert tuning_for("?", "?", "?", "custom") == tuning_for("?", "?", "?", "gpu")


def test_overrides_nest_and_end() -> None:
    before = tuning_for(*POCL)
    with using(variant="split"):
        with using(vec=2):
            inner = tuning_for(*POCL)
            assert (inner.variant, inner.vec) == ("split", 2)
        assert tuning_for(*POCL).vec == before.vec
    assert tuning_for(*POCL) == before


def test_overrides_end_with_an_exception() -> None:
    with pytest.raises(RuntimeError, match="boom"), using(vec=2):
        raise RuntimeError("boom")
    assert tuning_for(*POCL).vec != 2


def test_overrides_are_the_threads_own() -> None:
    seen: list[Tuning] = []
    with using(vec=2):
        thread = threading.Thread(target=lambda: seen.append(tuning_for(*POCL)))
        thread.start()
        thread.join()
    assert seen[0].vec != 2


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"lane": 1}, "no choice named 'lane'; there are lanes, vec"),
        ({"lanes": 3}, "lanes is 3; it wants a power of two"),
        ({"lanes": 0}, "lanes is 0; it wants a power of two"),
        ({"vec": 32}, "vec is 32"),
        ({"vec": 2.0}, "vec is 2.0; it wants int"),
        ({"stream": 1}, "stream is 1; it wants bool"),
        ({"unroll": True}, "unroll is True; it wants int"),
        ({"groups_per_unit": 0}, "groups_per_unit is 0; it wants a positive number"),
        ({"chains": -1}, "chains is -1; it wants a positive number or 0"),
        ({"run_bytes": 16385}, "run_bytes is 16385; it wants 16384 at most"),
        ({"variant": "fast"}, "variant is 'fast'; there are resident, split, serial"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_choices_that_do_not_exist(choices: dict[str, object], says: str) -> None:
    with pytest.raises(ParameterError, match=says), using(**choices):
        pass


# --- the user's table

MINE = """
[[device]]
platform = "Portable Computing Language"
version = "OpenCL 3.0 PoCL 3.1"
name = "pthread-znver3"
driver = "3.1"
oclbn = "0.0.1"
choices = { vec = 2, lanes = 4 }
"""


def test_the_users_table_beats_what_is_shipped_key_by_key(write: Callable[[str], Path]) -> None:
    write(MINE)
    mine, shipped = tuning_for(*POCL, driver="3.1"), shipped_for(*POCL)
    assert (mine.vec, mine.lanes) == (2, 4) != (shipped.vec, shipped.lanes)
    assert (mine.unroll, mine.chunk_bytes) == (shipped.unroll, shipped.chunk_bytes)


def test_using_beats_the_users_table(write: Callable[[str], Path]) -> None:
    write(MINE)
    with using(vec=1):
        assert (tuning_for(*POCL).vec, tuning_for(*POCL).lanes) == (1, 4)


@pytest.mark.parametrize(
    ("names", "driver"),
    [
        pytest.param(POCL, "3.2", id="another driver"),
        pytest.param((POCL[0], "OpenCL 3.0 PoCL 3.0", *POCL[2:]), "3.1", id="another version"),
        pytest.param((*POCL[:2], "pthread-skylake", "cpu"), "3.1", id="another device"),
        pytest.param(("Intel(R) OpenCL", *POCL[1:]), "3.1", id="another platform"),
    ],
)
def test_an_entry_is_for_its_device_alone(
    write: Callable[[str], Path], names: tuple[str, str, str, str], driver: str
) -> None:
    write(MINE)
    assert tuning_for(*names, driver=driver) == shipped_for(*names)


def test_names_fit_however_they_are_spaced_and_continued(write: Callable[[str], Path]) -> None:
    write(MINE)
    assert tuning_for(POCL[0], " OpenCL 3.0  PoCL 3.1 ", f"{POCL[2]} / OpenCL 3.0 / znver3", "cpu", "3.1").vec == 2


def test_a_name_that_is_left_out_is_any(write: Callable[[str], Path]) -> None:
    write('[[device]]\nname = "pthread-znver3"\nchoices = { vec = 2 }')
    assert tuning_for(*POCL, driver="whatever").vec == 2
    assert tuning_for(*RUSTICL) == shipped_for(*RUSTICL)


def test_the_table_is_read_once(write: Callable[[str], Path]) -> None:
    table = write(MINE)
    assert tuning_for(*POCL).vec == 2
    table.unlink()
    assert tuning_for(*POCL).vec == 2


def test_choices_of_another_version_are_left_out_loudly(write: Callable[[str], Path]) -> None:
    table = write(MINE.replace("lanes", "warp_shuffles"))
    with pytest.warns(UserWarning, match=r"written by oclbn 0\.0\.1 has warp_shuffles") as caught:
        assert tuning_for(*POCL).vec == 2
    assert str(table) in str(caught[0].message)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("vec = 2", "vec = 3", "vec is 3; it wants a power of two"),
        ("vec = 2", "vec = '2'", "vec is '2'; it wants int"),
        ("{", "[", "is no TOML"),
    ],
)
def test_a_table_that_cannot_be_used_is_an_error_that_names_it(
    write: Callable[[str], Path], old: str, new: str, says: str
) -> None:
    table = write(MINE.replace(old, new))
    for _ in range(2):  # not only the first time
        with pytest.raises(ParameterError, match=says) as caught:
            tuning_for(*POCL)
        assert str(table) in str(caught.value)


def test_a_table_that_is_named_has_to_be_there(write: Callable[[str], Path]) -> None:
    write(MINE).unlink()
    with pytest.raises(ParameterError, match=r"OCLBN_TUNING names .*does not exist"):
        tuning_for(*POCL)


def test_every_choice_says_where_it_comes_from(write: Callable[[str], Path]) -> None:
    table = write(MINE)
    with using(unroll=2):
        found = levels(*POCL, driver="3.1")
    assert [level.origin for level in found] == ["default of cpu", f"your table {table}", "using"]
    assert set(found[0].choices) == set(Tuning.__dataclass_fields__)
    assert [dict(level.choices) for level in found[1:]] == [{"vec": 2, "lanes": 4}, {"unroll": 2}]
    assert [level.origin for level in levels(*RUSTICL)] == ["default of cpu", "family rusticl + llvmpipe"]


# --- what is shipped for devices, by the names that their drivers report


def gpu(units: int, group: int, local: int, cache: int) -> DeviceLimits:
    return DeviceLimits("gpu", units, group, local << 10, cache << 10, 8 << 30, 2 << 30, fp64=True, fp16=True)


CARDS = [
    pytest.param(
        ("NVIDIA CUDA", "OpenCL 3.0 CUDA 12.4.131", "NVIDIA H100 80GB HBM3 / OpenCL 3.0 CUDA / ", "gpu"),
        gpu(132, 1024, 48, 4224),
        {"lanes": 256, "vec": 4},
        id="NVIDIA",
    ),
    pytest.param(
        (
            "AMD Accelerated Parallel Processing",
            "OpenCL 2.1 AMD-APP (3635.0)",
            "gfx90a:sramecc+:xnack- / OpenCL 2.0  / ",
            "gpu",
        ),
        gpu(104, 256, 64, 16),
        {"lanes": 256, "vec": 4},
        id="AMD, CDNA: waves of 64",
    ),
    pytest.param(
        ("AMD Accelerated Parallel Processing", "OpenCL 2.1 AMD-APP (3635.0)", "gfx1030 / OpenCL 2.0  / ", "gpu"),
        gpu(36, 256, 64, 16),
        {"lanes": 128, "vec": 4, "groups_per_unit": 16},
        id="AMD, RDNA 2: waves of 32",
    ),
    pytest.param(
        ("AMD Accelerated Parallel Processing", "OpenCL 2.1 AMD-APP.dbg (3614.0)", "gfx1100 / OpenCL 2.0  / ", "gpu"),
        gpu(48, 256, 64, 32),
        {"lanes": 128, "vec": 4, "groups_per_unit": 16},
        id="AMD, RDNA 3",
    ),
    pytest.param(
        (
            "rusticl",
            "OpenCL 3.0 ",
            "AMD Radeon Graphics (radeonsi, raphael_mendocino, LLVM 19.1.1, DRM 3.59) / OpenCL 3.0  / ",
            "gpu",
        ),
        gpu(2, 1024, 32, 0),
        {"lanes": 256, "vec": 4, "most_steps": 0},
        id="AMD through rusticl",
    ),
    pytest.param(
        ("Intel(R) OpenCL Graphics", "OpenCL 3.0 ", "Intel(R) Arc(TM) A770 Graphics / OpenCL 3.0 NEO  / ", "gpu"),
        gpu(512, 1024, 64, 16384),
        {"lanes": 256, "vec": 4, "groups_per_unit": 1},
        id="Intel, card",
    ),
    pytest.param(
        (
            "Intel(R) OpenCL HD Graphics",
            "OpenCL 3.0 ",
            "Intel(R) UHD Graphics 630 [0x3e92] / OpenCL 3.0 NEO  / ",
            "gpu",
        ),
        gpu(24, 256, 64, 512),
        {"lanes": 256, "vec": 4, "groups_per_unit": 1},
        id="Intel, beside a processor",
    ),
    pytest.param(
        ("rusticl", "OpenCL 3.0 ", "Mesa Intel(R) Xe Graphics (TGL GT2) / OpenCL 3.0  / ", "gpu"),
        gpu(96, 1024, 64, 0),
        {"lanes": 256, "vec": 4, "groups_per_unit": 1},
        id="Intel through rusticl",
    ),
    pytest.param(
        ("Apple", "OpenCL 1.2 (May  8 2021 03:14:28)", "Apple M1 / OpenCL 1.2  / ", "gpu"),
        gpu(8, 256, 32, 0),
        {"lanes": 128, "vec": 4},
        id="Apple",
    ),
    pytest.param(
        ("ARM Platform", "OpenCL 3.0 v1.r32p1-01eac0", "Mali-G610 MC6 r0p0 / OpenCL 3.0 v1.r32p1-01eac0 / ", "gpu"),
        gpu(4, 1024, 32, 1024),
        {"lanes": 64, "vec": 4},
        id="Mali, Valhall",
    ),
    pytest.param(
        ("ARM Platform", "OpenCL 2.0 v1.r9p0-01rel0", "Mali-G71 / OpenCL 2.0 v1.r9p0-01rel0 / ", "gpu"),
        gpu(8, 384, 32, 1024),
        {"lanes": 64, "vec": 4},
        id="Mali, Bifrost",
    ),
    pytest.param(
        (
            "QUALCOMM Snapdragon(TM)",
            "OpenCL 3.0 QUALCOMM build: commit unknown",
            "QUALCOMM Adreno(TM) 750 / OpenCL 3.0 Adreno(TM) 750 / ",
            "gpu",
        ),
        gpu(6, 1024, 32, 128),
        {"lanes": 128, "vec": 4},
        id="Adreno",
    ),
]
BUSY = 64 << 10  # bytes that each compute unit should have to do before it is missed
UNITS_OF_A_GROUP = {"intel": 2}  # elsewhere a group runs on one unit


@pytest.mark.parametrize(("names", "limits", "wanted"), CARDS)
def test_cards_get_what_was_reasoned_for_them(
    names: tuple[str, str, str, str], limits: DeviceLimits, wanted: dict[str, int]
) -> None:
    found = tuning_for(*names)
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(("names", "limits", "wanted"), CARDS)
def test_plans_for_cards_fit_them_and_keep_them_busy(
    names: tuple[str, str, str, str], limits: DeviceLimits, wanted: dict[str, int], suite: str
) -> None:
    found = tuning_for(*names)
    spread = next((units for maker, units in UNITS_OF_A_GROUP.items() if maker in f"{names}".lower()), 1)
    for (shape, axis), operation in [(case, operation) for case in SUITES[suite] for operation in OPERATIONS]:
        inner = math.prod(shape[axis + 1 :])
        problem = Problem(math.prod(shape[:axis]), shape[axis], inner, 4, columns=inner == 1)
        made = plan(operation, problem, limits, found)
        for launch in made.launches:
            assert 1 <= launch.lanes <= limits.max_group
            assert launch.groups >= 1
            vec = dict(launch.build.defines)["VEC"] if problem.columns else 1
            assert launch.lanes * vec * 6 * problem.itemsize <= limits.local_bytes, "sums of a group meet there"
        if problem.tensor_bytes >= BUSY * limits.compute_units:
            assert made.launches[0].groups * spread >= limits.compute_units, f"{operation} of {shape}: {made}"


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(
            ("AMD Accelerated Parallel Processing", "OpenCL 2.0", "AMD Ryzen 5 / OpenCL 2.0 / ", "cpu"), id="AMD"
        ),
        pytest.param(("Intel(R) OpenCL", "OpenCL 3.0 WINDOWS", "Intel(R) Core(TM) with Graphics", "cpu"), id="Intel"),
        pytest.param(("Apple", "OpenCL 1.2", "Intel(R) Core(TM) i7 CPU / OpenCL 1.2 / ", "cpu"), id="Apple"),
    ],
)
def test_processors_of_a_makers_platform_stay_processors(names: tuple[str, str, str, str]) -> None:
    assert tuning_for(*names).lanes == 1


def test_a_table_that_is_not_there_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLBN_TUNING", str(tmp_path / "new.toml"))
    tuning.forget()
    cure = r"`oclbn tune` makes it, and with OCLBN_TUNING empty there is none"
    with pytest.raises(ParameterError, match=rf"new\.toml, which does not exist; {cure}$"):
        tuning.tuning_for("a platform", "OpenCL 3.0", "a device", "cpu")
    monkeypatch.setenv("OCLBN_TUNING", "")
    tuning.forget()
    assert tuning.tuning_for("a platform", "OpenCL 3.0", "a device", "cpu")
    tuning.forget()
