"""Planning: numbers in, a plan out, with neither a device nor a mock."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oclbn.errors import BuildError
from oclbn.plan.operations import OPERATIONS
from oclbn.plan.variants import fitting_plan, plan
from oclbn.plan.words import DeviceLimits, Launch, Plan, Problem, Tuning

LAPTOP = DeviceLimits(
    kind="cpu",
    compute_units=2,
    max_group=4096,
    local_bytes=1 << 20,
    cache_bytes=32 << 20,
    memory_bytes=16 << 30,
    max_alloc_bytes=4 << 30,
    fp64=True,
    fp16=False,
)
CARD = replace(LAPTOP, kind="gpu", compute_units=80, max_group=1024, local_bytes=48 << 10, cache_bytes=6 << 20)
CPU = Tuning()
GPU = Tuning(lanes=256, vec=1, blocks=1, groups_per_unit=8, stream=False)
RESNET = Problem(outer=32, channels=256, inner=3136, itemsize=4, columns=False)


def groups(planned: Plan) -> list[int]:
    return [launch.groups for launch in planned.launches]


def defines(planned: Plan) -> dict[str, int]:
    return dict(planned.launches[0].build.defines)


def test_many_channels_on_few_cores_are_resident() -> None:
    planned = plan("train", RESNET, LAPTOP, CPU)
    assert planned.variant == "resident"
    assert groups(planned) == [8]
    assert planned.geometry.chain == 32
    assert planned.memory == ()


def test_three_big_channels_are_split() -> None:
    planned = plan("train", Problem(8, 3, 50_176, 4, columns=False), CARD, GPU)
    assert planned.variant == "split"
    assert all(count > 80 for count in groups(planned))
    assert {one.name: one.size for one in planned.memory} == {
        "counts": planned.geometry.slices,
        "partial": 3 * 4 * planned.geometry.slices,
    }


def test_a_channel_too_large_for_the_cache_is_split() -> None:
    assert plan("train", Problem(64, 4, 1 << 20, 4, columns=False), LAPTOP, CPU).variant == "split"


def test_channels_that_leave_a_core_idle_are_split() -> None:
    assert plan("train", Problem(32, 3, 3136, 4, columns=False), LAPTOP, CPU).variant == "split"
    assert plan("train", Problem(32, 4, 3136, 4, columns=False), LAPTOP, CPU).variant == "resident"


@pytest.mark.parametrize(
    ("operation", "problem", "tuning", "reason"),
    [
        pytest.param("infer", RESNET, CPU, "no kernel reads a channel twice for this operation", id="reads once"),
        pytest.param(
            "train",
            Problem(32, 3, 3136, 4, columns=False),
            CPU,
            "3 work-groups do not share out evenly among 2 compute units",
            id="uneven",
        ),
        pytest.param(
            "train",
            Problem(64, 4, 1 << 20, 4, columns=False),
            CPU,
            "of 536,870,912 bytes that are read again, the cache holds 33,554,432",
            id="large",
        ),
        pytest.param(
            "train",
            Problem(1 << 10, 2, 1 << 19, 4, columns=False),
            CPU,
            "a channel has 536,870,912 elements, a work-group reads 268,435,456 at most",
            id="huge",
        ),
        pytest.param(
            "train",
            Problem(100, 128, 1, 4, columns=True),
            replace(CPU, blocks=1, vec=1, run_bytes=0),
            "memory would be read in pieces of 256 bytes, 512 are wanted at least",
            id="narrow columns",
        ),
        pytest.param(
            "train", RESNET, replace(CPU, most_steps=1000), "a work-item would take more than 1,000 steps", id="steps"
        ),
        pytest.param("train", RESNET, replace(CPU, variant="split"), "split is asked for", id="asked for"),
    ],
)
def test_who_declines_says_why(operation: str, problem: Problem, tuning: Tuning, reason: str) -> None:
    planned = plan(operation, problem, LAPTOP, tuning)
    assert planned.variant == "split"
    assert planned.declined[0].startswith(f"resident: {reason}")
    assert len(planned.declined) == 1


def test_the_first_candidate_has_no_one_before_it() -> None:
    planned = plan("train", RESNET, LAPTOP, CPU)
    assert (planned.variant, planned.declined) == ("resident", ())
    asked = plan("train", RESNET, LAPTOP, replace(CPU, variant="serial"))
    assert asked.declined == ("resident: serial is asked for", "split: serial is asked for")


def test_plans_alike_are_equal_whoever_declined() -> None:
    """`oclbn tune` does not time what runs alike."""
    problem = Problem(32, 3, 3136, 4, columns=False)
    by_itself, asked = (plan("train", problem, LAPTOP, replace(CPU, variant=variant)) for variant in ("", "split"))
    assert by_itself == replace(asked, declined=())
    assert by_itself.declined != asked.declined


def test_what_is_small_takes_one_launch() -> None:
    assert groups(plan("train", Problem(4, 3, 49, 4, columns=False), CARD, GPU)) == [3]
    assert groups(plan("backward", Problem(128, 64, 1, 4, columns=True), LAPTOP, CPU)) == [1]


@pytest.mark.parametrize(
    ("rows", "channels", "itemsize", "units", "share"),
    [
        pytest.param(512, 512, 4, 2, 256, id="halves"),
        pytest.param(200, 1000, 4, 2, 512, id="whole lines, as even as they can be"),
        pytest.param(512, 256, 8, 2, 128, id="float64"),
        pytest.param(1024, 1024, 4, 8, 128, id="eighths"),
        pytest.param(60, 4096, 4, 2, 1024, id="no longer than a strip"),
        pytest.param(4096, 64, 4, 2, 32, id="128 bytes of a row"),
        pytest.param(4096, 64, 4, 4, None, id="less of a row"),
        pytest.param(8000, 40, 4, 2, None, id="uneven"),
        pytest.param(1000, 257, 4, 2, None, id="uneven by less than a vector"),
        pytest.param(1024, 1024, 4, 2, None, id="too large to gain by it"),
        pytest.param(256, 256, 4, 2, 256, id="so small that one is done before two have begun"),
        pytest.param(2048, 128, 4, 1, None, id="nobody to share with"),
    ],
)
def test_small_tensors_of_neighbouring_channels_are_shared_out(
    rows: int, channels: int, itemsize: int, units: int, share: int | None
) -> None:
    shared = plan(
        "train", Problem(rows, channels, 1, itemsize, columns=True), replace(LAPTOP, compute_units=units), CPU
    )
    if share is None:
        assert shared.variant == "split" or groups(shared) == [1]
    else:
        assert (shared.variant, groups(shared)) == ("resident", [-(-channels // share)])
        assert shared.geometry.share == share


def test_a_named_variant_is_the_only_one() -> None:
    for variant in ("resident", "split", "serial"):
        assert plan("train", RESNET, LAPTOP, replace(CPU, variant=variant)).variant == variant


def test_split_really_splits() -> None:
    assert plan("train", RESNET, LAPTOP, replace(CPU, variant="split")).geometry.slices > 1


def test_serial_needs_nothing_of_a_device() -> None:
    poor = replace(LAPTOP, max_group=1, local_bytes=0, cache_bytes=0, compute_units=1)
    planned = plan("backward", RESNET, poor, replace(GPU, variant="serial"))
    assert {launch.lanes for launch in planned.launches} == {1}
    assert defines(planned)["VEC"] == 1


def test_groups_never_exceed_the_device() -> None:
    planned = plan("train", RESNET, replace(CARD, max_group=100), GPU)
    assert {launch.lanes for launch in planned.launches} == {64}


def test_groups_never_exceed_what_a_built_kernel_can_have() -> None:
    def most(launch: Launch) -> int:
        return 100 if launch.kernel == "moments_partial" else 1024

    problem = Problem(8, 3, 50_176, 4, columns=False)
    planned = fitting_plan("train", problem, CARD, GPU, most)
    assert [launch.lanes for launch in planned.launches] == [64, 64]
    assert planned == plan("train", problem, CARD, replace(GPU, lanes=64))
    assert fitting_plan("infer", problem, CARD, GPU, most) == plan("infer", problem, CARD, GPU)


def test_a_kernel_that_can_have_no_groups_is_an_error() -> None:
    with pytest.raises(BuildError, match="can have 0 work-items"):
        fitting_plan("train", RESNET, CARD, GPU, lambda _: 0)


def test_double_halves_the_vector() -> None:
    assert defines(plan("train", RESNET, LAPTOP, CPU))["VEC"] == 8
    assert defines(plan("train", replace(RESNET, itemsize=8), LAPTOP, CPU))["VEC"] == 4


@pytest.mark.parametrize(("inner", "vec"), [(1, 1), (2, 2), (3, 2), (7, 4), (8, 8), (49, 8)])
def test_a_vector_fits_into_a_row(inner: int, vec: int) -> None:
    assert defines(plan("train", Problem(4, 8, inner, 4, columns=False), LAPTOP, CPU))["VEC"] == vec


def test_with_lanes_vectors_divide_the_row() -> None:
    tuning = replace(GPU, vec=4)
    assert defines(plan("train", replace(RESNET, inner=49), CARD, tuning))["VEC"] == 1
    assert defines(plan("train", replace(RESNET, inner=3136), CARD, tuning))["VEC"] == 4


def test_only_tensors_beyond_the_cache_are_streamed() -> None:
    assert plan("infer", RESNET, LAPTOP, CPU).geometry.beyond == 1
    assert plan("infer", replace(RESNET, outer=1), LAPTOP, CPU).geometry.beyond == 0
    assert plan("infer", RESNET, replace(LAPTOP, cache_bytes=0), CPU).geometry.beyond == 0
    assert defines(plan("infer", RESNET, LAPTOP, CPU))["STREAM"] == 1
    assert defines(plan("infer", RESNET, LAPTOP, replace(CPU, stream=False)))["STREAM"] == 0


def test_shapes_do_not_reach_the_compiler() -> None:
    one = plan("train", RESNET, LAPTOP, CPU)
    other = plan("train", Problem(31, 250, 3000, 4, columns=False), LAPTOP, CPU)
    assert [launch.build for launch in one.launches] == [launch.build for launch in other.launches]


def test_loops_are_kept_within_what_the_driver_allows() -> None:
    long = Problem(2, 3, 1_000_003, 4, columns=False)
    limited = replace(GPU, lanes=64, most_steps=60_000)
    for variant in ("", "serial"):
        planned = plan("train", long, LAPTOP, replace(limited, variant=variant))
        lanes = planned.launches[0].lanes
        assert planned.geometry.slice_rows * planned.geometry.slice_columns / lanes * 3 < 60_000


def test_short_rows_of_neighbouring_channels_go_together() -> None:
    short = plan("train", Problem(32, 2048, 49, 4, columns=False), LAPTOP, CPU)
    assert short.geometry.share > 16
    assert short.geometry.share * 49 * 4 <= CPU.together_bytes
    assert groups(short)[0] * short.geometry.chain >= 8
    assert plan("train", RESNET, LAPTOP, CPU).geometry.share == 1
    assert plan("train", Problem(32, 2048, 49, 4, columns=False), CARD, GPU).geometry.share == 1
    assert plan("train", Problem(32, 8, 49, 4, columns=False), LAPTOP, CPU).geometry.share == 1


def test_adjacent_short_rows_make_runs_of_whole_vectors() -> None:
    short = Problem(32, 2048, 49, 4, columns=False, adjacent=True)
    planned = plan("train", short, LAPTOP, CPU)
    assert defines(planned)["RUN"] * 4 == CPU.run_bytes
    assert planned.geometry.share * 49 % defines(planned)["VEC"] == 0
    assert planned.geometry.share * 49 <= defines(planned)["RUN"]
    assert plan("backward", short, LAPTOP, CPU).geometry.share == planned.geometry.share
    for other in (replace(short, adjacent=False), replace(short, outer=2, inner=196), replace(short, inner=3136)):
        assert "RUN" not in defines(plan("train", other, LAPTOP, CPU))
    for operation, outer in (("train", 1), ("backward", 3)):  # the tables of the latter are more
        assert "RUN" in defines(plan(operation, replace(short, outer=outer), LAPTOP, CPU))
    assert "RUN" not in defines(plan("backward", replace(short, outer=2), LAPTOP, CPU))
    assert "RUN" not in defines(plan("train", short, LAPTOP, replace(CPU, run_bytes=0)))
    assert "RUN" not in defines(plan("train", short, CARD, GPU))


@pytest.mark.parametrize("inner", [16, 49, 196])
def test_what_is_read_once_and_written_past_the_cache_is_walked_in_longer_runs(inner: int) -> None:
    far = Problem(256, 2048, inner, 4, columns=False, adjacent=True)
    planned = plan("infer", far, LAPTOP, CPU)
    assert defines(planned)["RUN"] >= planned.geometry.share * inner > CPU.run_bytes / 4
    assert defines(planned)["BLOCKS"] * defines(planned)["VEC"] >= planned.geometry.share
    assert plan("train", far, LAPTOP, CPU).geometry.share * inner <= CPU.run_bytes / 4  # reads twice
    if inner < 128:
        assert plan("infer", far, LAPTOP, replace(CPU, stream=False)).geometry.share * inner <= CPU.run_bytes / 4


@pytest.mark.parametrize("operation", ["train", "backward"])
@pytest.mark.parametrize(("units", "channels", "inner"), [(6, 512, 49), (12, 256, 196), (24, 512, 196), (24, 2048, 49)])
def test_runs_are_shorter_where_all_units_are_busy_with_those(
    operation: str, units: int, channels: int, inner: int
) -> None:
    device = replace(LAPTOP, compute_units=units)
    planned = plan(operation, Problem(32, channels, inner, 4, columns=False, adjacent=True), device, CPU)
    assert planned.variant == "resident"
    assert "RUN" in defines(planned)


def test_backward_walks_rows_in_chains_from_the_length_on_that_is_written_past_the_cache() -> None:
    for inner, run in ((511, True), (512, False)):
        problem = Problem(128, 64, inner, 4, columns=False, adjacent=True)
        planned = plan("backward", problem, LAPTOP, CPU)
        assert ("RUN" in defines(planned), planned.geometry.chain > 1) == (run, not run)


@pytest.mark.parametrize("operation", ["train", "infer", "backward"])
@pytest.mark.parametrize(("channels", "together"), [(4096, 4096), (1500, 1500), (1024, 1024), (8192, 4096)])
def test_long_rows_of_channels_are_walked_in_longer_strips_past_the_cache(
    operation: str, channels: int, together: int
) -> None:
    far = Problem(16384, channels, 1, 4, columns=True, adjacent=True)
    planned = plan(operation, far, LAPTOP, replace(CPU, fetch=True, variant="split"))
    assert planned.geometry.share == together
    assert defines(planned)["BLOCKS"] * defines(planned)["VEC"] >= together
    assert defines(planned)["FETCH"] == (operation == "train")  # infer sums none, backward reads two streams
    near = plan(operation, far, LAPTOP, replace(CPU, stream=False, variant="split"))
    assert near.geometry.share == min(channels, CPU.run_bytes // 4)


def test_the_last_slice_may_be_less_than_a_strip() -> None:
    few = Problem(91, 5, 1, 4, columns=True, adjacent=True)
    cut = plan("train", few, LAPTOP, replace(CPU, vec=4, most_steps=200, variant="split")).geometry
    assert (cut.chunk_columns, cut.slice_rows, cut.slices) == (3, 18, 6)  # rows of a strip, and of a slice


@pytest.mark.parametrize("variant", ["split", "serial"])
@pytest.mark.parametrize("vec", [1, 8])
@pytest.mark.parametrize("inner", [1, 2, 20])
@pytest.mark.parametrize("rows", [1500, 40_000, 1_000_000])
def test_merging_slices_takes_no_more_turns_than_a_driver_allows(rows: int, inner: int, vec: int, variant: str) -> None:
    limited = replace(CPU, vec=vec, unroll=1, most_steps=60_000, variant=variant)
    planned = plan("train", Problem(rows, 1000, inner, 4, columns=inner == 1, adjacent=True), LAPTOP, limited)
    across = defines(planned)["VEC"] if inner == 1 or "RUN" in defines(planned) else 1  # channels that take one turn
    assert planned.geometry.slices * -(-planned.geometry.share // across) <= 60_000


def test_what_is_read_once_is_walked_in_the_order_of_memory() -> None:
    near = Problem(8, 512, 196, 4, columns=False, adjacent=True)
    planned = plan("infer", near, LAPTOP, CPU)
    assert "RUN" not in defines(planned)
    assert CPU.once_bytes / 2 < planned.geometry.share * 196 * 4 <= CPU.once_bytes
    assert "RUN" in defines(plan("train", near, LAPTOP, CPU))  # reads twice
    for other in (replace(near, inner=49), replace(near, outer=1000)):  # rows too short; too short to be written far
        assert "RUN" in defines(plan("infer", other, LAPTOP, CPU))
    gaps = plan("infer", replace(near, adjacent=False), LAPTOP, CPU)
    assert gaps.geometry.share * 196 * 4 <= CPU.together_bytes


@pytest.mark.parametrize("units", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("channels", [64, 65, 97, 256, 2048])
@pytest.mark.parametrize("inner", [49, 196, 784, 3136])
@pytest.mark.parametrize("operation", ["train", "backward"])
def test_chains_leave_no_unit_idle(units: int, channels: int, inner: int, operation: str) -> None:
    device = replace(LAPTOP, compute_units=units, cache_bytes=units << 22)
    problem = Problem(2048, channels, inner, 4, columns=False, adjacent=True)
    planned = plan(operation, problem, device, replace(CPU, variant="resident"))
    blocks = -(-channels // planned.geometry.share)
    chain = planned.geometry.chain
    assert chain == 1 or defines(planned)["CHAIN"] == 1
    assert groups(planned) == [-(-blocks // chain)]
    busiest = -(-groups(planned)[0] // units) * chain
    assert busiest <= max(-(-blocks // units) * 1.1, 1)


def test_a_group_goes_on_where_outputs_go_past_the_cache() -> None:
    fetching = replace(CPU, fetch=True)
    short, near = replace(RESNET, channels=2048, inner=196, adjacent=True), replace(RESNET, channels=64, inner=784)
    for problem in (RESNET, short):
        planned = plan("train", problem, LAPTOP, fetching)
        assert planned.geometry.chain > 4
        assert defines(planned)["NEXT"] == 1  # what is summed next is fetched meanwhile
        assert defines(plan("train", problem, LAPTOP, CPU))["NEXT"] == 0
    assert plan("backward", RESNET, LAPTOP, fetching).geometry.chain > 4
    for other in (
        plan("backward", short, LAPTOP, fetching),  # runs of five arrays
        plan("infer", RESNET, LAPTOP, fetching),
        plan("train", RESNET, LAPTOP, replace(fetching, variant="split")),
        plan("train", RESNET, LAPTOP, replace(fetching, variant="serial")),
        plan("train", RESNET, LAPTOP, replace(fetching, stream=False)),
        plan("train", RESNET, LAPTOP, replace(fetching, chains=0)),
        plan("train", RESNET, LAPTOP, replace(fetching, most_steps=1 << 30)),
        plan("train", replace(RESNET, inner=1, outer=1 << 20, columns=True), LAPTOP, fetching),
        plan("train", RESNET, CARD, replace(GPU, fetch=True)),
    ):
        assert other.geometry.chain == 1
        assert defines(other)["CHAIN"] == defines(other)["NEXT"] == 0
    assert plan("train", near, LAPTOP, fetching).geometry.chain == 1


def test_one_sample_is_still_shared_out() -> None:
    planned = plan("infer", Problem(1, 256, 196, 4, columns=False, adjacent=True), LAPTOP, CPU)
    assert groups(planned)[0] >= 4 * LAPTOP.compute_units


@pytest.mark.parametrize("channels", [1, 2, 3, 63, 65, 97, 4097])
@pytest.mark.parametrize("inner", [1, 2, 3, 5, 16, 49])
def test_every_run_holds_a_whole_vector(channels: int, inner: int) -> None:
    planned = plan("train", Problem(32, channels, inner, 4, columns=False, adjacent=True), LAPTOP, CPU)
    if "RUN" in defines(planned):
        last = channels % planned.geometry.share or planned.geometry.share
        assert last * inner >= defines(planned)["VEC"]


def test_rows_without_vectors_have_one_accumulator() -> None:
    """Intel's compiler makes wrong code of several."""
    rows = Problem(4, 8, 6, 4, columns=False)
    assert defines(plan("train", rows, LAPTOP, replace(CPU, vec=1)))["UNROLL"] == 1
    assert defines(plan("train", rows, LAPTOP, CPU))["UNROLL"] == CPU.unroll


