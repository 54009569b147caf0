"""Data that come in chunks: as exact as one call on all of them, and never more than one chunk at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import check_statistics, put
from tolerances import assert_within

from oclbn import device, gpuarray, streaming
from oclbn.errors import ArrayTypeError, DtypeError, OclbnError, ParameterError, ShapeError
from oclbn.truth import reference
from oclbn.truth.bounds import Bound, stored
from oclbn.truth.hostile import Offset, constant, gaussian, make

pytestmark = pytest.mark.once(reason="what is added to functions that are tested on each runtime runs on the host")
CUTS = (1, 4, 4, 9)  # one row, some, none, the rest


@pytest.fixture(autouse=True)
def _at_home(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default_queue", lambda: queue)


def cut(host: np.ndarray) -> list[np.ndarray]:
    return np.split(host, CUTS)


@pytest.mark.parametrize(
    ("shape", "axis", "maker"),
    [
        pytest.param((12, 5, 7), 1, Offset(1e4), id="mean 1e4 std"),
        pytest.param((12, 3, 4), -1, constant, id="constant, channels last"),
        pytest.param((12, 1), 1, gaussian, id="one channel"),
    ],
)
def test_chunks_are_as_exact_as_one_call(
    queue: cl.CommandQueue, element: np.dtype, shape: tuple[int, ...], axis: int, maker: Any
) -> None:
    host = make(shape, axis, element, maker)
    parts, scale, bias = cut(host.x), put(queue, host.scale), put(queue, host.bias)
    found = streaming.statistics(parts, axis=axis)
    check_statistics(found, host, axis)
    wanted = reference.train(host.x, host.scale, host.bias, axis=axis)
    bound = Bound(host.x, wanted.mean, wanted.invstd, host.scale, host.bias, axis=axis, dtype=element)
    for given in (parts, [gpuarray.to_gpu(part, queue=queue) for part in parts], lambda: iter(parts)):
        for known in (None, found):
            ys = [*streaming.normalize(given, known, scale=scale, bias=bias, axis=axis)]
            hosts = [y if isinstance(y, np.ndarray) else y.get() for y in ys]
            assert [y.shape for y in hosts] == [part.shape for part in parts]
            assert_within(np.concatenate(hosts), *stored(wanted.y, bound.y(), element), "y")


def test_results_lie_where_chunks_do(queue: cl.CommandQueue) -> None:
    host = make((4, 3), 1).x
    mixed = [host[:2], put(queue, host[2:])]
    assert [type(y) for y in streaming.normalize(mixed)] == [np.ndarray, gpuarray.Array]


def test_a_file_that_is_mapped(queue: cl.CommandQueue, tmp_path: Path) -> None:
    host = make((10, 3, 4), 1).x
    np.save(tmp_path / "x.npy", host)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    pieces = streaming.chunks(mapped, 4)
    assert [len(piece) for piece in pieces] == [4, 4, 2] == [len(piece) for piece in pieces]
    assert len(pieces) == 3  # type: ignore[arg-type]
    ys = np.concatenate([*streaming.normalize(pieces)])
    np.testing.assert_allclose(ys, reference.train(host).y, atol=1e-5)
    on_device = put(queue, host)
    assert [piece.shape[0] for piece in streaming.chunks(on_device, 7)] == [7, 3]


class Watched:
    """Gives each chunk once a pass, and sees that none is alive any more when the next one is asked for."""

    def __init__(self, make_chunk: Callable[[int], Any], count: int) -> None:
        self.make_chunk, self.count, self.passes = make_chunk, count, 0

    def __call__(self) -> Iterator[Any]:
        self.passes += 1
        alive: list[Any] = []
        for index in range(self.count):
            gc.collect()
            assert [one for one in alive if one() is not None] == [], f"before chunk {index}"
            alive.append(None)
            yield self._new(index, alive)

    def _new(self, index: int, alive: list[Any]) -> Any:
        made = self.make_chunk(index)
        alive[-1] = weakref.ref(made)
        return made


@pytest.mark.parametrize("where", ["host", "device"])
def test_one_chunk_at_a_time(queue: cl.CommandQueue, where: str) -> None:
    host = make((5, 2, 3), 1).x
    data = Watched(lambda index: host.copy() if where == "host" else put(queue, host), 4)
    found = streaming.statistics(data)
    assert (found.count, data.passes) == (60, 1)
    for y in streaming.normalize(data, found):
        assert y.shape == host.shape
        del y
    assert data.passes == 2
    results = streaming.normalize(data)
    assert data.passes == 3, "the pass for the statistics is made by the call"
    assert sum(1 for _ in results) == 4
    assert data.passes == 4


def test_running_statistics_of_all_of_it(queue: cl.CommandQueue) -> None:
    from oclbn.functional import move_running

    host = make((9, 4, 5), 1, maker=Offset(100.0))
    mean, var = put(queue, host.running_mean), put(queue, host.running_var)
    move_running(streaming.statistics(streaming.chunks(host.x, 2)), mean, var, factor=0.25)
    wanted = reference.train(host.x, running_mean=host.running_mean, running_var=host.running_var, factor=0.25)
    np.testing.assert_allclose(mean.get(), wanted.running_mean, rtol=1e-6)
    np.testing.assert_allclose(var.get(), wanted.running_var, rtol=1e-5)


def test_what_goes_over_chunks_once(queue: cl.CommandQueue) -> None:
    host = make((6, 2), 1).x
    assert streaming.statistics(part for part in (host[:3], host[3:])).count == 6
    with pytest.raises(ParameterError, match=r"^chunks is a builtins\.generator, which gives each chunk once; without"):
        streaming.normalize(part for part in (host[:3], host[3:]))
    found = streaming.statistics([host])
    assert len([*streaming.normalize((part for part in (host[:3], host[3:])), found)]) == 2


def test_passes_that_differ(queue: cl.CommandQueue) -> None:
    host = make((6, 2), 1).x
    lengths = iter((6, 4, 6, 7))

    def shrinking() -> list[np.ndarray]:
        count = next(lengths)
        return [np.resize(host, (count, 2))]

    ys = streaming.normalize(shrinking)
    assert next(ys).shape == (4, 2)
    with pytest.raises(ParameterError, match=r"^chunks had 4 values per channel in the second pass, and 6 in the firs"):
        next(ys)
    with pytest.raises(ParameterError, match=r"^chunk 0: the second pass has more values than the first, 6 per"):
        next(streaming.normalize(shrinking))


X = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (X, ArrayTypeError, r"^chunks is a numpy\.ndarray; an iterable .*, as oclbn\.streaming\.chunks\(array, 1000\)"),
        (5, ArrayTypeError, r"^chunks is a builtins\.int; an iterable of arrays is wanted$"),
        (lambda: 5, ArrayTypeError, r"^chunks gave a builtins\.int; an iterable of arrays is wanted$"),
        ("name", ArrayTypeError, r"^chunks is a builtins\.str; an iterable"),
        ([], ParameterError, r"^chunks gave no array; one at least is wanted$"),
        ([X, None], ArrayTypeError, r"^chunk 1 is None; a NumPy or a device array is wanted$"),
        ([X, X.astype(np.float16)], DtypeError, r"^chunk 1 is float16; float32 is wanted, as chunk 0 is$"),
        ([X, X[:, :3]], ShapeError, r"^chunk 1 has 3 channels on axis 1; 4 are wanted, as chunk 0 has$"),
        ([X[0]], ShapeError, r"^chunk 0 has shape \(4,\); 2 dimensions or more are wanted"),
        ([X.astype(int)], DtypeError, r"^chunk 0 is int64; .*: chunk\.astype\(np\.float32\)$"),
        ([X, X.astype(str)], DtypeError, r"^chunk 1 is <U\d+; float32, .* is wanted$"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_what_is_no_chunk(queue: cl.CommandQueue, given: Any, error: type[OclbnError], message: str) -> None:
    for call in (streaming.statistics, streaming.normalize):
        with pytest.raises(error, match=message) as caught:
            call(given)
        assert type(caught.value) is error


def test_other_arguments(queue: cl.CommandQueue) -> None:
    with pytest.raises(ParameterError, match=r"^epsilon is -1; "):
        streaming.normalize([X], epsilon=-1)
    with pytest.raises(ArrayTypeError, match=r"^statistics is a builtins\.tuple; Statistics are wanted"):
        streaming.normalize([X], (1, 2))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"^statistics are of 1 values per channel; two at least"):
        streaming.normalize([X[:1]])
    with pytest.raises(ParameterError, match=r"^queue is 'gpu'; "):
        streaming.statistics([X], queue="gpu")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"^axis is 7; "):
        streaming.statistics([X], axis=7)
    with pytest.raises(ParameterError, match=r"^rows is 0; a whole number from 1 on is wanted$"):
        streaming.chunks(X, 0)
    with pytest.raises(ArrayTypeError, match=r"^array is a builtins\.list; "):
        streaming.chunks([1], 1)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"^array has no axes; "):
        streaming.chunks(np.array(1.0), 1)
    with pytest.raises(ShapeError, match=r"^chunk 0: scale has 2 elements"):
        next(streaming.normalize([X], scale=put(queue, np.ones(2, np.float32))))


def test_chunks_of_another_byte_order(queue: cl.CommandQueue) -> None:
    """As scientific files have them: they are turned round on the way to the device."""
    host = make((6, 2), 1).x
    found = streaming.statistics([host[:3].astype(">f4"), host[3:]])
    assert found.mean.get().tobytes() == streaming.statistics([host[:3], host[3:]]).mean.get().tobytes()


def test_nothing_but_empty_chunks(queue: cl.CommandQueue) -> None:
    assert streaming.statistics([X[:0], X[:0]]).count == 0
    assert [y.shape for y in streaming.normalize([X[:0], X[:0]])] == [(0, 4), (0, 4)]
