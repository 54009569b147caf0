"""Names that people bring from elsewhere, and what they are here: one table, for errors and for a page of the guide.

Errors keep the types that Python gives them, TypeError, AttributeError and ImportError, so that hasattr, copying and
pickling work; only their words are ours.
"""

from __future__ import annotations

import difflib
import dis
import functools
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Name(NamedTuple):
    """A thing by its name here and elsewhere.

    Each column has names with spaces between them, () behind those that are called. Without a name here there is no
    such thing, and the note says what there is.
    """

    here: str
    pytorch: str = ""
    keras: str = ""
    puzzlelib: str = ""  # and other libraries
    note: str = ""

    @property
    def foreign(self) -> set[str]:
        """The names elsewhere, as one word each."""
        return {word.removesuffix("()") for column in self[1:4] for word in column.split()}

    @property
    def own(self) -> set[str]:
        """The names here, as one word each."""
        return set(re.findall(r"\w+", self.here))


# Of constructors.
OPTIONS = (
    Name("maps", "num_features", "", "maps size channels num_channels", "The channels, of BatchNorm1D, 2D and 3D."),
    Name("size", "num_features", "", "size maps channels num_channels", "The channels, of BatchNorm."),
    Name("epsilon", "eps", "epsilon", "epsilon", "1e-5 if not given, as in PyTorch; 1e-3 in Keras."),
    Name(
        "minFactor",
        "momentum",
        "momentum",
        "minFactor",
        "PyTorch's momentum is the weight of the new batch: `initFactor=0, minFactor=momentum`. Keras's is that of the "
        "old average: `initFactor=0, minFactor=1 - momentum`. PyTorch's None: `cumulative=True`.",
    ),
    Name("cumulative", note="All batches weigh alike, as with PyTorch's `momentum=None`: `initFactor=1, minFactor=0`."),
    Name(
        "estimator",
        "unbiased correction",
        "",
        "",
        "Of the running variance: PyTorch's is the sample's, Keras's the population's.",
    ),
    Name("renorm", "", "renorm renorm_clipping", "", "Batch renormalization, (r_max, d_max); Keras 2 has `renorm`."),
    Name("groups", note="Ghost batches: so many are made of the samples of each batch."),
    Name("affine", "affine", "center scale", "affine", "Scale and bias are trained both, or neither."),
    Name(
        "sscale",
        "",
        "gamma_initializer",
        "sscale",
        "The first scale is drawn from N(1, sscale): 0.01 here, 0 in PyTorch and Keras.",
    ),
    Name(
        "",
        "",
        "beta_initializer moving_mean_initializer moving_variance_initializer",
        "",
        "Assign the values: `bn.bias = values`, `bn.mean = values`, `bn.var = values`.",
    ),
    Name(
        "",
        "",
        "gamma_regularizer beta_regularizer gamma_constraint beta_constraint",
        "",
        'Add to `bn.vars["scale"].grad` before `updateParams`, or change `bn.scale` after it.',
    ),
    Name(
        "frozen_statistics",
        "",
        "trainable",
        "",
        "Keras's `trainable=False` is `frozen_statistics=True` without calls of `updateParams`.",
    ),
    Name("running", "track_running_stats", "", "", "False: there are none, and evaluation uses the batch's own."),
    Name(
        "use_running",
        "use_input_stats",
        "",
        "use_running_average test_local_stats",
        "Running statistics or the batch's own; None: as the mode says. PyTorch's and Haiku's say the opposite.",
    ),
    Name("update_running", note="Whether a batch moves the running statistics; None: as the mode says."),
    Name("axis", "", "axis data_format", "channels_last", "Of the channels: 1; -1 is channels last."),
    Name("queue", "device", "", "", 'A pyopencl.CommandQueue, as `oclbn.device.queue_for("gpu")` makes it.'),
    Name(
        "dtype",
        "dtype",
        "dtype",
        "",
        "Of data and results: float32, float64, float16 or bfloat16; `calcMode` changes it. Parameters stay float32.",
    ),
    Name(
        "",
        "",
        "renorm virtual_batch_size",
        "",
        "Parts of a batch are normalised together by `oclbn.functional`: statistics, merge, normalize.",
    ),
    Name("", "", "synchronized", "", "`oclbn.sync.SyncBatchNorm` makes a module one over devices and ranks."),
)

