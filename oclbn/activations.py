"""Activations that kernels apply to what they normalise: their names, and what their derivatives are made from.

The formulas stand in kernels/numbers/activation.clh.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = (  # the place of each is its code: ACT in kernels/numbers/activation.clh
    "none",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "silu",
    "sigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    "hardswish",
    "softplus",
)
SLOPES = {"leaky_relu": 0.01, "elu": 1.0}  # those that take a number, and which it is where none is given
_BY_OUTPUT = {"none", "relu", "relu6", "leaky_relu", "elu", "sigmoid", "tanh", "softplus"}


@dataclass(frozen=True)
class Activation:
    """One of NAMES, and the number that it takes; 0 where it takes none."""

    name: str = "none"
    slope: float = 0.0

    @property
    def code(self) -> int:
        """What kernels call it."""
        return NAMES.index(self.name)

    @property
    def by_output(self) -> bool:
        """Whether its derivative follows from its output."""
        return self.name in _BY_OUTPUT

    @property
    def option(self) -> str | tuple[str, float] | None:
        """What says it as an option of functions and modules."""
        if self.name in SLOPES and self.slope != SLOPES[self.name]:
            return self.name, self.slope
        return None if self == NONE else self.name


NONE = Activation()
PLAIN = {name: Activation(name, SLOPES.get(name, 0.0)) for name in NAMES}  # by name, with the usual numbers
