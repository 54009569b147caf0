"""What each operation takes, gives and runs: the one description, from which everything else is derived.

Checks of arguments, the kernels' arguments, what a call writes and what lies in memory between launches follow from it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from oclbn.plan.words import ALONE, Fusion


@dataclass(frozen=True)
class Operation:
    """Arrays by their part in it, under the names of the kernels' arguments; numbers with their defaults; kernels."""

    source: str
    resident: str  # the kernel that does it in one launch; "" where there is none
    split: tuple[str, ...]  # the kernels that do it in several
    tensors: tuple[str, ...]  # read; the first is x
    result: str = ""  # the tensor that is written
    second: str = ""  # another one, of the same type
    optional: str = ""  # one of those that are read, which a call may do without (Fusion.without)
    fusable: tuple[str, ...] = ()  # what a tensor is called that may be read besides, as Fusion.aux counts from 1 on
    called: str = ""  # what is read that kernels call aux: one of those, or what is optional
    vectors: tuple[str, ...] = ()  # per channel, read; may be None
    needed: tuple[str, ...] = ()  # per channel, read
    state: tuple[str, ...] = ()  # per channel, changed in place; may be None
    made: tuple[str, ...] = ()  # per channel, results
    extra: tuple[str, ...] = ()  # per channel, results that most calls do not ask for
    numbers: Mapping[str, float] = field(default_factory=dict)
    partial: tuple[str, ...] = ()  # the numbers of a channel's partial result, as kernels call them that read them
    in_place: tuple[str, ...] = ()  # tensors, the result may lie where one does
    empty: float = 0.0  # what is made of no elements
    gathered: Mapping[str, str] = field(default_factory=dict)  # of state: the result that is gathered there
    after: str = ""  # of several batches: the kernel that brings together what each has left per channel
    each: Mapping[str, int] = field(default_factory=dict)  # and what that is, numbers per batch and channel
    apart: bool = False  # each sample has to be some rows of the tensor
    beside: str = ""  # what is read where the last of the fusable tensors is
    per_batch: tuple[str, ...] = ()  # of what is needed or made, arrays that have numbers for each batch and channel
    part_of: str = ""  # the operation whose last kernels it is, on partial results that are given
    results_of: str = ""  # the operation that gives the same results, of one batch

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

    @cached_property
    def results(self) -> tuple[str, ...]:
        """Tensors that are written."""
        return tuple(filter(None, (self.result, self.second)))

    @cached_property
    def kernel_names(self) -> dict[str, str]:
        """Of tensors that kernels call otherwise: what they call them."""
        return {self.called: "aux"} if self.called else {}

    @cached_property
    def callers_names(self) -> dict[str, str]:
        """And of what kernels call otherwise, what callers call it."""
        return {name: own for own, name in self.kernel_names.items()}

    @cached_property
    def arrays_read(self) -> int:
        """Tensors that are summed over, or else x alone: what is read twice."""
        return len(self.tensors) if "dy" in self.tensors else 1

    @cached_property
    def arrays_moved(self) -> int:
        """Tensors that are read, and those that are written; a call that writes none makes room for one."""
        return len(self.tensors) + max(1, len(self.results))

    @property
    def kernels(self) -> tuple[str, ...]:
        """All kernels of all its variants."""
        return tuple(filter(None, (self.resident, *self.split, self.after)))


