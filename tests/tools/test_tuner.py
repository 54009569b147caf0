"""The search, on made-up costs; the child that tries candidates, on children that misbehave; the trials themselves."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

from oclbn import device, functional
from oclbn.errors import DeviceError
from oclbn.plan.words import DeviceLimits, Tuning
from oclbn.program import building
from oclbn.tools.tune import search as tuner
from oclbn.tools.tune.process import TrialProcess
from oclbn.tools.tune.search import (
    Choices,
    Found,
    Tried,
    Verdict,
    candidates,
    choices_of,
    nearest_first,
    search,
    shapes_for,
)
from oclbn.tools.tune.trials import Trials, WrongResult
from oclbn.truth.cases import Case
from oclbn.tuning import tuning_for, using

pytestmark = pytest.mark.once(
    reason="the search is the host's, around operations that all compare; all tune (test_cli_tune.py)"
)

START: Choices = {"lanes": 1, "vec": 8, "unroll": 4}
MOVES: list[tuple[str, tuner.Value]] = [
    *(("lanes", lanes) for lanes in (1, 2, 4)),
    *(("vec", vec) for vec in (1, 2, 4, 8, 16)),
    *(("unroll", unroll) for unroll in (1, 2, 4)),
]


class Costs:
    """A judge that knows what every set of choices costs."""

    def __init__(self, cost: Callable[[Choices], float]) -> None:
        self.cost = cost
        self.asked: list[Choices] = []

    def __call__(self, incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict:
        self.asked.append(candidate)
        return Verdict(self.cost(incumbent) / self.cost(candidate))


def bowl(choices: Choices) -> float:
    """Least at lanes 4, vec 2, unroll 1; the last is seen only when the others are found."""
    lanes, vec, unroll = (math.log2(int(choices[name])) for name in ("lanes", "vec", "unroll"))
    away = abs(lanes - 2) + abs(vec - 1)
    return 1 + away + (unroll if not away else -unroll) / 10


def test_the_search_finds_the_least_cost() -> None:
    found = Found(START)
    search(found, MOVES, Costs(bowl))
    assert found.choices == {"lanes": 4, "vec": 2, "unroll": 1}
    assert found.complete
    assert found.gain == pytest.approx(bowl(START) / bowl(found.choices))
    assert START == {"lanes": 1, "vec": 8, "unroll": 4}, "the start is the caller's"


def test_nothing_is_compared_twice() -> None:
    costs = Costs(lambda choices: 1.0)
    search(Found(START), MOVES, costs)
    assert len(costs.asked) == len(MOVES) - 3


@pytest.mark.parametrize(("gain", "adopted"), [(1.019, False), (1.021, True)])
def test_a_candidate_has_to_beat_the_margin(gain: float, adopted: bool) -> None:
    found = Found(START)
    search(found, [("vec", 4)], Costs(lambda choices: 1.0 if choices["vec"] == 8 else 1 / gain), margin=1.02)
    assert (found.choices["vec"] == 4) is adopted


def test_what_is_fast_once_only_is_not_adopted() -> None:
    def lucky(incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict:
        return Verdict(1.0 if thorough else 1.5)

    found, tried = Found(START), list[Tried]()
    search(found, MOVES, lucky, report=tried.append)
    assert found.choices == START
    assert {entry.verdict.gain for entry in tried} == {1.0}


def test_what_is_rejected_is_passed_over() -> None:
    def judge(incumbent: Choices, candidate: Choices, /, *, thorough: bool) -> Verdict:
        if candidate["vec"] == 1:
            return Verdict(rejected="the driver aborted")
        if candidate["vec"] == 2 and thorough:
            return Verdict(rejected="wrong in float64")
        return Costs(bowl)(incumbent, candidate, thorough=thorough)

    found, tried = Found(START), list[Tried]()
    search(found, MOVES, judge, report=tried.append)
    assert (found.choices["vec"], found.choices["lanes"]) == (4, 4)
    assert {entry.verdict.rejected for entry in tried} == {"", "the driver aborted", "wrong in float64"}


def test_the_search_ends_with_the_time() -> None:
    found, costs = Found(START), Costs(bowl)
    search(found, MOVES, costs, enough=lambda: len(costs.asked) >= 3)
    assert len(costs.asked) <= 4
    assert not found.complete
    assert found.choices["lanes"] == 2, "what was found until then stays"


def test_the_search_ends_when_it_is_interrupted_and_keeps_what_it_has() -> None:
    found, costs = Found(START), Costs(bowl)

    def interrupt(name: str, value: tuner.Value) -> None:
        if name == "vec":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(found, MOVES, costs, starting=interrupt)
    assert found.choices["lanes"] == 2


def test_the_nearest_values_come_first() -> None:
    order = nearest_first(MOVES, START)
    assert order[:3] == [("lanes", 1), ("vec", 8), ("unroll", 4)], "those in force"
    assert order[3:7] == [("lanes", 2), ("vec", 4), ("vec", 16), ("unroll", 2)]
    assert order[-1] == ("vec", 1)
    assert sorted(map(str, order)) == sorted(map(str, MOVES))


def test_a_value_that_is_none_of_those_tried_has_neighbours() -> None:
    order = nearest_first(MOVES, {"lanes": 3, "vec": 8, "unroll": 4})
    assert {move for move in order[:5] if move[0] == "lanes"} == {("lanes", 2), ("lanes", 4)}


@pytest.mark.parametrize(("compared", "around"), [(4, True), (3, False)])
def test_the_search_says_when_all_around_is_worse(compared: int, around: bool) -> None:
    found, costs = Found(START), Costs(lambda choices: 1.0 if choices == START else 2.0)
    search(found, MOVES, costs, enough=lambda: len(costs.asked) >= compared)
    assert (found.best_around, found.complete) == (around, False)


# --- what is searched


def test_every_choice_is_searched_or_said_not_to_be() -> None:
    assert {field.name for field in fields(Tuning)} == set(tuner.SPACE) | tuner.NOT_SEARCHED
    assert not set(tuner.SPACE) & tuner.NOT_SEARCHED


@pytest.mark.parametrize("kind", ["cpu", "gpu", "accelerator"])
def test_every_candidate_is_a_choice(kind: str) -> None:
    moves = candidates(kind)
    assert len(set(moves)) == len(moves) > 20
    for name, value in moves:
        with using(**{name: value}):
            pass


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(DeviceLimits("cpu", 2, 4096, 1 << 20, 32 << 20, 8 << 30, 2 << 30, True, False), id="processor"),
        pytest.param(DeviceLimits("gpu", 132, 1024, 48 << 10, 50 << 20, 80 << 30, 20 << 30, True, True), id="card"),
        pytest.param(DeviceLimits("gpu", 2, 64, 1 << 10, 0, 64 << 20, 1 << 20, False, False), id="tiny"),
    ],
)
def test_shapes_fit_the_device(limits: DeviceLimits, quick: bool) -> None:
    shapes = shapes_for(limits, quick=quick)
    nbytes = [4 * math.prod(shape) for shape, _ in shapes]
    assert all(len(shape) > axis and min(shape) > 0 for shape, axis in shapes)
    assert max(nbytes) <= max(limits.max_alloc_bytes, 8 << 20)
    if limits.max_alloc_bytes > 1 << 30 and not quick:
        assert 3 * sorted(nbytes)[1] > limits.cache_bytes, "all but one leave the cache, with what a call reads"


# --- the process, with children that are no oclbn

POLITE = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "start":
        print(json.dumps({"done": None}), flush=True)
        continue
    vec = request["with"].get("candidate", request["with"].get("choices", {})).get("vec")
    %s
    print(json.dumps({"done": {"gain": 1.5, "timed": True}}), flush=True)
"""
ABORTS = (
    'import os\n    if vec == 4: print("LLVM ERROR: Cannot select: v16f16", file=sys.stderr, flush=True); os.abort()'
)
HANGS = "import time\n    while vec == 4: time.sleep(60)"
EXITS = "if vec == 4: sys.exit(3)"
WRONG = "if vec == 4: print(json.dumps({'rejected': 'y is off by 1e9'}), flush=True); continue"


