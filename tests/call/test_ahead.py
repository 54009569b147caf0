"""Compiling ahead: what comes after it compiles nothing, and other processes take their share."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest

import oclbn
from oclbn.call import ahead, prepared
from oclbn.errors import DtypeError, ParameterError, ShapeError
from oclbn.functional import batch_norm_backward, batch_norm_infer, batch_norm_train
from oclbn.proof import proving

SHAPES = [(2, 3, 5, 7), (4, 6)]


@pytest.fixture
def fresh(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[cl.CommandQueue]:
    """A queue of a context of its own, for which nothing is built or proven yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OCLBN_PROVE", "1")
    proving.forget()
    context = cl.Context([queue.device])  # held until the end: Intel's queues do not keep theirs alive
    yield cl.CommandQueue(context)
    proving.forget()
    del context


def run_all(queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    x = cla.zeros(queue, shape, np.float32) + 1
    _, *saved = batch_norm_train(x, None, None, None, None)
    batch_norm_backward(x, x, None, *saved)
    batch_norm_infer(x, None, None, *saved)


def test_what_comes_after_it_compiles_and_proves_nothing(
    fresh: cl.CommandQueue, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="oclbn"):
        oclbn.prepare(SHAPES, queue=fresh, processes=1)
        done = [record.getMessage().partition(" ")[0] for record in caplog.records]
        assert {"built", "proved"} <= {*done}
        caplog.clear()
        for shape in SHAPES:
            run_all(fresh, shape)
        assert not caplog.records
        batch_norm_train(cla.zeros(fresh, (2, 300, 33, 33), np.float32), None, None, None, None, axis=3)
        assert caplog.records  # of another form there is


def test_one_operation_and_another_axis(fresh: cl.CommandQueue, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="oclbn"):
        oclbn.prepare([(2, 5, 7, 3)], queue=fresh, operations="infer", axis=-1, processes=1)
        assert [r.getMessage().split()[1] for r in caplog.records if r.name == "oclbn.proof"] == ["infer"]
        caplog.clear()
        x = cla.zeros(fresh, (2, 5, 7, 3), np.float32)
        mean = cla.zeros(fresh, 3, np.float32)
        batch_norm_infer(x, None, None, mean, mean + 1, axis=3)
        assert not caplog.records


@pytest.mark.once(reason="which forms are prepared is the host's choice")
def test_what_is_fused_is_prepared_as_networks_call_it(
    fresh: cl.CommandQueue, caplog: pytest.LogCaptureFixture
) -> None:
    shape = (4, 3, 5, 7)
    with caplog.at_level(logging.INFO, logger="oclbn"):
        oclbn.prepare([shape], queue=fresh, activation="relu", residual=True, processes=1)
        oclbn.prepare([shape], queue=fresh, operations=("train", "backward"), activation="silu", processes=1)
        assert any("relu, with a residual" in record.getMessage() for record in caplog.records)
        caplog.clear()
        x = cla.zeros(fresh, shape, np.float32) + 1
        y, *saved = batch_norm_train(x, activation="relu", residual=x)
        batch_norm_backward(x, x, None, *saved, activation="relu", y=y, dresidual=True)
        batch_norm_infer(x, None, None, *saved, activation="relu", residual=x)
        _, *saved = batch_norm_train(x, activation="silu")
        batch_norm_backward(x, x, None, *saved, activation="silu")
        assert not caplog.records


_TWO = """
import json, logging, sys
import oclbn.device
from oclbn.call import ahead

class Told(logging.Handler):
    def emit(self, record):
        told.append([record.name, record.getMessage()])

told = []
logging.getLogger("oclbn").addHandler(Told())
logging.getLogger("oclbn").setLevel(logging.INFO)
queue = oclbn.device.queue_for(sys.argv[1])
oclbn.prepare([(2, 3, 5, 7)], queue=queue, processes=2, activation="tanh", residual=True)
print(json.dumps(told))
"""


def test_another_process_takes_its_share(queue: cl.CommandQueue, spec: str, tmp_path: Path) -> None:
    if not ahead._is_kept(queue.device):
        pytest.skip("needs a cache of compiled kernels on disk")
    places = ("XDG_CACHE_HOME", "POCL_CACHE_DIR", "PYOPENCL_CACHE_DIR", "MESA_SHADER_CACHE_DIR")
    given = os.environ | {name: str(tmp_path) for name in places} | {"OCLBN_PROVE": "1"}
    found = []
    for _ in range(2):
        command = [sys.executable, "-W", "ignore", "-c", _TWO, spec]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=600, check=True)
        told = json.loads(done.stdout)
        assert not [words for name, words in told if name == "oclbn.call.ahead"]
        found.append([words.split()[1] for name, words in told if name == "oclbn.proof"])
    assert found == [["train", "backward"], []]  # infer was proven elsewhere, and the second time all was