_MOMENTS = ("set_mean", "set_mean_rest", "set_m2", "set_m2_rest")
_SUMS = ("set_dy", "set_dy_rest", "set_dy_xmu", "set_dy_xmu_rest", "set_xmu", "set_xmu_rest")
_ALL_SUMS = (*_SUMS, *(f"set_{name}{rest}" for name in ("ddx", "ddx_xmu", "ddx_dy") for rest in ("", "_rest")))
_GATHERING = {"grad_scale": 1.0, "grad_momentum": 0.0}
_GATHERED = {"scale_grad": "dscale", "bias_grad": "dbias"}
_SECOND = {"dx": "dresidual"}  # what a second result is called beside another one
_BEFORE = ("residual",)
_BEHIND = ("residual", "y")  # whence the derivative of an activation may come

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
        partial=_MOMENTS,
        in_place=("residual",),
        fusable=_BEFORE,
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
        in_place=("x", "residual"),
        fusable=_BEFORE,
    ),
    "moments": Operation(
        "moments.cl",
        "",
        ("moments_partial", "moments_merge"),
        tensors=("x",),
        made=("mean", "m2"),
        extra=("mean_rest", "m2_rest"),
        partial=_MOMENTS,
    ),
    "backward": Operation(
        "backward.cl",
        "backward_resident",
        ("backward_partial", "backward_apply"),
        tensors=("x", "dy"),
        result="dx",
        vectors=("scale", "bias"),
        needed=("save_mean", "save_invstd"),
        state=("scale_grad", "bias_grad"),
        made=("dscale", "dbias"),
        numbers=_GATHERING,
        partial=_SUMS,
        in_place=("dy",),
        fusable=_BEHIND,
        gathered=_GATHERED,
    ),
    "constant": Operation(  # with save_invstd, or else with var and epsilon
        "backward.cl",
        "",
        ("constant_partial", "constant_merge"),
        tensors=("x", "dy"),
        result="dx",
        vectors=("scale", "bias", "save_invstd", "var"),
        needed=("save_mean",),
        state=("scale_grad", "bias_grad"),
        made=("dscale", "dbias"),
        numbers={"epsilon": 1e-5, **_GATHERING},
        partial=_SUMS,
        in_place=("dy",),
        fusable=_BEHIND,
        gathered=_GATHERED,
    ),
    "double_backward": Operation(
        "double_backward.cl",
        "double_resident",
        ("double_partial", "double_apply"),
        tensors=("x", "dy", "ddx"),
        result="gx",
        second="gdy",
        optional="ddx",
        called="ddx",
        vectors=("scale", "ddscale", "ddbias"),
        needed=("save_mean", "save_invstd"),
        made=("gscale",),
        partial=_ALL_SUMS,
    ),
    "double_constant": Operation(  # with save_invstd, or else with var and epsilon
        "double_constant.cl",
        "",
        ("double_constant_partial", "double_constant_merge"),
        tensors=("x", "dy", "ddx"),
        result="gx",
        second="gdy",
        optional="ddx",
        called="ddx",
        vectors=("scale", "ddscale", "ddbias", "save_invstd", "var"),
        needed=("save_mean",),
        made=("gscale",),
        numbers={"epsilon": 1e-5},
        partial=_ALL_SUMS[-2:],
    ),
}
STEPS = {  # what a batch in parts is normalised by: see oclbn.steps
    "sums": Operation(
        "backward.cl",
        "",
        ("backward_partial", "sums_merge"),
        tensors=("x", "dy"),
        vectors=("scale", "bias", "save_invstd"),  # with an activation
        needed=("save_mean",),
        fusable=_BEHIND,
        made=("sum_dy", "sum_dy_rest", "sum_dy_xmu", "sum_dy_xmu_rest", "sum_xmu", "sum_xmu_rest"),
        partial=_SUMS,
    ),
    "train_in_parts": replace(OPERATIONS["train"], resident="", results_of="train"),
    "backward_in_parts": replace(OPERATIONS["backward"], resident="", results_of="backward"),
    "normalize": replace(OPERATIONS["train"], resident="", split=("train_apply",), part_of="train_in_parts"),
    "gradient": replace(OPERATIONS["backward"], resident="", split=("backward_apply",), part_of="backward_in_parts"),
}
BATCHES = {  # of a tensor that is several batches
    "train_batches": replace(
        OPERATIONS["train"],
        source="forward_batches.cl",
        results_of="train",
        apart=True,
        fusable=(*_BEFORE, "weights"),
        beside="offsets",
        resident="batches_resident",
        split=("batches_partial", "batches_apply"),
        partial=("mean", "mean_rest", "m2", "m2_rest"),
        numbers={**OPERATIONS["train"].numbers, "taken": 1},
        after="batches_moved",
        each={"batch_m2": 1},
        per_batch=("save_mean", "save_invstd"),
    ),
    "given_batches": Operation(
        "forward_batches.cl",
        "",
        ("batches_given",),
        tensors=("x",),
        result="y",
        needed=("save_mean", "save_invstd"),
        results_of="given",
        apart=True,
        per_batch=("save_mean", "save_invstd"),
    ),
    "backward_batches": replace(
        OPERATIONS["backward"],
        source="backward_batches.cl",
        results_of="backward",
        apart=True,
        fusable=(*_BEHIND, "weights"),
        resident="gradients_resident",
        split=("gradients_partial", "gradients_apply"),
        after="gradients_gathered",
        each={"batch_sums": 2},
        per_batch=("save_mean", "save_invstd"),
    ),
}
ALL = OPERATIONS | STEPS | BATCHES


