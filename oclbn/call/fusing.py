"""What a call does beside normalising: an activation, a residual, and what backward needs of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyopencl.array import Array

from oclbn.activations import NAMES, NONE, PLAIN, SLOPES, Activation
from oclbn.call import values
from oclbn.errors import ArrayTypeError, ParameterError
from oclbn.plan.words import ALONE, Fusion

_MOST_SLOPE = 1e30
_ALIASES = {  # without what does not count: case, "_" and a library's name
    "swish": "silu",
    "logistic": "sigmoid",
    "linear": "none",
    "identity": "none",
    "gelutanh": "gelu_tanh",
    "geluapproximate": "gelu_tanh",
}


class Fused(NamedTuple):
    """What is done besides, and the tensor that it reads, by its name, if there is one."""

    activation: Activation
    fusion: Fusion
    tensors: dict[str, Array]

    @property
    def numbers(self) -> dict[str, float]:
        """What kernels are told of the activation; nothing where there is none."""
        return {"slope": self.activation.slope} if self.activation.code else {}

    @property
    def from_x(self) -> bool:
        """Whether backward computes z from x, for which it wants scale, bias and statistics."""
        return bool(self.activation.code) and "y" not in self.tensors


NOTHING = Fused(NONE, ALONE, {})


def before(activation: Any, residual: Array | None) -> Fused:
    """Of a forward call, whose residual is added before the activation."""
    if activation is None and residual is None:
        return NOTHING
    found = activation_of(activation)
    if residual is None:
        return Fused(found, Fusion(found.code) if found.code else ALONE, {})
    return Fused(found, Fusion(found.code, 1), {"residual": residual})


def behind(activation: Any, y: Array | None, residual: Array | None, dresidual: Any, *, copied: bool = False) -> Fused:
    """Of a backward call: its activation's derivative follows from y, or else from x and what was added.

    dresidual: whether the residual's gradient is wanted, or an array for it; without an activation that is dy, and only
    an array for it is written; copied: it is written there as well, as an array of its own.
    """
    if activation is None and dresidual is False:
        return NOTHING
    found = activation_of(activation)
    given = isinstance(dresidual, Array)
    if not (given or dresidual is None or isinstance(dresidual, bool)):
        raise ArrayTypeError(f"dresidual is {values.shown(dresidual)}; True, False or a pyopencl.array.Array is wanted")
    wanted = given or (dresidual is True and (bool(found.code) or copied))
    tensors = {"dresidual": dresidual} if given else {}
    aux = 0
    if found.code and y is not None:
        if not found.by_output:
            raise ParameterError(
                f"y is given, from which the derivative of {found.name} does not follow; None is wanted, and the "
                "residual if the forward call had one"
            )
        aux, tensors["y"] = 2, y
    elif found.code and residual is not None:
        aux, tensors["residual"] = 1, residual
    fusion = Fusion(found.code, aux, wanted) if found.code or wanted else ALONE
    return Fused(found, fusion, tensors)


def activation_of(value: Any, *, error: type[ParameterError] = ParameterError, label: str = "activation") -> Activation:
    """An activation, from None, a name, or a name with the number that it takes; anything else is refused."""
    if value is None:
        return NONE
    if isinstance(value, Activation):
        return value
    name, number = value, None
    if isinstance(value, (tuple, list)) and len(value) == 2:
        name, number = value
    found = PLAIN.get(name) if isinstance(name, str) else None
    if found is None:
        raise error(f"{label} is {values.shown(value)}; {_WANTED}{_meant(name)}")
    if name is value:
        return found
    if name not in SLOPES:
        raise error(f"{label} is {values.shown(value)}; {name} takes no number, so {name!r} alone is wanted")
    return Activation(name, values.number(f"the number of {label} {name!r}", number, 0.0, _MOST_SLOPE, error=error))


_WANTED = (
    f"None or one of {', '.join(name for name in NAMES if name != 'none')} is wanted; leaky_relu and elu may have a "
    "number, as ('leaky_relu', 0.2)"
)


def _meant(value: Any) -> str:
    """What may be meant by a name that is none, or by a function or module of another library."""
    name = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    bare = name.lower().rpartition(".")[2].replace("_", "")
    meant = _ALIASES.get(bare) or next((one for one in NAMES if one.replace("_", "") == bare), None)
    return f"; did you mean {meant!r}?" if meant else ""
