"""Groups of several processes, over MPI and over torch.distributed: in jobs of their own, which leave files."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from jobs import Ended, mpiexec, run_mpi, run_torch
from ranks import COMPARISONS, host_of, module_host
from spread import SAME, alone, check, check_beside, together

from oclbn import BatchNorm2D
from oclbn.errors import MissingExtraError
from oclbn.functional import merge, statistics
from oclbn.sync import MPIGroup, TorchGroup

ONCE = pytest.mark.once(reason="what ranks say to each other does not depend on the runtime")
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or mpiexec() is None, reason="needs mpi4py and mpiexec: oclbn[mpi]"
)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
Run = Callable[..., Ended]
MPI, TORCH = (
    pytest.param(run, size, marks=mark, id=f"{name}, {size} ranks")
    for run, size, mark, name in ((run_mpi, 4, needs_mpi, "MPI"), (run_torch, 3, needs_torch, "torch"))
)
SIZES = [
    *(pytest.param(run_mpi, size, marks=needs_mpi, id=f"MPI, {size} ranks") for size in (1, 2, 4)),
    *(pytest.param(run_torch, size, marks=needs_torch, id=f"torch, {size} ranks") for size in (2, 3)),
]


@ONCE
@pytest.mark.parametrize(("run", "size"), SIZES)
def test_beside_the_whole(queue: cl.CommandQueue, spec: str, tmp_path: Path, run: Run, size: int) -> None:
    """Every comparison of ranks.py: the same bits on all ranks, within the bounds of one call on the whole batch."""
    ended = run(size, "same", tmp_path, spec)
    assert ended.status == 0, ended.printed
    ranks = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(size)]
    for name, (_, axis, *_) in COMPARISONS.items():
        found = {result: _of(ranks, name, result) for result in ("y", "dx", *SAME)}
        assert len(found["mean"]) == size + 1  # the first rank has two queues
        made = together(found, axis)
        check(made, host_of(name), axis)
        check_beside(made, alone(queue, host_of(name), axis), host_of(name), axis)
    _check_module(queue, ranks)


def _of(ranks: list[dict[str, np.ndarray]], name: str, result: str) -> list[np.ndarray]:
    """Of each rank the result of each of its queues, in order; NumPy's files do not keep the name of bfloat16."""
    found = [told[key] for told in ranks for key in sorted(told) if key.rpartition("|")[0] == f"{name}|{result}"]
    return [one.view(ml_dtypes.bfloat16) if one.dtype == "V2" else one for one in found]