# Attributes and methods of a module.
ATTRIBUTES = (
    Name("scale", "weight", "gamma", "scale", 'Its gradient is `bn.vars["scale"].grad`.'),
    Name("bias", "bias", "beta", "bias", 'Its gradient is `bn.vars["bias"].grad`.'),
    Name("mean", "running_mean", "moving_mean", "mean", "The running mean; the last batch's is `savemean`."),
    Name(
        "var",
        "running_var",
        "moving_variance",
        "var",
        "The running variance, of samples (divided by m - 1) as in PyTorch; Keras's is most often the population's: "
        '`estimator="population"`.',
    ),
    Name("savemean saveinvvar", "", "", "savemean saveinvvar", "Of the last batch: its mean, and 1/√(var + ε)."),
    Name("maps", "num_features", "", "maps"),
    Name("epsilon", "eps", "epsilon", "epsilon"),
    Name(
        "minFactor",
        "momentum",
        "momentum",
        "minFactor",
        "PyTorch's momentum is minFactor with an initFactor of 0, Keras's is 1 - minFactor.",
    ),
    Name("numOfProps", "num_batches_tracked", "", "numOfProps", "Training batches; writable."),
    Name("train", "training", "", "train", "True or False, not a method; `trainMode()` and `evalMode()` set it."),
    Name("trainMode()", "train()", "", "trainMode()", "Switches to training; drops what the last call left."),
    Name("evalMode()", "eval()", "", "evalMode()", "Switches to evaluation; drops what the last call left."),
    Name("frozen_statistics", "", "trainable", "", "True: running statistics are used and stay."),
    Name(
        "running", "track_running_stats", "", "", "Of the constructor; it stays. Whether there are running statistics."
    ),
    Name("bn(data)", "forward()", "call()", "updateData()", "The module itself is called."),
    Name(
        "backward(grad)",
        "",
        "",
        "backward() updateGrad() accGradParams()",
        "There is no automatic differentiation: it is called with the gradient of the output.",
    ),
    Name("updateParams(-rate)", "step()", "", "updateParams()", "Adds rate * gradient: descends with a negative one."),
    Name("zeroGradParams()", "zero_grad()", "", "zeroGradParams()"),
    Name("vars", "parameters() named_parameters()", "trainable_variables trainable_weights weights", "vars"),
    Name("attrs", "buffers() named_buffers()", "non_trainable_variables non_trainable_weights", "attrs"),
    Name("save(path)", "state_dict()", "save_weights() get_weights()", "save()", "As bytes without a path."),
    Name(
        "load(path)",
        "load_state_dict()",
        "load_weights() set_weights()",
        "load()",
        "Arrays are assigned, in any shape: `bn.scale = values`, likewise bias, mean and var.",
    ),
    Name(
        "calcMode()",
        "float() double() half() bfloat16() type() dtype",
        "dtype",
        "calcMode()",
        'To np.float32, np.float64, np.float16 or "bfloat16", of data and results: parameters of halves are float32.',
    ),
    Name("queue", "to() cuda() cpu() device", "", "", "A module stays on the queue that it was made with."),
    Name(
        "affine",
        "requires_grad_()",
        "center",
        "affine",
        "The constructor's; it stays. Or `backward(grad, updParamGrads=False)`.",
    ),
    Name(
        "mean, var and numOfProps",
        "reset_running_stats()",
        "",
        "",
        "Assign to begin again: `bn.mean, bn.var, bn.numOfProps = np.zeros(C), np.ones(C), 0`.",
    ),
    Name("numOfParams()", "", "count_params()", "numOfParams()"),
)

