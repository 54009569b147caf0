"""Running statistics anew from a pass over data: the statistics of all batches, merged, take their place on commit."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from oclbn import functional, gpuarray
from oclbn.call.making import taken_off
from oclbn.call.masks import Selection, said
from oclbn.device import driver_errors
from oclbn.errors import ModuleShapeError, ModuleStateError
from oclbn.functional import Statistics
from oclbn.gpuarray import Array
from oclbn.modules.parameters import overwrite
from oclbn.modules.variable import host_of

if TYPE_CHECKING:
    from oclbn.modules.batchnormnd import BatchNormND

__all__ = ["Recalibration"]


class _Before(NamedTuple):
    """What a commit changes."""

    mean: NDArray[Any]
    var: NDArray[Any]
    batches: int
    entered: NDArray[Any] | None
    skips: int


class Recalibration:
    """A pass over data for a module's running statistics; `bn.recalibrate()` makes one.

    In the block every call of the module counts, in either mode, and moves nothing: so the whole network runs as it is,
    in training mode normalising with each batch's own statistics, in evaluation mode with the running ones. Called
    itself, `pass_(data)` collects data without normalising them.

    `commit` makes mean and variance over all values the running statistics: merged without loss, rounded once, by the
    module's `estimator`, and `numOfProps` the number of batches. With the module's `guard`, channels whose statistics
    are not finite keep what they had. Nothing changes before that, and never where an exception leaves the block.
    `rollback` gives up what was collected, or takes a commit back. Both may be called in the block or after it.

    ModuleStateError: there are no running statistics, another block is open on the module, or nothing was collected.

    >>> from oclbn import BatchNorm, gpuarray
    >>> bn = BatchNorm(2)
    >>> with bn.recalibrate() as pass_:
    ...     for batch in ([[1.0, 10.0], [3.0, 10.0]], [[8.0, 10.0]]):
    ...         pass_(gpuarray.to_gpu(np.float32(batch)))
    >>> pass_.commit()
    >>> bn.mean.get().ravel(), bn.var.get().ravel().round(3), bn.numOfProps
    (array([ 4., 10.], dtype=float32), array([13.,  0.], dtype=float32), 2)
    """

    def __init__(self, module: BatchNormND) -> None:
        self._module = module
        self._whole: Statistics | None = None
        self._batches = 0
        self._open = False
        self._failed = False
        self._before: _Before | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._module}: {self._batches} batches>"

    @property
    def batches(self) -> int:
        """How many batches were collected, without those of no values."""
        return self._batches

    @property
    def statistics(self) -> Statistics | None:
        """Those of all values that were collected; None: there are none."""
        return self._whole

    def __enter__(self) -> Self:
        module = self._module
        with module.lock:
            if not module.running:
                raise ModuleStateError(f"{module}: there are no running statistics to recalibrate (running=False)")
            module._tensors()
            begin(module, self)
            self._open, self._failed = True, False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._module.lock:
            self._module._session, self._open = None, False
            if error is not None:
                self._whole, self._batches, self._failed = None, 0, True

    @driver_errors("recalibrating")
    def __call__(self, data: Array, *, mask: Any = None, lengths: Any = None) -> None:
        """Collect data, as the module is called with them; nothing is normalised."""
        with self._module.lock:
            if not self._open:
                raise ModuleStateError(f"{self._module}: data are collected in the block of recalibrate() alone")
            self._module._check(data, "data")
            selection = None
            if said(mask, lengths):
                selection = self._module._selected(data, mask, lengths, "zero")["mask"]
            self.keep(self.of_call(data, selection))

    def of_call(self, data: Array, selection: Selection | None) -> Statistics:
        """What the pass will hold with these data as well, or with the positions of them that are selected."""
        own = functional.statistics(data, axis=self._module.axis, mask=selection)
        return own if self._whole is None else functional.merge(self._whole, own)

    def keep(self, found: Statistics | None) -> None:
        """Hold what `of_call` gave."""
        assert found is not None
        self._batches += found.count > (0 if self._whole is None else self._whole.count)
        self._whole = found

    def of_backward(self) -> None:
        """Gradients are as ever."""

    @driver_errors("commit")
    def commit(self) -> None:
        """Make the statistics of all that was collected the running ones; waits for the device.

        ModuleStateError: nothing was collected, an exception left the block, or it was done before. ModuleShapeError: a
        single value per channel, which has no variance.
        """
        module, found = self._module, self._whole
        with module.lock:
            if self._failed or self._before is not None or found is None:
                why = "an exception left the block" if self._failed else "no data came"
                why = "that was done already; rollback() takes it back" if self._before is not None else why
                raise ModuleStateError(f"{module}: commit has nothing to do: {why}")
            if found.count < 2:
                raise ModuleShapeError(
                    f"{module}: {found.count} values per channel were collected; two are wanted, for a variance"
                )
            mean, var = (host_of(array) for array in (module.mean, module.var))  # type: ignore[arg-type]
            entered = None if module._entered is None else module._entered.get()
            before = _Before(mean, var, module._batches, entered, module._known_skips)
            new_mean = host_of(found.mean).reshape(mean.shape)
            with np.errstate(all="ignore"):
                m2 = host_of(found.m2).astype(np.float64) + host_of(found.m2_rest)
                new_var = (m2 / (found.count - taken_off(module.estimator))).astype(var.dtype).reshape(var.shape)
                good = np.isfinite(new_mean) & np.isfinite(new_var)
                good |= not module.guard
                new = np.where(good, new_mean, mean), np.where(good, new_var, var)
            counts = self._counts(good)
            module._finish()
            self._write(new)
            module._take(self._batches, counts, 0)
            self._before = before

    @driver_errors("rollback")
    def rollback(self) -> None:
        """Give up what was collected; after a commit, put back what was before it, whatever came in between."""
        module, before = self._module, self._before
        with module.lock:
            if before is not None:
                queue = module.queue
                entered = None if before.entered is None else gpuarray.to_gpu(before.entered, queue=queue)
                module._finish()
                self._write((before.mean, before.var))
                module._take(before.batches, entered, before.skips)
            self._whole, self._batches, self._before = None, 0, None

    def _counts(self, good: NDArray[np.bool_]) -> Array | None:
        """The batches that each channel's statistics are of; one less at least where it was left out."""
        module = self._module
        if good.all():
            return None
        before = np.full(good.shape, module._counted()) if module._entered is None else module._entered.get()
        counts = np.where(good, self._batches, np.minimum(before, self._batches - 1))
        return gpuarray.to_gpu(counts.astype(np.uint32), queue=module.queue)

    def _write(self, hosts: tuple[NDArray[Any], NDArray[Any]]) -> None:
        module = self._module
        overwrite(list(zip((module.mean, module.var), hosts, strict=True)))  # type: ignore[arg-type]
        module.reset()


def begin(module: BatchNormND, session: Any) -> None:
    """Open one of the blocks of a module; ModuleStateError where one is open."""
    if module._session is not None:
        raise ModuleStateError(f"{module}: {name_of(module._session)} is open already; its block has to end first")
    module._session = session


def name_of(session: Any) -> str:
    """How a session is begun."""
    return "recalibrate()" if isinstance(session, Recalibration) else "accumulate()"
