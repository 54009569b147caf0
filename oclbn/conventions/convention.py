"""PURE: what a convention is, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oclbn.errors import ParameterError
from oclbn.names import refusing

__all__ = ["Convention", "Names"]

Momentum: TypeAlias = float | Literal["default"] | None  # None: PyTorch's, the average of all batches


class Names(NamedTuple):
    """What a framework calls the values of a layer. counter: of batches, None where it has none."""

    scale: str
    bias: str
    mean: str
    variance: str
    counter: str | None = None


@dataclass(frozen=True)
class Convention:
    """What one framework's batch normalization does.

    key: its name in `ALL`. name: as people write it. measured: the version that was run, or the source that was read.
    names: of its values. epsilon: by default. momentum: by default, None where it has none. momentum_of: whose weight
    momentum is, that of the "new" batch or of the "old" average; None: it does not train. estimator: of the running
    variance, "sample" (sum of squares by m - 1) or "population" (by m). cumulative: momentum=None is known, and makes
    all batches weigh alike.

    first_batch: "step", all batches have one weight; "replaces", the first one has weight 1, and the others one;
    "debiased", the running statistics are weighted averages of the batches seen, whose weights fade by momentum and add
    up to 1; "settling", batch n weighs 1 / n at least. initial_mean, initial_variance: what the first step starts from.

    epsilon_in: what is divided by, s being the stored variance: "variance", sqrt(s + epsilon); "deviation",
    sqrt(s) + epsilon; "stored", s itself, a standard deviation that was taken with epsilon. least_epsilon: what a
    smaller one becomes. zero_epsilon: epsilon 0 in training, "runs" or "refused"; None: not measured.

    normalises_by: in training, the "population" variance of the batch, its "sample" variance, or the "running" mean and
    variance as they are after the batch. evaluates: by the statistics as they are "stored", or "divided" by
    1 - momentum**batches, both of them. axis: of the channels by default.

    one_value: a training batch with one value per channel: "refused"; "step", y is the bias, and the running statistics
    move by a variance of 0; "nan", these become NaN; "passes", y = x and nothing moves; None: not measured.
    empty_batch: a training batch without samples: "kept", nothing moves; "nan", the running statistics become NaN;
    None: not measured. notes: what else there is to know.
    """

    key: str
    name: str
    measured: str
    names: Names
    epsilon: float
    momentum: float | None
    momentum_of: Literal["new", "old"] | None
    estimator: Literal["sample", "population"] | None
    first_batch: Literal["step", "replaces", "debiased", "settling"] = "step"
    initial_mean: float = 0.0
    initial_variance: float = 1.0
    epsilon_in: Literal["variance", "deviation", "stored"] = "variance"
    least_epsilon: float = 0.0
    zero_epsilon: Literal["runs", "refused"] | None = "runs"
    one_value: Literal["refused", "step", "nan", "passes"] | None = "step"
    empty_batch: Literal["kept", "nan"] | None = None
    axis: int = 1
    evaluates: Literal["stored", "divided"] = "stored"
    normalises_by: Literal["population", "sample", "running"] = "population"
    cumulative: bool = False
    notes: str = ""

    @property
    def trains(self) -> bool:
        """Whether it has running averages of its own, or else evaluates alone."""
        return self.momentum_of is not None

    @property
    def followed(self) -> bool:
        """Whether a module trains as the framework does, or the framework does not train: `options()` has no error."""
        return not self.trains or (
            self.first_batch in ("step", "settling")
            and self.normalises_by == "population"
            and self.epsilon_in == "variance"
        )

    @refusing
    def factor(self, n: int, momentum: Momentum = "default") -> float:
        """The weight of batch n, counted from 1, in the running statistics: running = (1 - w) running + w batch.

        momentum: the framework's own; None: what PyTorch means by it, 1 / n. ParameterError: momentum is not from 0 to
        1, is missing where the framework has no default, or is given where it does not train.
        """
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
            raise ParameterError(f"n is {n!r}; a whole number from 1 on is wanted, as the first batch is number 1")
        last = self._last(momentum)
        if last is None:
            return 1.0 / int(n)
        if self.first_batch == "settling":
            return max(1.0 / int(n), last)
        if self.first_batch == "replaces" and n == 1:
            return 1.0
        if self.first_batch == "debiased":
            if last == 0.0:  # nothing fades
                return 1.0 / int(n)
            return 1.0 if last == 1.0 else min(last / -math.expm1(int(n) * math.log1p(-last)), 1.0)
        return last

    @refusing
    def momentum_for(self, factor: float) -> float:
        """The framework's momentum where a new batch has the weight `factor` (for "debiased", in the long run)."""
        factor = _number("factor", factor, 1.0)
        self._check_training("factor", factor)
        return factor if self.momentum_of == "new" else _rest(factor)

    @refusing
    def options(
        self, momentum: Momentum = "default", epsilon: float | None = None, *, evaluation: bool = False
    ) -> dict[str, Any]:
        """Options of oclbn's modules that make one go on as the framework's layer would.

        momentum, epsilon: the framework's own; not given: its defaults. Channels stay on axis 1, which are on `axis`
        there. The first scale is 1. A new module's statistics begin at 0 and 1: assign `initial_mean` and
        `initial_variance` where they are others. Where the framework does not train, those of training are the module's
        own. evaluation: leaves out what is for training, and the running statistics stay as they are then.

        ParameterError: as of `factor`; epsilon is below 0; or modules do not train so (`followed` is False), and
        evaluation is False: the message tells another way.
        """
        options: dict[str, Any] = {"epsilon": self._epsilon(epsilon), "sscale": 0.0}
        if evaluation:
            return options | {"update_running": False}
        if momentum == "default" and not self.trains:
            return options
        last = self._last(momentum)
        if not self.followed:
            raise ParameterError(self._other_ways(momentum))
        settling = last is None or self.first_batch == "settling"
        options |= {"initFactor": 1.0 if settling else 0.0, "minFactor": 0.0 if last is None else last}
        return options | {"estimator": self.estimator}

    def _other_ways(self, momentum: Momentum) -> str:
        """What to do where modules do not train as the framework does."""
        said = f"modules do not train as {self.name} does"
        there = "make one with options(evaluation=True)"
        if self.first_batch in ("step", "settling"):
            what = "normalises by the sample variance" if self.normalises_by == "sample" else "averages deviations"
            near = f"conventions.PYTORCH.options({self.factor(10**6, momentum):g}, {self.epsilon:g})"
            return f"{said}, which {what}; {there}, or one that trains nearly so with {near}"
        weights = ", ".join(f"{self.factor(n, momentum):.4g}" for n in (1, 2, 3))
        given = "" if momentum == "default" else f", {momentum!r}"
        outputs = "" if self.normalises_by == "population" else ", though its outputs in training are others then, too"
        return (
            f"{said}, where batches weigh {weights}, ...; {there}; or, to train, add initFactor=0, update_running=None "
            f"and estimator={self.estimator!r}, and set bn.minFactor = "
            f"conventions.{self.key.upper()}.factor(bn.numOfProps + 1{given}) before each batch{outputs}"
        )

    @refusing
    def in_evaluation(
        self,
        mean: ArrayLike,
        variance: ArrayLike,
        *,
        batches: int | None = None,
        momentum: Momentum = "default",
        epsilon: float | None = None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(mean, variance), float64, by which the framework evaluates, of what it stores: what modules take.

        They go with the epsilon of `options(epsilon=epsilon)`. batches: the framework's counter, where it `evaluates`
        by "divided" statistics; 0 divides by nothing, as there. Most frameworks evaluate by what they store.
        ParameterError: batches is missing or below 0.
        """
        center, spread = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
        if self.evaluates == "divided":
            if isinstance(batches, bool) or not isinstance(batches, (int, np.integer)) or batches < 0:
                raise ParameterError(
                    f"batches is {batches!r}; a whole number from 0 on is wanted, as {self.name} divides "
                    f"its statistics by 1 - momentum**{self.names.counter}"
                )
            last = self._last(momentum)
            assert last is not None
            weight = -math.expm1(int(batches) * math.log1p(-last)) if batches and last < 1.0 else 1.0
            return center / weight, spread / weight
        added = self._added(epsilon)
        if self.epsilon_in == "deviation":
            spread = (np.sqrt(spread) + added) ** 2
        elif self.epsilon_in == "stored":
            spread = np.maximum(spread**2 - added, 0.0)
        return center, spread

    def _last(self, momentum: Momentum) -> float | None:
        """The weight of a batch after many others; None: all weigh alike."""
        if isinstance(momentum, str) and momentum == "default":
            momentum = self.momentum
            if momentum is None and self.trains:
                raise ParameterError(
                    f"momentum is not given; a number from 0 to 1 is wanted, as {self.name} has no default"
                )
        elif momentum is None and not self.cumulative:
            raise ParameterError(
                f"momentum is None, which {self.name} does not know; a number from 0 to 1 is wanted, or the convention "
                "PYTORCH, where None is the average of all batches"
            )
        self._check_training("momentum", momentum)
        if momentum is None:
            return None
        momentum = _number("momentum", momentum, 1.0)
        return momentum if self.momentum_of == "new" else _rest(momentum)

    def _check_training(self, name: str, value: Any) -> None:
        if not self.trains:
            raise ParameterError(
                f"{name} is {value!r}; {self.name} does not train and has no momentum: leave it out, or take the "
                "convention of the framework that the weights were trained with"
            )

    def _added(self, epsilon: float | None) -> float:
        given = self.epsilon if epsilon is None else _number("epsilon", epsilon, math.inf)
        return max(given, self.least_epsilon)

    def _epsilon(self, epsilon: float | None) -> float:
        """Of a module that evaluates by what `in_evaluation` gives."""
        added = self._added(epsilon)
        return 0.0 if self.epsilon_in == "deviation" else added


def _rest(share: float) -> float:
    """1 - share, as it is written: of 0.99, 0.01, and not the 0.010000000000000009 of binary numbers."""
    return float(1 - Decimal(repr(share)))


def _number(name: str, value: Any, high: float) -> float:
    """From 0 to `high`, and finite."""
    text = isinstance(value, (bool, str, bytes)) or np.ndim(value)
    try:
        number = math.nan if text else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= high or math.isinf(number):
        wanted = f"a number from 0 to {high:g}" if high < math.inf else "a finite number from 0 on"
        raise ParameterError(f"{name} is {value!r}; {wanted} is wanted")
    return number