# Of functions and of methods.
ARGUMENTS = (
    Name("x", "input", "x inputs", "data", "By position."),
    Name("dy", "grad_output grad_out", "", "grad", "By position, behind x."),
    Name("scale", "weight", "gamma scale", "scale"),
    Name("bias", "bias", "beta offset", "bias"),
    Name("running_mean", "running_mean", "moving_mean", "mean", "Of training, where it moves in place."),
    Name("running_var", "running_var", "moving_variance", "var", "Of training, where it moves in place."),
    Name("mean", "running_mean", "moving_mean mean", "mean", "Of inference, which does not change it."),
    Name("var", "running_var", "moving_variance variance", "var", "Of inference, which does not change it."),
    Name("save_mean", "save_mean", "", "saveMean savemean"),
    Name("save_invstd", "save_invstd", "", "saveInvVar saveinvvar", "1/√(var + ε), as training returns it."),
    Name("epsilon", "eps", "variance_epsilon epsilon", "epsilon"),
    Name(
        "factor",
        "momentum",
        "momentum",
        "factor",
        "PyTorch's momentum is factor, the weight of the new batch; Keras's is 1 - factor.",
    ),
    Name(
        "",
        "training",
        "training",
        "test",
        "batch_norm_train uses the batch's statistics, batch_norm_infer those that it is given; modules have "
        "trainMode() and evalMode().",
    ),
    Name(
        "",
        "dtype",
        "dtype",
        "dtype",
        "gpuarray.to_gpu keeps the type: give it `np.asarray(values, np.float32)`.",
    ),
    Name("out", "out grad_input", "", "out", "An array of x's shape that the result is written to."),
    Name("learnRate", "lr", "learning_rate", "learnRate", "Of updateParams, by position; it descends where negative."),
    Name("axis", "dim", "axis data_format axes", "channels_last", "Of the channels: 1; -1 is channels last."),
    Name("queue", "device", "device", "", 'A pyopencl.CommandQueue, as `oclbn.device.queue_for("gpu")` makes it.'),
    Name(
        "mask",
        "padding_mask key_padding_mask",
        "mask",
        "",
        "True at the positions that count; PyTorch's padding masks are true at the others.",
    ),
    Name(
        "",
        "",
        "mask",
        "lengths outside",
        "Masks and lengths are for training, inference and backward, the steps of a batch in parts, and a module's "
        "call; not for renormalization, groups=, second derivatives, nor over devices and ranks.",
    ),
)

