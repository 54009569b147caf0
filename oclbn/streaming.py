"""Batch normalization of data that are larger than the device, or than memory: they come in chunks, one at a time.

    found = statistics(chunks)                                  # one pass: those of all values
    for y in normalize(chunks, found, scale=scale, bias=bias):  # another one
        ...

chunks: a list or another iterable of arrays (N_i, C, *spatial), NumPy's or the device's, of one type, of any N_i, 0
too; or a function that gives such an iterable anew each time that it is called, as `lambda: map(np.load, paths)`.
`chunks(array, rows)` cuts one array, which may be a numpy.memmap. Each chunk is read once in a pass, and let go of
before the next one is asked for: the device holds one chunk, and its result.

NumPy chunks go to `queue` (None: oclbn.device.default_queue()), device arrays stay on their own, in one context.
Shapes, dtypes and errors are those of oclbn.functional; an error tells the number of the chunk, counted from 0, and
what was found before it is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray
from pyopencl.array import Array

from oclbn import device, functional, gpuarray
from oclbn.call import arguments, values
from oclbn.elements import WANTED, as_code, kind
from oclbn.errors import ArrayTypeError, DtypeError, OclbnError, ParameterError, ShapeError
from oclbn.functional import Statistics

__all__ = ["chunks", "normalize", "statistics"]

Chunk = NDArray[Any] | Array
Chunks = Iterable[Chunk] | Callable[[], Iterable[Chunk]]


class _Cut:
    """An array in chunks of so many rows, as often as it is gone over."""

    def __init__(self, array: Chunk, rows: int) -> None:
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return -(-self._array.shape[0] // self._rows)

    def __iter__(self) -> Iterator[Chunk]:
        for begin in range(0, self._array.shape[0], self._rows):
            yield self._array[begin : begin + self._rows]


def chunks(array: Chunk, rows: int, /) -> Iterable[Chunk]:
    """An array, such as a numpy.memmap, in chunks of `rows` along its first axis, to be gone over any number of times.

    ArrayTypeError: neither NumPy's nor the device's; ShapeError: no axes; ParameterError: no number of rows.

    >>> print([chunk.shape for chunk in chunks(np.zeros((5, 3)), 2)])
    [(2, 3), (2, 3), (1, 3)]
    """
    if not isinstance(array, (np.ndarray, Array)):
        raise ArrayTypeError(f"array is {values.kind_of(array)}; a numpy.ndarray or a pyopencl.array.Array is wanted")
    if not array.shape:
        raise ShapeError("array has no axes; 2 or more are wanted: (N, C) or (N, C, *spatial)")
    return _Cut(array, values.whole("rows", rows, 1))


def statistics(chunks: Chunks, /, *, axis: int = 1, queue: cl.CommandQueue | None = None) -> Statistics:
    """The statistics of all values of each channel, as exact as one call on all of them, in one pass.

    axis: of the channels in each chunk. Returns Statistics with arrays of shape (C,): for functional.normalize,
    functional.move_running or `normalize` here. ParameterError: no chunk came. ShapeError, DtypeError, ContextError: a
    chunk that goes together with the others in no way.

    >>> found = statistics([np.float32([[1.0, 10.0]]), np.float32([[3.0, 30.0], [5.0, 50.0]])])
    >>> print(found.count, found.mean.get(), found.m2.get().round(3))
    3 [ 3. 30.] [  8. 800.]
    """
    found: Statistics | None = None
    for index, x, _ in _told(_begun(chunks), axis, queue):
        with _of_chunk(index):
            own = functional.statistics(x, axis=axis)
            found = own if found is None else functional.merge(found, own)
            del x
            found.mean.finish()  # nothing of a chunk waits on the device when the next one comes
    if found is None:
        raise ParameterError("chunks gave no array; one at least is wanted")
    return found


def normalize(
    chunks: Chunks,
    statistics: Statistics | None = None,
    /,
    *,
    scale: Array | None = None,
    bias: Array | None = None,
    epsilon: float = 1e-5,
    axis: int = 1,
    queue: cl.CommandQueue | None = None,
) -> Iterator[Any]:
    """Each chunk normalised with the statistics of all of them, one after the other.

    statistics: as `statistics` gives them; None: of these chunks, in a pass of its own that this call makes, before it
    returns. Chunks are then gone over twice: ParameterError for a generator, which gives each chunk once, and, at the
    end, where the second pass had not as many values as the first. scale, bias: C values, or None for 1 and 0.

    Gives an iterator of results: NumPy arrays of NumPy's chunks, device arrays of the device's. Running statistics are
    moved by functional.move_running.

    >>> parts = [np.float32([[1.0, 10.0]]), np.float32([[3.0, 30.0]])]
    >>> print([y.tolist() for y in normalize(parts, epsilon=0.0)])
    [[[-1.0, -1.0]], [[1.0, 1.0]]]
    """
    own = statistics is None
    if own and not callable(chunks) and isinstance(chunks, Iterator):
        raise ParameterError(
            f"chunks is {values.kind_of(chunks)}, which gives each chunk once; without statistics a list is wanted, or "
            "a function that begins anew, as lambda: map(np.load, paths)"
        )
    values.number("epsilon", epsilon, 0.0)
    arguments.queue("queue", queue)
    listed = _begun(chunks)
    if statistics is None:
        statistics = _statistics(listed, axis=axis, queue=queue)
        if callable(chunks):
            listed = _begun(chunks)
    elif not isinstance(statistics, Statistics):
        came = values.kind_of(statistics)
        raise ArrayTypeError(f"statistics is {came}; Statistics are wanted, as oclbn.streaming.statistics gives them")
    if statistics.count == 1:
        raise ShapeError("statistics are of 1 values per channel; two at least are wanted, for a variance")
    options: dict[str, Any] = {"epsilon": epsilon, "axis": axis}
    return _normalized(listed, statistics, scale, bias, queue, own, options)


_statistics = statistics  # where an argument has its name


def _normalized(
    listed: Iterable[Chunk],
    found: Statistics,
    scale: Array | None,
    bias: Array | None,
    queue: cl.CommandQueue | None,
    own: bool,
    options: dict[str, Any],
) -> Iterator[Any]:
    seen = 0
    for index, x, on_host in _told(listed, options["axis"], queue):
        with _of_chunk(index):
            size, channels = x.size, x.shape[arguments.axis_of(options["axis"], x)]
            seen += size // channels if channels else 0
            if own and seen > found.count:
                raise ParameterError(
                    f"the second pass has more values than the first, {found.count} per channel; chunks have to be the "
                    "same in both"
                )
            if size:
                y = functional.normalize(x, found, scale, bias, **options)
            else:
                y, _, _ = functional.batch_norm_train(x, scale, bias, **options)
            y.finish()
            result = y.get() if on_host else y
            del x, y
        yield result
        del result
    if own and seen != found.count:
        raise ParameterError(
            f"chunks had {seen} values per channel in the second pass, and {found.count} in the first; they have to be "
            "the same in both"
        )


def _begun(given: Chunks) -> Iterable[Chunk]:
    """What a pass goes over."""
    if isinstance(given, (np.ndarray, Array)):
        raise ArrayTypeError(
            f"chunks is {values.kind_of(given)}; an iterable of arrays is wanted, as oclbn.streaming.chunks(array, "
            "1000) makes one of it"
        )
    listed: Any = given() if callable(given) else given
    if isinstance(listed, (str, bytes, dict)) or not isinstance(listed, Iterable):
        came = values.kind_of(listed)
        raise ArrayTypeError(f"chunks {'gave' if callable(given) else 'is'} {came}; an iterable of arrays is wanted")
    return listed


def _told(listed: Iterable[Chunk], axis: Any, queue: cl.CommandQueue | None) -> Iterator[tuple[int, Array, bool]]:
    """Each chunk with its number, on the device; and whether it came from the host."""
    target, like, index = arguments.queue("queue", queue), None, 0
    for chunk in listed:  # without enumerate, which holds the last one until it has the next
        name, on_host = f"chunk {index}", isinstance(chunk, np.ndarray)
        if not isinstance(chunk, (np.ndarray, Array)):
            raise ArrayTypeError(f"{name} is {values.kind_of(chunk)}; a NumPy or a device array is wanted")
        if kind(chunk.dtype.newbyteorder("=") if on_host else chunk.dtype) is None:
            advice = f": chunk.astype({as_code(np.dtype(np.float32))})" if chunk.dtype.kind in "iubf" else ""
            raise DtypeError(f"{name} is {chunk.dtype}; {WANTED} is wanted{advice}")
        with _of_chunk(index):
            if isinstance(chunk, np.ndarray):
                target = target or device.default_queue()
                x = gpuarray.to_gpu(chunk, queue=target)
            else:
                x = chunk
        arguments.tensor(name, x)
        told = x.dtype, x.shape[arguments.axis_of(axis, x)]
        like = like or told
        if told[0] != like[0]:
            raise DtypeError(f"{name} is {told[0]}; {like[0]} is wanted, as chunk 0 is")
        if told[1] != like[1]:
            raise ShapeError(f"{name} has {told[1]} channels on axis {axis}; {like[1]} are wanted, as chunk 0 has")
        yield index, x, on_host
        del chunk, x
        index += 1  # noqa: SIM113


@contextlib.contextmanager
def _of_chunk(index: int) -> Iterator[None]:
    """Errors say which chunk it was."""
    try:
        yield
    except OclbnError as error:
        raise type(error)(f"chunk {index}: {error}") from None