def test_a_plan_says_what_it_is() -> None:
    whole = "resident (train_resident; rows, LANES=1, VEC=8, UNROLL=4, BLOCKS=1"
    assert str(plan("train", RESNET, LAPTOP, CPU)) == whole + ", chains of 32)"
    assert str(plan("train", RESNET, LAPTOP, replace(CPU, chains=0))) == whole + ")"
    split = str(plan("backward", RESNET, LAPTOP, replace(CPU, variant="split")))
    assert split.startswith("split (backward_partial + backward_apply; rows, ")
    assert split.endswith(" slices)")


PROBLEMS = st.builds(
    Problem,
    outer=st.one_of(st.integers(1, 70), st.integers(1, 1 << 31)),
    channels=st.one_of(st.integers(1, 70), st.integers(1, 1 << 20)),
    inner=st.one_of(st.integers(1, 70), st.integers(1, 1 << 33)),
    itemsize=st.sampled_from([4, 8]),
    columns=st.just(False),
    adjacent=st.booleans(),
) | st.builds(
    Problem,
    outer=st.one_of(st.integers(1, 70), st.integers(1, 1 << 33)),
    channels=st.one_of(st.integers(1, 70), st.integers(1, 1 << 20)),
    inner=st.just(1),
    itemsize=st.sampled_from([4, 8]),
    columns=st.just(True),
)
TUNINGS = st.builds(
    Tuning,
    lanes=st.sampled_from([1, 16, 64, 256]),
    vec=st.sampled_from([1, 2, 4, 8, 16]),
    blocks=st.sampled_from([1, 2, 4, 8]),
    run_bytes=st.sampled_from([1, 4096, 12288]),
    near_bytes=st.sampled_from([1, 1 << 19]),
    chunk_bytes=st.sampled_from([256, 4096, 16384]),
    groups_per_unit=st.integers(1, 64),
    stream=st.booleans(),
    variant=st.sampled_from(["", "resident", "split", "serial"]),
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(OPERATIONS)), PROBLEMS, st.sampled_from([LAPTOP, CARD]), TUNINGS)
def test_every_element_is_in_exactly_one_slice(
    operation: str, problem: Problem, device: DeviceLimits, tuning: Tuning
) -> None:
    planned = plan(operation, problem, device, tuning)
    cut = planned.geometry
    made = defines(planned)
    row_slices = cut.slices // cut.column_slices
    assert cut.slices == row_slices * cut.column_slices
    assert (row_slices - 1) * cut.slice_rows < problem.outer <= row_slices * cut.slice_rows
    # the last slice of a row takes what is left, and no slice is without a whole vector
    run = made.get("RUN", 0)
    if run:
        assert (cut.column_slices, cut.slice_columns) == (1, problem.inner)
    elif problem.columns:
        assert (cut.column_slices, cut.slice_columns) == (1, 1)
    else:
        vectors = problem.inner // made["VEC"]
        assert vectors >= 1
        assert (cut.column_slices - 1) * cut.slice_columns < vectors * made["VEC"]
        assert cut.column_slices == 1 or cut.slice_columns % made["VEC"] == 0
        assert cut.column_slices * cut.slice_columns + made["VEC"] > problem.inner
        assert cut.chunk_columns // made["VEC"] >= 1
    # 32-bit numbers inside a region
    assert cut.slice_rows * max(cut.slice_columns, made["VEC"]) < 1 << 31
    assert cut.chunk_rows >= 1
    # work-items side by side and below each other make up the group
    assert made["LANES"] % cut.width == 0
    assert math.log2(cut.width) % 1 == 0
    if made["LANES"] > 1 and not problem.columns:
        assert problem.inner % made["VEC"] == 0
    # every channel has a group
    if problem.columns and made["LANES"] == 1:  # strips may end within a vector, none is shorter than one
        for together in {cut.share, problem.channels % cut.share or cut.share}:
            assert together * max(cut.chunk_columns, 1) >= made["VEC"]
    elif problem.columns:
        beside = made["VEC"] * cut.width
        assert cut.share % beside == 0
        assert 1 <= cut.share // beside <= made["BLOCKS"]
    elif run:
        assert 1 <= cut.share <= made["BLOCKS"] * made["VEC"]
        for together in {cut.share, problem.channels % cut.share or cut.share}:
            assert made["VEC"] <= together * problem.inner <= run
    else:
        assert 1 <= cut.share <= made["BLOCKS"]
    blocks = -(-problem.channels // cut.share)
    assert planned.launches[0].groups == -(-blocks // cut.chain) * cut.slices
    assert planned.launches[0].lanes == made["LANES"] <= device.max_group
    if len(planned.launches) > 1:
        (numbers,) = (one.size for one in planned.memory if one.name == "partial")
        assert numbers == len(OPERATIONS[operation].partial) * cut.slices * problem.channels


def test_groups_fit_local_memory() -> None:
    wide = Problem(64, 512, 1, 4, columns=True)
    tuning = replace(GPU, lanes=1024, vec=16, variant="split")
    planned = plan("backward", wide, CARD, tuning)
    assert planned.launches[0].lanes * 6 * defines(planned)["VEC"] * 4 <= CARD.local_bytes
    assert planned.launches[0].lanes > 1
    assert plan("backward", wide, replace(CARD, local_bytes=0), tuning).launches[0].lanes == 1


@pytest.mark.parametrize("inner", [1, 7, 35, 49, 196])
def test_no_accumulator_takes_many_additions(inner: int) -> None:
    problem = Problem(100_000, 64, inner, 4, columns=False)
    for operation in ("train", "backward"):
        planned = plan(operation, problem, LAPTOP, CPU)
        made = defines(planned)
        per_row = -(-(inner // made["VEC"] + 1) // made["UNROLL"])
        assert planned.geometry.chunk_rows * per_row <= 64


def test_what_a_kernel_does_not_heed_makes_no_other_build() -> None:
    """Each program that is built costs a tenth of a second and more: alike ones are one."""
    large = Problem(64, 64, 3136, 4, columns=False, adjacent=True)
    there = {fetch: plan("infer", large, LAPTOP, replace(CPU, fetch=fetch)) for fetch in (False, True)}
    assert there[False].launches == there[True].launches
    written = {stream: plan("moments", large, LAPTOP, replace(CPU, stream=stream)) for stream in (False, True)}
    assert written[False].launches == written[True].launches
    split = {
        stream: plan("train", large, LAPTOP, replace(CPU, stream=stream, variant="split")) for stream in (False, True)
    }
    assert [a == b for a, b in zip(split[False].launches, split[True].launches, strict=True)] == [True, False]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("inner", [49, 3136])
@pytest.mark.parametrize("variant", ["resident", "split"])
def test_a_batch_of_another_size_wants_no_other_build(operation: str, inner: int, variant: str) -> None:
    """Whether a call goes past the cache is a number that kernels are given: an epoch's last batch compiles nothing."""
    tuning = replace(CPU, fetch=True, variant=variant)
    small, large = (
        plan(
            operation,
            Problem(outer, 1 << 17 >> inner.bit_length(), inner, 4, columns=False, adjacent=True),
            LAPTOP,
            tuning,
        )
        for outer in (4, 256)
    )
    assert (small.geometry.beyond, large.geometry.beyond) == (0, 1)
    assert [launch.build for launch in small.launches] == [launch.build for launch in large.launches]