# In oclbn and its modules.
CONTENTS = (
    Name("BatchNorm", "BatchNorm1d", "BatchNormalization", "BatchNorm", "For (N, C)."),
    Name("BatchNorm1D", "BatchNorm1d", "BatchNormalization", "BatchNorm1D", "For (N, C, L)."),
    Name("BatchNorm2D", "BatchNorm2d", "BatchNormalization", "BatchNorm2D", "For (N, C, H, W)."),
    Name("BatchNorm3D", "BatchNorm3d", "BatchNormalization", "BatchNorm3D", "For (N, C, D, H, W)."),
    Name("InstanceNorm1D", "InstanceNorm1d", "", "", "For (N, C, L)."),
    Name("InstanceNorm2D", "InstanceNorm2d", "", "InstanceNorm2D", "For (N, C, H, W); without running statistics."),
    Name("InstanceNorm3D", "InstanceNorm3d", "", "", "For (N, C, D, H, W)."),
    Name("GroupNorm", "GroupNorm", "GroupNormalization", "", "For (N, C, ...); groups first, as in PyTorch."),
    Name("LayerNorm", "LayerNorm", "LayerNormalization", "", "Over the last axes, whose shape is given."),
    Name("functional.batch_norm_train", "batch_norm", "", "batchNormNd", "With the batch's statistics."),
    Name("functional.batch_norm_infer", "batch_norm", "batch_normalization", "batchNormNd", "With given statistics."),
    Name("functional.batch_norm_backward", "native_batch_norm_backward", "", "batchNormNdBackward"),
    Name("functional.moments", "var_mean", "moments"),
    Name("sync.SyncBatchNorm", "SyncBatchNorm", "", "", "Made of a module and a group of devices or ranks."),
    Name(
        "sync.Group.sum",
        "DistributedDataParallel all_reduce",
        "",
        "",
        "Gradients of other layers, summed over a group where the program says so.",
    ),
    Name("BatchNorm2D.recalibrate", "update_bn", "", "", "Running statistics from a pass over data; a method."),
    Name(
        "BatchNorm2D.fold_into",
        "fuse_conv_bn_eval fuse_conv_bn_weights fuse_linear_bn_eval",
        "",
        "",
        "NumPy weights of the layer before it; a method.",
    ),
    Name("functional.merge", "SyncBatchNorm", "", "", "Statistics of the parts of a batch, as those of all of it."),
    Name("gpuarray.to_gpu", "tensor as_tensor from_numpy", "convert_to_tensor", "to_gpu array asarray"),
    Name("gpuarray.Array", "Tensor", "Variable", "GPUArray ndarray", "pyopencl.array.Array."),
)

# Of operations: what functions (prepare, explain) and the command line (bench) call the same.
OPERATIONS = (
    Name("train", "forward training", "fit", "batch_norm_train"),
    Name("infer", "inference eval evaluation", "predict", "batch_norm_infer"),
    Name("backward", "gradient", "", "batch_norm_backward"),
    Name("forward", "train training", "fit", "batch_norm_train"),
    Name("inference", "infer eval evaluation", "predict", "batch_norm_infer"),
)


def hints(names: Sequence[Name], foreign: str, here: Collection[str] | None = None) -> str:
    """What is said of a name that there is not, "; did you mean ...?" or nothing.

    here: the names that there are; None: whatever the table knows.
    """
    found = [name for name in names if foreign in name.foreign and (here is None or name.here in (*here, ""))]
    if found:
        own = [name.here for name in found if name.here]
        said = f"did you mean {' or '.join(own)}?" if own else "there is none here."
        notes = [f"{name.here}: {name.note}" if len(own) > 1 else name.note for name in found if name.note]
        return " ".join([f"; {said}", *notes]).replace("`", "")
    ours = here or ()
    known = {word for name in names if name.here in ours for word in name.foreign}
    near = nearest(foreign, [*ours, *sorted(known)])
    if near in known and near not in ours:
        return hints(names, near, here)  # a slip of the pen in a name of another library
    return f"; did you mean {near}?" if near else ""


def nearest(word: str, known: Collection[str], likeness: float = 0.6) -> str | None:
    """The one of these that was most likely meant, whatever the letters' case; None: none is near.

    likeness: the least that counts, from 0 to 1, as difflib has it.

    Digits are no slips: BatchNorm4D is not BatchNorm3D.
    """
    digits = re.findall(r"\d", word)
    lower = {one.lower(): one for one in reversed([*known]) if re.findall(r"\d", one) == digits}
    found = difflib.get_close_matches(word.lower(), lower, 1, likeness)
    return lower[found[0]] if found else None


