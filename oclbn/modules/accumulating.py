"""A batch that is trained in parts with one set of statistics: two phases forward, two backward, then one change."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import pyopencl as cl

from oclbn import functional, gpuarray
from oclbn.call.copying import copy_strided
from oclbn.call.masks import said
from oclbn.device import driver_errors
from oclbn.errors import ContextError, ModuleParameterError, ModuleShapeError, ModuleStateError, OclbnError
from oclbn.functional import GradientSums, Statistics
from oclbn.gpuarray import Array
from oclbn.modules.recalibrating import begin

if TYPE_CHECKING:
    from oclbn.modules.batchnormnd import BatchNormND

__all__ = ["Accumulation"]

_PHASES = ("statistics", "normalize", "gradient_sums", "gradient")


class Accumulation:
    """The parts of one batch, on their way through a module; `bn.accumulate()` makes one.

    Each phase takes all parts, in the order of the first one, and begins when the one before it is through. Only what
    a phase is given has to be on the device: parts may be loaded, or computed, anew for each. `normalize` may go over
    all parts again at any time later, for who computes y anew rather than keeping it. `gradient` may be left out
    for all parts, where nobody wants dx. A residual that a part has is given again with it in each phase; a mask, or
    lengths, in the first one alone.

    ModuleStateError: a call out of turn, or of more parts than there are; ModuleShapeError: a part that is no longer of
    the shape that it had; others as of the module's own call. None of them changes the module.

    >>> from oclbn import BatchNorm, gpuarray
    >>> bn = BatchNorm(1, sscale=0.0, epsilon=0.0)
    >>> parts = [gpuarray.to_gpu(np.float32(part)) for part in ([[1.0]], [[3.0], [5.0]])]
    >>> with bn.accumulate() as step:
    ...     for x in parts:
    ...         step.statistics(x)
    ...     ys = [step.normalize(x) for x in parts]
    ...     for x, y in zip(parts, ys):
    ...         step.gradient_sums(x, y)
    ...     dxs = [step.gradient(x, y) for x, y in zip(parts, ys)]
    >>> bn.mean.get().ravel(), bn.vars["scale"].grad.get().ravel().round(3), bn.numOfProps
    (array([3.], dtype=float32), array([3.], dtype=float32), 1)
    """

    def __init__(self, module: BatchNormND, updParamGrads: bool, scale: float, momentum: float) -> None:
        self._module, self._wanted = module, bool(updParamGrads)
        self._weights = module._real_number("scale", scale), module._real_number("momentum", momentum)
        self._whole: Statistics | None = None
        self._sums: GradientSums | None = None
        self._shapes: list[tuple[int, ...]] = []
        self._selected: list[dict[str, Any]] = []  # of each part, which of its positions count
        self._added: list[bool] = []  # of each part, whether it has a residual
        self._done = dict.fromkeys(_PHASES, 0)
        self._state = "has not begun"

    def __repr__(self) -> str:
        done = ", ".join(f"{name} {count}" for name, count in self._done.items())
        return f"<{type(self).__name__} of {self._module}: {done}>"

    @property
    def count(self) -> int:
        """The values per channel of all parts so far."""
        return 0 if self._whole is None else self._whole.count

    def __enter__(self) -> Self:
        module = self._module
        module.lock.acquire()
        try:
            self._start()
        except BaseException:
            module.lock.release()
            raise
        return self

    def _start(self) -> None:
        module = self._module
        if self._state != "has not begun":
            raise ModuleStateError(f"{module}: this accumulate() {self._state}; begin with another one")
        if module._by_running() or not module.train:
            raise ModuleStateError(
                f"{module}: accumulate() is for training with the batch's own statistics; call trainMode(), and "
                "leave use_running and frozen_statistics off: by running statistics parts need no more than calls"
            )
        for name, usual in (("groups", 1), ("renorm", None)):
            if getattr(module, name) != usual:
                raise ModuleStateError(
                    f"{module}: accumulate() is for the statistics of a whole batch; set bn.{name} = {usual} for it"
                )
        module._tensors()
        begin(module, self)
        self._epsilon, self._axis, self._state = module.epsilon, module.axis, "is open"
        self._activation, self._modes = module.activation, _modes_of(module)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._module._session, self._state = None, "has ended"
            if error is None:
                self._complete()
                self._commit()
        finally:
            self._module.lock.release()

    @driver_errors("statistics")
    def statistics(self, x: Array, *, mask: Any = None, lengths: Any = None, outside: str = "zero") -> None:
        """First phase: the statistics of a part, as the module takes data; a part may be empty, or of one value.

        mask, lengths, outside: as of the module's call; all phases are of the same positions of the part.
        """
        self._begin("statistics", x)
        if any(count for name, count in self._done.items() if name != "statistics"):
            self._out_of_turn("statistics", "normalize has begun, so that the batch is complete")
        selected = self._module._selected(x, mask, lengths, outside) if said(mask, lengths, outside) else {}
        own = functional.statistics(x, axis=self._axis, mask=selected.get("mask"))
        self._whole = own if self._whole is None else functional.merge(self._whole, own)
        self._shapes.append(x.shape)
        self._selected.append(selected)
        self._done["statistics"] += 1

    @driver_errors("normalize")
    def normalize(self, x: Array, residual: Array | None = None, *, out: Array | None = None) -> Array:
        """Second phase: the output for a part, by the statistics of the batch, as the module's own call gives it.

        residual: as of the module's call. out: an array of x's shape for the output.
        """
        self._begin("normalize", x)
        self._after("normalize", "statistics")
        fused = self._fused("normalize", x, residual)
        whole = self._of_all()
        if whole.count == 1:
            raise ModuleShapeError(
                f"{self._module}: the parts have one value per channel in all; training needs two, for a variance"
            )
        scale, bias, _, _ = self._module._tensors()
        options: dict[str, Any] = {"epsilon": self._epsilon, "axis": self._axis, "out": out, **fused}
        if whole.count:
            y = functional.normalize(x, whole, scale, bias, **options)
        else:
            y, _, _ = functional.batch_norm_train(x, scale, bias, **options)
        if len(self._added) < len(self._shapes):
            self._added.append(residual is not None)
        self._done["normalize"] += 1
        return y

    @driver_errors("gradient_sums")
    def gradient_sums(self, x: Array, dy: Array, residual: Array | None = None) -> None:
        """Third phase: what the gradients need of a part; dy is the gradient with respect to its output."""
        self._begin("gradient_sums", x, dy)
        self._after("gradient_sums", "normalize")
        fused = self._fused("gradient_sums", x, residual)
        whole, (scale, bias, _, _) = self._of_all(), self._module._tensors()
        if whole.count:
            options: dict[str, Any] = {"epsilon": self._epsilon, "scale": scale, "bias": bias, **fused}
            options = options if self._activation else {name: fused[name] for name in ("mask",) if name in fused}
            options.pop("outside", None)
            own = functional.gradient_sums(x, dy, whole, axis=self._axis, **options)
            self._sums = own if self._sums is None else functional.merge(self._sums, own)
        self._done["gradient_sums"] += 1

    @driver_errors("gradient")
    def gradient(
        self, x: Array, dy: Array, residual: Array | None = None, *, out: Array | None = None
    ) -> Array | tuple[Array, Array]:
        """Fourth phase: the gradient with respect to a part, and where it has a residual, that with respect to it.

        out: an array of x's shape for the first.
        """
        self._begin("gradient", x, dy)
        self._after("gradient", "gradient_sums")
        fused = self._fused("gradient", x, residual)
        fused |= {"bias": self._module.bias} if self._activation else {}
        dx, _, _, *others = self._gradients(x, dy, self._axis, out=out, dresidual=residual is not None, **fused)
        self._done["gradient"] += 1
        return (dx, others[0]) if others else dx

    def _fused(self, phase: str, x: Array, residual: Array | None) -> dict[str, Any]:
        """What is done to a part besides, as functions take it; its residual comes in all phases, or in none."""
        fused = self._module._fused(x.shape, residual, self._module.activation)
        number = self._done[phase] % len(self._shapes)
        if number < len(self._added) and self._added[number] is not (residual is not None):
            came, had = ("None", "one") if residual is None else ("given", "none")
            raise ModuleParameterError(f"{self._module}: residual is {came}; in normalize part {number} had {had}")
        return fused | self._selected[number]

    def _gradients(self, x: Array, dy: Array, axis: int, **options: Any) -> tuple[Array, ...]:
        whole, scale = self._of_all(), self._module._tensors()[0]
        if not whole.count:
            return functional.batch_norm_backward(x, dy, scale, whole.mean, whole.mean, axis=axis, **options)
        assert self._sums is not None
        return functional.gradient(x, dy, whole, self._sums, scale, epsilon=self._epsilon, axis=axis, **options)

    def _of_all(self) -> Statistics:
        assert self._whole is not None
        return self._whole

    def _begin(self, phase: str, x: Array, dy: Array | None = None) -> None:
        """What has to be so for any part of any phase."""
        module = self._module
        if self._state != "is open":
            raise ModuleStateError(f"{module}: this accumulate() {self._state}; {phase} is for its block")
        module._check(x, "data")
        if x.queue is None:
            raise ContextError(f"{module}: data has no queue; give it one with data.with_queue(queue)")
        if dy is not None:
            module._check_like_data(dy, "grad", x.shape)
        number = self._done[phase]
        if phase != "statistics" and self._shapes:
            if number >= len(self._shapes) and phase != "normalize":
                self._out_of_turn(phase, f"statistics had {_parts(len(self._shapes))}, and this is one more")
            wanted = self._shapes[number % len(self._shapes)]
            if x.shape != wanted:
                raise ModuleShapeError(
                    f"{module}: data has shape {x.shape}; {wanted} is wanted, as part {number % len(self._shapes)} had "
                    "it in statistics"
                )

    def _after(self, phase: str, before: str) -> None:
        """ModuleStateError unless all parts went through the phase before."""
        done, parts = self._done[before], len(self._shapes)
        if not parts:
            self._out_of_turn(phase, "statistics comes first")
        if done < parts:
            self._out_of_turn(phase, f"{before} has had {done} of {_parts(parts)}")

    def _out_of_turn(self, phase: str, why: str) -> NoReturn:
        raise ModuleStateError(f"{self._module}: {phase} is out of turn: {why}")

    def _complete(self) -> None:
        """ModuleStateError unless the module is as it was, and each phase has had all parts."""
        module, parts = self._module, len(self._shapes)
        if _modes_of(module) != self._modes:
            raise ModuleStateError(
                f"{module}: mode, switches, type, groups or activation were changed while accumulate() was open; "
                "nothing else was"
            )
        if not parts:
            raise ModuleStateError(f"{module}: accumulate() has ended without a part; nothing has changed")
        for phase in ("normalize", "gradient_sums", "gradient"):
            done = self._done[phase]
            if phase == "gradient_sums" and not done:
                raise ModuleStateError(
                    f"{module}: accumulate() has ended without backward, gradient_sums of {_parts(parts)}; nothing has "
                    "changed"
                )
            if done % parts or (phase == "normalize" and not done):
                raise ModuleStateError(
                    f"{module}: accumulate() has ended when {phase} had had {done % parts} of {_parts(parts)}; nothing "
                    "has changed"
                )

    @driver_errors("accumulate")
    def _commit(self) -> None:
        """The whole batch enters gradients, running statistics and counters; an error leaves all as it was."""
        module, whole = self._module, self._of_all()
        numbers = module._training()
        options: dict[str, Any] = {}
        grads = [module.vars[name].grad for name in ("scale", "bias")] if module.affine and self._wanted else []
        if grads:
            options |= dict(zip(("scale_grad", "bias_grad"), grads, strict=True))
            options |= dict(zip(("grad_scale", "grad_momentum"), self._weights, strict=True))
        kept = [gpuarray.pack(grad, queue=module.queue) for grad in grads]
        none = gpuarray.empty((0, module.maps), module.calctype, queue=module.queue)  # a part, for dscale and dbias
        _, scalegrad, biasgrad, *_ = self._gradients(none, none, 1, **options)
        if whole.count and module._moves_running():
            names = ("factor", "init_factor", "entered", "guard", "estimator")
            moving = {name: numbers[name] for name in names}
            try:
                functional.move_running(whole, module.mean, module.var, **moving)
            except BaseException:
                with contextlib.suppress(cl.Error, OclbnError):  # of a device that is gone nothing can be put right
                    for grad, old in zip(grads, kept, strict=True):
                        copy_strided(old, grad)
                raise
            module._batches += 1
        module.reset()
        if module.affine:
            module.scalegrad, module.biasgrad = scalegrad, biasgrad

    def of_call(self, data: Array, selection: Any) -> NoReturn:
        """The module itself is not to be called meanwhile."""
        raise ModuleStateError(
            f"{self._module}: accumulate() is open; parts go through its step: `with bn.accumulate() as step:`, "
            "step.statistics(x), then step.normalize(x)"
        )

    def keep(self, found: Any) -> None:
        """Nothing is kept of calls."""

    def of_backward(self) -> NoReturn:
        """Nor is its gradient to be asked for."""
        raise ModuleStateError(
            f"{self._module}: accumulate() is open; gradients are its step's: step.gradient_sums(x, dy), then "
            "step.gradient(x, dy)"
        )


def _modes_of(module: BatchNormND) -> tuple[Any, ...]:
    """What a batch has to begin and to end with."""
    switches = module.train, module.use_running, module.update_running
    return *switches, module.calctype, module.activation, module.groups, module.renorm


def _parts(number: int) -> str:
    return "1 part" if number == 1 else f"{number} parts"
