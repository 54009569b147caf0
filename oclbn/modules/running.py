"""What a batch normalization has to do with its running statistics: whether there are any, who uses and who moves them.

Two switches say it, `use_running` and `update_running`; None leaves one to the mode. `frozen_statistics` and
`cumulative` are names for settings of others, and keep nothing of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oclbn.call import values
from oclbn.call.making import ESTIMATORS, renorm_limits
from oclbn.errors import ModuleParameterError, ModuleStateError
from oclbn.modules.module import Module
from oclbn.modules.options import Choice, Fixed, Flag, Number, Option, flag

if TYPE_CHECKING:
    from oclbn.modules.accumulating import Accumulation
    from oclbn.modules.recalibrating import Recalibration

__all__ = ["RunningStatistics"]


class Switch(Option[bool | None]):
    """True or False, or None, which leaves it to the mode; True where there are running statistics alone."""

    def _checked(self, module: Any, value: Any) -> bool | None:
        if value is None:
            return None
        on = flag(module, self._name, value, "None, True or False")
        if on:
            wants_running(module, self._name)
        return on


class Renorm(Option[tuple[float, float] | None]):
    """Limits of batch renormalization's corrections, (r_max, d_max), or None."""

    def _checked(self, module: Any, value: Any) -> tuple[float, float] | None:
        if value is None:
            return None
        try:
            r_max, d_max = value
        except (TypeError, ValueError):
            raise ModuleParameterError(
                f"{module}: {self._name} is {values.shown(value)}; None or (r_max, d_max) is wanted, as (3.0, 5.0)"
            ) from None
        wants_running(module, self._name, shown=f"{value}", wanted="None")
        found = renorm_limits(r_max, d_max, error=ModuleParameterError, label=f"{module}: {self._name}'s ")
        return found["r_max"], found["d_max"]


class FrozenStatistics(Option[bool]):
    """The switches at True and False; set to False, both are left to the mode again."""

    def __get__(self, module: Any, owner: type) -> Any:
        return self if module is None else module.use_running is True and module.update_running is False

    def __set__(self, module: Any, value: Any) -> None:
        frozen = flag(module, self._name, value)
        if frozen:
            wants_running(module, self._name)
            module.use_running, module.update_running = True, False
        elif module.frozen_statistics:
            module.use_running = module.update_running = None


class Cumulative(Option[bool]):
    """initFactor=1 and minFactor=0."""

    def __get__(self, module: Any, owner: type) -> Any:
        return self if module is None else (module.initFactor, module.minFactor) == (1.0, 0.0)

    def __set__(self, module: Any, value: Any) -> None:
        if flag(module, self._name, value):
            module.initFactor, module.minFactor = 1.0, 0.0
        elif module.cumulative:
            raise ModuleParameterError(
                f"{module}: cumulative is {value!r}; set the least weight of a batch instead, as in bn.minFactor = 0.1"
            )


def wants_running(module: Any, name: str, *, shown: str = "True", wanted: str = "False") -> None:
    """ModuleParameterError where an option stands for running statistics and there are none."""
    if not module.running:
        raise ModuleParameterError(
            f"{module}: {name} is {shown}; {wanted} is wanted, as the module has no running statistics (running=False)"
        )


class RunningStatistics(Module):
    """Base of BatchNormND, whose constructor tells what the options mean."""

    initFactor, minFactor = Number(0.0, 1.0), Number(0.0, 1.0)
    inplace = Flag()
    _bound = (*Module._bound, "_session")
    _session: Accumulation | Recalibration | None = None  # what is open on the module
    running = Fixed[bool]()
    use_running, update_running = Switch(), Switch()
    frozen_statistics, cumulative = FrozenStatistics(), Cumulative()
    estimator = Choice(tuple(ESTIMATORS))
    renorm = Renorm()

    def _set_running(self, running: Any, use: Any, update: Any, frozen: Any, cumulative: Any, estimator: Any) -> None:
        """Set the options as the constructor was given them; initFactor and minFactor are set before."""
        self.running = flag(self, "running", running)
        self.use_running, self.update_running, self.estimator = use, update, estimator
        if flag(self, "frozen_statistics", frozen):
            for name, value, wanted in (("use_running", use, True), ("update_running", update, False)):
                if value not in (None, wanted):
                    raise ModuleParameterError(
                        f"{self}: {name} is {value}; beside frozen_statistics, which makes it {wanted}, None is wanted"
                    )
            self.frozen_statistics = True
        if flag(self, "cumulative", cumulative):
            if self.initFactor != 1.0 or self.minFactor not in (0.0, 0.1):
                raise ModuleParameterError(
                    f"{self}: cumulative is {cumulative!r}, which makes initFactor 1 and minFactor 0; False is wanted "
                    f"beside initFactor {self.initFactor:g} and minFactor {self.minFactor:g}"
                )
            self.cumulative = True

    def _running_options(self) -> dict[str, Any]:
        """Those that are not as they are by default, in the constructor's words."""
        told: dict[str, Any] = {"running": self.running, "use_running": self.use_running}
        told |= {"update_running": self.update_running, "estimator": self.estimator}
        if self.frozen_statistics:
            told |= {"use_running": None, "update_running": None, "frozen_statistics": True}
        default = {"running": True, "estimator": "sample"}
        return {name: value for name, value in told.items() if value is not None and value != default.get(name)}

    def _uses_running(self) -> bool:
        """Whether a call normalises with the running statistics, or else with the batch's own."""
        return (self.running and not self.train) if self.use_running is None else self.use_running

    def _moves_running(self) -> bool:
        """Whether a call moves the running statistics."""
        if self._session is not None or not self.running:
            return False
        return self.train if self.update_running is None else self.update_running

    def _by_running(self) -> bool:
        """As `_uses_running`; ModuleStateError where `inplace` would write over what is wanted later."""
        if self.inplace and self.train:
            raise ModuleStateError(
                f"{self}: inplace is for evaluation, training needs the input for its gradient; set bn.inplace = False "
                "to train, and bn.inplace = True after bn.evalMode()"
            )
        uses = self._uses_running()
        if self.inplace and not uses:
            raise ModuleStateError(
                f"{self}: inplace is for the running statistics, and {'use_running' if self.running else 'running'} is "
                "False: the batch's own are found in what would be written over"
            )
        return uses