def child(misdeed: str, timeout: float = 60.0) -> TrialProcess:
    return TrialProcess({"do": "start"}, command=(sys.executable, "-c", POLITE % misdeed), timeout=timeout)


@pytest.mark.parametrize(
    ("misdeed", "timeout", "says"),
    [
        pytest.param(ABORTS, 60, "the driver aborted (signal 6, SIGABRT): LLVM ERROR: Cannot select", id="aborts"),
        pytest.param(HANGS, 2, "the driver hung: no answer within 2 s", id="hangs"),
        pytest.param(EXITS, 60, "the process ended with status 3", id="exits"),
        pytest.param(WRONG, 60, "y is off by 1e9", id="is wrong"),
    ],
)
def test_a_child_that_fails_is_a_rejection_and_the_next_one_works(misdeed: str, timeout: float, says: str) -> None:
    with child(misdeed, timeout) as trials:
        assert trials({"vec": 1}, {"vec": 2}, thorough=False) == Verdict(1.5)
        assert says in trials({"vec": 1}, {"vec": 4}, thorough=False).rejected
        assert trials({"vec": 1}, {"vec": 8}, thorough=False) == Verdict(1.5)
        with pytest.raises(DeviceError, match="the choices in force do not work on this device"):
            trials.check({"vec": 4})