def operation_of(name: str, fusion: Fusion = ALONE) -> Operation:
    """A key of ALL with what is fused with it."""
    return ALL[name] if fusion is ALONE else _fused(name, fusion)


@functools.cache
def _fused(name: str, fusion: Fusion) -> Operation:
    plain = ALL[name]
    if fusion.without:
        left = tuple(name for name in plain.tensors if name != plain.optional)
        return replace(plain, tensors=left, called="")
    if plain.optional:
        return plain
    called = plain.fusable[fusion.aux - 1] if fusion.aux else ""
    beside = plain.beside if fusion.aux == len(plain.fusable) else ""
    second = _SECOND[plain.result] if fusion.second else ""
    tensors = tuple(filter(None, (*plain.tensors, called, beside)))
    found = replace(plain, tensors=tensors, called=called, second=second)
    if not fusion.apart:
        return found
    kept = tuple(name for name in plain.made if name in plain.per_batch)
    return replace(found, after="", state=(), made=kept, gathered={})


SOURCES = {"moments_partial": "moments.cl"}  # kernels that are used from another direction's file
# One group per block: the slices are what it merges.
AFTER = {one.after for one in BATCHES.values() if one.after}
MERGES = {"moments_merge", "sums_merge", "constant_merge", "double_constant_merge", *AFTER}
# That have a kind of element: KIND_x and so on (numbers/io.clh); "to" is what is written.
TENSORS = ("x", "dy", "aux", "to")
COUNTING = {"moments_partial", "batches_partial"}  # kernels that tell how many values a slice has
_BATCHES_WRITTEN = {"batches_apply", "batches_given", "gradients_apply"}
_MOMENTS_ALONE = {"moments_partial", "batches_partial"}
_SUMS_ALONE = {"backward_partial", "gradients_partial"}
HEEDLESS = {  # defines that change nothing in some kernels: those that write no tensor, those that sum none
    "STREAM": {*_MOMENTS_ALONE, *_SUMS_ALONE, "double_partial", *MERGES},
    "FETCH": {
        "infer",
        "train_apply",
        "backward_apply",
        "double_apply",
        "batches_apply",
        "batches_given",
        "gradients_apply",
        *MERGES,
    },
    "KIND_x": MERGES,
    "KIND_dy": MERGES,
    "KIND_aux": {*_MOMENTS_ALONE, *MERGES},
    "ACT": {*_MOMENTS_ALONE, *MERGES},
    "AUX": {*_MOMENTS_ALONE, *MERGES},
    "SECOND": {*_SUMS_ALONE, *MERGES},
    "SHARED": {"infer", "batches_given", *_MOMENTS_ALONE, *_SUMS_ALONE, *MERGES},
    "KIND_to": {*_MOMENTS_ALONE, *_SUMS_ALONE, "double_partial", *MERGES},
}