def test_who_fails_leaves_its_share_undone(
    fresh: cl.CommandQueue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ahead._is_kept(fresh.device):
        pytest.skip("needs a cache of compiled kernels on disk")
    monkeypatch.setattr(ahead, "_CHILD", "raise SystemExit('no such luck')")
    with caplog.at_level(logging.INFO, logger="oclbn"):
        oclbn.prepare(SHAPES[:1], queue=fresh, processes=3)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == "a process that was to compile ended with 1: no such luck"
    proved = [r.getMessage().split()[1] for r in caplog.records if r.name == "oclbn.proof"]
    assert sorted(proved) == ["backward", "infer", "train"]


def test_no_process_is_left_behind(fresh: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ahead._is_kept(fresh.device):
        pytest.skip("needs a cache of compiled kernels on disk")
    begun: list[Any] = []
    begin = subprocess.Popen

    def popen(*given: Any, **options: Any) -> Any:
        begun.append(begin(*given, **options))
        return begun[-1]

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ahead, "_CHILD", "import time; time.sleep(600)")
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(prepared, "prepared_for", fail)
    with pytest.raises(ZeroDivisionError):
        oclbn.prepare(SHAPES[:1], queue=fresh, processes=2)
    assert [child.poll() is not None for child in begun] == [True]


def test_alone_where_nothing_is_kept(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCL_KERNEL_CACHE", "0")
    monkeypatch.setenv("PYOPENCL_NO_CACHE", "1")
    assert not ahead._is_kept(queue.device)


@pytest.mark.parametrize(
    ("shapes", "options", "error", "words"),
    [
        (7, {}, ShapeError, r"shapes is 7; several shapes are wanted"),
        ((32, 64, 56, 56), {}, ShapeError, r"shapes\[0\] is 32; a shape is wanted"),
        ([(2, 3), (5,)], {}, ShapeError, r"shapes\[1\] is \(5,\); a shape is wanted"),
        ([(2, 3.5)], {}, ShapeError, r"shapes\[0\] is \(2, 3\.5\)"),
        ([(2, -3)], {}, ShapeError, r"shapes\[0\] is \(2, -3\)"),
        (
            [(2, 3)],
            {"operations": ["train", "learn"]},
            ParameterError,
            r"operations has 'learn'; of train, .* are",
        ),
        ([np.zeros((2, 3))], {}, ShapeError, r"shapes\[0\] is a numpy\.ndarray; .* as x\.shape is$"),
        ([(2, 3)], {"operations": None}, ParameterError, r"operations is None; of train, .* are wanted"),
        ([(2, 3)], {"operations": oclbn.functional.moments}, ParameterError, r"operations is <function moments"),
        ([(2, 3)], {"dtype": None}, DtypeError, r"dtype is None; float32, float64, float16 or"),
        ([(2, 3)], {"dtype": np.int32}, DtypeError, r"dtype is .*int32.*; float32, float64, float16 or bfloat16 is"),
        ([(2, 3)], {"dtype": "no"}, DtypeError, r"dtype is 'no'; float32, float64, float16 or"),
        ([(2, 3)], {"axis": 1.0}, ParameterError, r"axis is 1\.0; an integer is wanted"),
        (
            [(2, 3, 4), (2, 3)],
            {"axis": 2},
            ParameterError,
            r"axis is 2; shapes\[1\] is \(2, 3\), so -2 to 1 are",
        ),
        ([(2, 3)], {"activation": "Tanh"}, ParameterError, r"activation is 'Tanh'; .* did you mean 'tanh'\?"),
        ([(2, 3)], {"residual": 1}, ParameterError, r"residual is 1; True or False is wanted"),
        ([(2, 3)], {"processes": 0}, ParameterError, r"processes is 0; a whole number from 1 on is wanted"),
        ([(2, 3)], {"queue": "gpu"}, ParameterError, r"queue is 'gpu'; a pyopencl\.CommandQueue is wanted"),
    ],
)
def test_wrong_arguments_are_named(shapes: Any, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        oclbn.prepare(shapes, **options)


def test_empty_batches_want_nothing(fresh: cl.CommandQueue, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="oclbn"):
        oclbn.prepare([(0, 3), (4, 0, 2)], queue=fresh)
    assert not caplog.records