def _check_module(queue: cl.CommandQueue, ranks: list[dict[str, np.ndarray]]) -> None:
    results = {key.split("|")[1] for key in ranks[0] if key.startswith("module|")}
    found = {}
    for result in results:
        each = _of(ranks, "module", result)
        assert len({one.tobytes() for one in each}) == 1, result
        found[result] = each[0]
    bn = BatchNorm2D(5, seed=0, queue=queue)
    assert found["start"].tobytes() == bn.scale.get().tobytes()

    def put(host: np.ndarray) -> cla.Array:
        return cla.to_device(queue, host)

    for step in range(4):
        host = module_host(step)
        bn(put(host.x))
        bn.backward(put(host.dy), scale=0.5, momentum=0.9)
        bn.updateParams(-0.1)
    for name in ("scale", "bias", "mean", "var"):
        np.testing.assert_allclose(found[name], getattr(bn, name).get(), rtol=1e-5, atol=1e-5)
        if name != "bias":
            assert found[f"loaded {name}"].tobytes() == found[name].tobytes()
    for name, var in bn.vars.items():
        np.testing.assert_allclose(found[f"{name}.grad"], var.grad.get(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found["own, summed"], found["whole"], rtol=1e-5, atol=1e-5)
    whole = merge(*(statistics(put(module_host(step).x)) for step in range(3)))
    for name in ("mean", "m2"):
        np.testing.assert_allclose(found[f"pass {name}"], getattr(whole, name).get(), rtol=3e-7)


@ONCE
@pytest.mark.parametrize(("run", "size"), [MPI, TORCH])
def test_whoever_does_wrong_is_named_on_all_ranks(
    spec: str, tmp_path: Path, run: Run, size: int, tally: Counter[str]
) -> None:
    """Whatever it was: the same error on all the others, at once, and the group goes on or is made anew."""
    ended = run(size, "faults", tmp_path, spec)
    assert ended.status == 0, ended.printed
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    assert len(told[0]) >= 50
    assert {one["bad"] for one in told[0]} == {*range(size)}
    left = []
    for case in zip(*told, strict=True):
        bad, name = case[0]["bad"], case[0]["name"]
        assert max(one["seconds"] for one in case) < 10, case
        assert case[bad]["said"], f"{name}: the rank that is wrong was told nothing"
        others = [one["said"] for rank, one in enumerate(case) if rank != bad]
        assert len({*others}) == 1, f"{name}: {others}"
        if case[0]["wanted"] is None:
            assert not others[0], name
        else:
            assert re.search(case[0]["wanted"], others[0], re.DOTALL), f"{name}: {others[0]}"
        if not all(one["goes on"] for one in case):
            left.append(name)
    assert left == ["out of a with", "closing too early"]
    tally["things wrong on one rank of a group, told on all"] += len(told[0])


@ONCE
@pytest.mark.parametrize("action", ["dies", "sleeps"])
@pytest.mark.parametrize(("run", "size"), [MPI, TORCH])
def test_a_rank_that_does_not_answer(spec: str, tmp_path: Path, run: Run, size: int, action: str) -> None:
    """The others wait no longer than their timeout, 3 s; the job ends, and says by its status that it failed."""
    ended = run(size, action, tmp_path, spec, seconds=60.0)
    assert ended.status is not None, ended.printed
    assert ended.status or (run is run_torch and action == "sleeps")
    for rank in range(size - 1):
        path = tmp_path / f"{rank}.json"
        said = json.loads(path.read_text())
        assert said["first"].startswith("Group"), said
        if run is run_mpi or action == "sleeps":
            assert re.match(
                f"GroupTimeoutError: rank {rank}: no answer from all of {size} ranks within 3 s", said["first"]
            )
        if run is run_mpi:
            assert f"rank {size - 1} not heard from" in said["first"]
        assert "this group exchanges no more" in said["again"]
        assert said["seconds"] < 15


@ONCE
@needs_mpi
def test_ranks_that_wait_have_their_say(spec: str, tmp_path: Path) -> None:
    """The first to end aborts the job, but not before those that asked later have told their error.

    Nor before what was printed is out. They ask up to 0.8 s later than it did; it waits 2 s.
    """
    ended = run_mpi(4, "ends", tmp_path, spec, seconds=60.0)
    assert ended.status not in (None, 0), ended.printed
    for rank in range(3):
        assert f"rank {rank} has something to say" in ended.printed
        assert f"GroupTimeoutError: rank {rank}: no answer from all of 4 ranks within 2 s" in ended.printed


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("mpi4py", lambda: MPIGroup(None), r"pip install 'oclbn\[mpi\]'"),
        ("torch", lambda: TorchGroup(), "pip install torch"),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, name: str, make: Any, words: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=words):
        make()


@ONCE
@needs_mpi
def test_communicators_that_are_none(spec: str, tmp_path: Path) -> None:
    """On all ranks; those that are wrong on one rank only cannot be told to the others, who wait their timeout."""
    ended = run_mpi(2, "communicators", tmp_path, spec)
    assert ended.status not in (None, 0), ended.printed  # as one could not be told, MPI was to be aborted
    for rank in range(2):
        said = json.loads((tmp_path / f"{rank}.json").read_text())
        assert re.match("ParameterError: comm is 5; a communicator of mpi4py", said["none"])
        assert re.match("ParameterError: comm was freed", said["null"])
        assert re.match("ParameterError: comm was freed", said["freed"])
        assert re.match("ParameterError: comm is an intercommunicator", said["inter"])
        assert said["part"] == [1, 0]
    said = json.loads((tmp_path / "0.json").read_text())
    assert re.match("GroupTimeoutError: rank 0: not all of 2 ranks have come .* within 1 s", said["alone"])
    assert json.loads((tmp_path / "1.json").read_text())["alone"].startswith("ParameterError")