def test_the_search_goes_on_past_an_abort() -> None:
    found, tried = Found({"vec": 8}), list[Tried]()
    with child(ABORTS) as trials:
        search(found, [("vec", 4), ("vec", 16)], trials, report=tried.append)
    assert [bool(entry.verdict.rejected) for entry in tried] == [True, False]
    assert found.choices == {"vec": 16}


def test_a_child_that_cannot_start_is_asked_anew() -> None:
    with TrialProcess({"do": "start"}, command=(sys.executable, "-c", "raise SystemExit(7)")) as trials:
        for _ in range(2):
            assert "status 7" in trials({"vec": 1}, {"vec": 2}, thorough=False).rejected


def test_no_child_is_left() -> None:
    with child("") as trials:
        trials({"vec": 1}, {"vec": 2}, thorough=False)
        process = trials._child
        assert process is not None
        assert process.poll() is None
    assert process.poll() is not None


# --- the trials, on the device

CASES = [Case((6, 40, 7, 7), 1), Case((300, 24), 1)]


@pytest.fixture(scope="module")
def trials(queue: cl.CommandQueue) -> Trials:
    return Trials(queue, CASES, seconds=0.001)


@pytest.fixture
def start(queue: cl.CommandQueue) -> Choices:
    return choices_of(tuning_for(*device.tuning_names(queue.device)))


def test_the_choices_in_force_are_right(trials: Trials, start: Choices) -> None:
    trials.check(start, thorough=True)


def test_a_duel_says_how_fast_the_candidate_is(trials: Trials, start: Choices) -> None:
    outcome = trials.duel(start, start | {"unroll": 1}, thorough=False)
    assert outcome["timed"]
    assert 0.0 < outcome["gain"] < math.inf


def test_what_plans_alike_is_not_timed(trials: Trials, start: Choices) -> None:
    many, more = (start | {"most_steps": 1 << power} for power in (29, 30))
    assert trials.duel(many, more) == {"gain": 1.0, "timed": False}


