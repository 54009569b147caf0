"""What each operation takes, gives and runs: the one description, from which everything else is derived.

Checks of arguments, the kernels' arguments, what a call writes and what lies in memory between launches follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Operation:
    """Arrays by their part in it, under the names of the kernels' arguments; numbers with their defaults; kernels."""

    source: str
    resident: str  # the kernel that does it in one launch; "" where there is none
    split: tuple[str, ...]  # the kernels that do it in several
    tensors: tuple[str, ...]  # read; the first is x
    result: str = ""  # the tensor that is written
    vectors: tuple[str, ...] = ()  # per channel, read; may be None
    needed: tuple[str, ...] = ()  # per channel, read
    state: tuple[str, ...] = ()  # per channel, changed in place; may be None
    made: tuple[str, ...] = ()  # per channel, results
    extra: tuple[str, ...] = ()  # per channel, results that most calls do not ask for
    numbers: Mapping[str, float] = field(default_factory=dict)
    partial: int = 0  # numbers of a channel's partial result
    in_place: bool = False  # the result may lie where x does
    empty: float = 0.0  # what is made of no elements
    gathered: Mapping[str, str] = field(default_factory=dict)  # of state: the result that is gathered there

    @cached_property
    def others(self) -> tuple[str, ...]:
        """Tensors that are read beside x."""
        return self.tensors[1:]

    @cached_property
    def read(self) -> tuple[str, ...]:
        """Arrays of a number per channel that are read."""
        return (*self.vectors, *self.needed)

    @cached_property
    def left_out(self) -> dict[str, None]:
        """`extra`, of a call that does not ask for it."""
        return dict.fromkeys(self.extra)

    @property
    def arrays_read(self) -> int:
        """Tensors that are read."""
        return len(self.tensors)

    @property
    def kernels(self) -> tuple[str, ...]:
        """All kernels of all its variants."""
        return tuple(filter(None, (self.resident, *self.split)))


_GATHERING = {"grad_scale": 1.0, "grad_momentum": 0.0}
_GATHERED = {"scale_grad": "dscale", "bias_grad": "dbias"}

OPERATIONS = {
    "train": Operation(
        "forward.cl",
        "train_resident",
        ("moments_partial", "train_apply"),
        tensors=("x",),
        result="y",
        vectors=("scale", "bias"),
        state=("running_mean", "running_var", "skipped", "entered"),
        made=("save_mean", "save_invstd"),
        numbers={"epsilon": 1e-5, "factor": 0.1, "init_factor": 1.0, "guard": 1},
        partial=4,
        empty=float("nan"),
    ),
    "infer": Operation(
        "forward.cl",
        "",
        ("infer",),
        tensors=("x",),
        result="y",
        vectors=("scale", "bias"),
        needed=("mean", "var"),
        numbers={"epsilon": 1e-5},
        in_place=True,
    ),
    "moments": Operation(
        "moments.cl",
        "",
        ("moments_partial", "moments_merge"),
        tensors=("x",),
        made=("mean", "m2"),
        extra=("mean_rest", "m2_rest"),
        partial=4,
    ),
    "backward": Operation(
        "backward.cl",
        "backward_resident",
        ("backward_partial", "backward_apply"),
        tensors=("x", "dy"),
        result="dx",
        vectors=("scale",),
        needed=("save_mean", "save_invstd"),
        state=("scale_grad", "bias_grad"),
        made=("dscale", "dbias"),
        numbers=_GATHERING,
        partial=6,
        gathered=_GATHERED,
    ),
    "constant": Operation(  # with save_invstd, or else with var and epsilon
        "backward.cl",
        "",
        ("constant_partial", "constant_merge"),
        tensors=("x", "dy"),
        result="dx",
        vectors=("scale", "save_invstd", "var"),
        needed=("save_mean",),
        state=("scale_grad", "bias_grad"),
        made=("dscale", "dbias"),
        numbers={"epsilon": 1e-5, **_GATHERING},
        partial=6,
        gathered=_GATHERED,
    ),
}
SOURCES = {"moments_partial": "moments.cl"}  # kernels that are used from another direction's file
MERGES = {"moments_merge", "constant_merge"}  # one group per block: the slices are what it merges