def refuse(call: Callable[..., Any], given: Sequence[Any], options: Mapping[str, Any]) -> None:
    """TypeError in words of ours where `call` cannot be called so; asked only once that has failed."""
    signature = inspect.signature(call)
    try:
        signature.bind(*given, **options)
    except TypeError as error:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        method = next(iter(signature.parameters), None) == "self"
        takes = [name for name, one in signature.parameters.items() if one.kind in kinds and name != "self"]
        label = _label(call.__name__, given[0] if method and given else None)
        if not signature.parameters:
            raise TypeError(f"{label} takes no arguments") from None
        unknown = next((name for name in options if name not in takes), None)
        if unknown is None:
            raise TypeError(f"{label}{_too_many(signature, given) or f': {error}'}") from None
        if unknown in signature.parameters:
            raise TypeError(f"{label} takes {unknown} by position") from None
        table = OPTIONS if call.__name__ == "__init__" else ARGUMENTS
        known = takes if table is OPTIONS else [*signature.parameters]
        hint = hints(table, unknown, known) or f"; it takes {', '.join(takes) or 'nothing by name'}"
        raise TypeError(f"{label} takes no {unknown!r}{hint}") from None


def refusing(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same call, that refuses arguments which do not fit it in words of ours: see `refuse`."""

    @functools.wraps(call)
    def told(*given: _P.args, **options: _P.kwargs) -> _T:
        try:
            return call(*given, **options)
        except TypeError:
            refuse(call, given, options)
            raise

    return told


def _too_many(signature: inspect.Signature, given: Sequence[Any]) -> str:
    """What is said of more arguments by position than there are, or nothing."""
    parameters = {name: one.kind for name, one in signature.parameters.items()}
    if inspect.Parameter.VAR_POSITIONAL in parameters.values():
        return ""
    named = [name for name, kind in parameters.items() if kind is inspect.Parameter.KEYWORD_ONLY]
    placed = [
        name for name in parameters if name not in named and parameters[name] is not inspect.Parameter.VAR_KEYWORD
    ]
    if len(given) <= len(placed):
        return ""
    method = placed[:1] == ["self"]
    by_keyword = f"; by keyword: {', '.join(named)}" if named else ""
    return f" takes by position {', '.join(placed[method:])}, and was given {len(given) - method} values{by_keyword}"


def absent(whole: str, name: str, names: Sequence[Name], more: str = "") -> AttributeError:
    """The error of a name that `whole` has not. Where it has a hint, Python is kept from adding another one."""
    hint = hints(names, name) or more
    message = f"{whole} has no attribute {name!r}{hint}"
    return AttributeError(message, name=name, obj=None) if hint else AttributeError(message)


def lacking(module: str, meant: Callable[[str], str | None] | None = None) -> Callable[[str], NoReturn]:
    """A module's __getattr__, which Python asks for what is not there.

    meant: says which of the module's names was most likely meant, None: none; not given: the nearest one.
    """

    def missing(name: str) -> NoReturn:
        parts = [part for part in ("functional", "gpuarray", "device") if name in _public(f"oclbn.{part}")]
        more = f"; did you mean oclbn.{parts[0]}.{name}?" if parts else ""
        hint = hints(CONTENTS, name) or more
        if not hint and (near := meant(name) if meant else nearest(name, _public(module))):
            hint = more = f"; did you mean {near}?"
        if hint and f"{module}.{name}" not in sys.modules and _imports(sys._getframe(1)):
            raise ImportError(f"cannot import name {name!r} from {module!r}{hint}", name=module)
        raise absent(f"module {module!r}", name, CONTENTS, more)

    return missing


def _imports(frame: FrameType) -> bool:
    """Whether a frame is at the import of `from module import name`.

    Python would put an ImportError without a hint in the place of an AttributeError there. (It has looked for a
    submodule of that name by then, with hasattr, which wants the AttributeError.)
    """
    at = frame.f_lasti
    return at >= 0 and dis.opname[frame.f_code.co_code[at]] == "IMPORT_FROM"


def _public(module: str) -> Collection[str]:
    return getattr(sys.modules.get(module), "__all__", ())


def _label(name: str, self: Any) -> str:
    """A call as its caller writes it."""
    if self is None:
        return f"{name}()"
    kind = type(self).__name__
    return {"__init__": f"{kind}()", "__call__": f"a call of a {kind}"}.get(name, f"{kind}.{name}()")