@pytest.fixture
def modest(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> Iterator[cl.CommandQueue]:
    """Kernels bear fewer work-items, 8, than the device at large, as those that need many registers do."""
    monkeypatch.setattr(building, "most_lanes", lambda *_: 8)
    context = cl.Context([queue.device])  # no other test gets the plans that are remembered
    yield cl.CommandQueue(context)
    del context  # held until now: Intel's queues do not keep theirs alive


def test_what_runs_alike_is_not_timed(modest: cl.CommandQueue, start: Choices) -> None:
    trials = Trials(modest, CASES[:1], seconds=0.001)
    crowded = start | {"lanes": 32, "vec": 1}
    assert trials.duel(crowded, crowded | {"lanes": 16}) == {"gain": 1.0, "timed": False}
    assert trials.duel(crowded, crowded | {"lanes": 4})["timed"]


def test_the_report_shows_what_runs(modest: cl.CommandQueue, start: Choices) -> None:
    trials, crowded = Trials(modest, CASES[:1], seconds=0.001), start | {"lanes": 32, "vec": 1}
    rows = trials.report(start, crowded)
    assert all("LANES=8" in row["plan"] for row in rows), rows
    for row, calls in zip(rows, trials.timed * 3, strict=True):
        with using(**crowded), functional.recording() as launches:
            calls.run(row["operation"])
        assert re.search(r"\((.*?);", row["plan"])[1] == " + ".join(name for name, _ in launches)


def test_the_report_has_every_operation_on_every_shape(trials: Trials, start: Choices) -> None:
    rows = trials.report(start, start | {"unroll": 1})
    assert [(row["case"], row["operation"]) for row in rows] == [
        (str(case), operation) for case in CASES for operation in ("train", "backward", "infer")
    ]
    assert all(row[key] > 0 for row in rows for key in ("copy", "before", "after"))
    assert all("UNROLL=1" in row["plan"] for row in rows)


@pytest.mark.parametrize(
    ("function", "result", "named"),
    [
        ("batch_norm_infer", None, "infer of .*: y (errs by|is wrong beyond)"),
        ("batch_norm_train", 0, "train of .*: y (errs by|is wrong beyond)"),
        ("batch_norm_train", 2, "train of .*: save_invstd (errs by|is wrong beyond)"),
        ("batch_norm_backward", 1, "backward of .*: dscale (errs by|is wrong beyond)"),
    ],
)
@pytest.mark.parametrize("fault", [np.nan, 0.5])
def test_wrong_numbers_are_noticed(
    queue: cl.CommandQueue,
    start: Choices,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    result: int | None,
    named: str,
    fault: float,
) -> None:
    right: Callable[..., Any] = getattr(functional, function)

    def wrong(*args: Any, **options: Any) -> Any:
        results = right(*args, **options)
        array = results if result is None else results[result]
        last = array.reshape(-1)[-1:]
        last.set(last.get() + np.float32(fault))
        return results

    monkeypatch.setattr(functional, function, wrong)
    with pytest.raises(WrongResult, match=named):
        Trials(queue, CASES).duel(start, start | {"unroll": 1})


def test_what_is_not_written_is_noticed(
    queue: cl.CommandQueue, start: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "batch_norm_infer", lambda x, *args, out, **options: out)
    with pytest.raises(WrongResult, match="infer of"):
        Trials(queue, CASES).check(start)


def test_what_is_written_beyond_is_noticed(
    queue: cl.CommandQueue, start: Choices, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(queue, CASES)
    right = functional.batch_norm_infer

    def careless(*args: Any, **options: Any) -> Any:
        trials.nasty[0].guard[5:6].fill(np.float32(0))
        return right(*args, **options)

    monkeypatch.setattr(functional, "batch_norm_infer", careless)
    with pytest.raises(WrongResult, match="infer of 5x37x7x9 writes beyond its result"):
        trials.check(start)


def test_a_real_child_checks_and_times(queue: cl.CommandQueue, start: Choices) -> None:
    spec = device.select(queue.device).spec
    request = {"device": spec, "cases": [(case.shape, case.axis) for case in CASES], "seconds": 0.001}
    with TrialProcess(request) as process:
        process.check(start)
        verdict = process(start, start | {"unroll": 1}, thorough=False)
        assert not verdict.rejected
        assert verdict.timed
        assert "wants a power of two" in process(start, start | {"vec": 3}, thorough=False).rejected
        assert len(process.report(start, start)) == 3 * len(CASES)


SUSPECT = """
import math, sys
from oclbn.proof import proving
from oclbn.proof.verdicts import Verdict
from oclbn.tools.tune import trials

def verdict(operation, problem, planned, paths, context, device):
    wrong = any(dict(launch.build.defines).get("UNROLL") == int(sys.argv[1]) for launch in planned.launches)
    return Verdict(7.0 if wrong else 0.5, "y")

proving._verdict = verdict
trials.serve()
"""


def test_a_candidate_that_a_proof_refuses_is_rejected(queue: cl.CommandQueue, start: Choices) -> None:
    """Its results are right where they are compared here: such a form is wrong elsewhere. Nor is it gone round."""
    start = start | {"vec": 4}  # of which kernels are compiled in less time
    refused = 2 if start["unroll"] != 2 else 8
    request = {"device": device.select(queue.device).spec, "cases": [((300, 24), 1)], "seconds": 0.001}
    with TrialProcess(request, command=(sys.executable, "-c", SUSPECT, str(refused))) as process:
        process.check(start)
        told = process(start, start | {"unroll": refused}, thorough=False).rejected
        assert re.search(
            rf"train of \S+: its proof fails: .*UNROLL={refused}.*: y errs by 7 times its tolerance", told
        ), told
        assert not process(start, start | {"unroll": 1}, thorough=False).rejected
        force = start | {"unroll": refused}
        process.check(force)  # what is in force may be gone round, and what shares that with it as well
        assert not process(force, force | {"most_steps": 1 << 30}, thorough=False).rejected
