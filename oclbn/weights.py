"""Weights of batch normalizations in the files of other frameworks, in and out.

    content = weights.read("resnet50.safetensors")      # every batch normalization of a model, by name
    bn = weights.module(content["layer1.0.bn1"])        # a module that goes on as the framework's would
    weights.write("one.onnx", [weights.layer(bn, "bn")])
    weights.convert("model.safetensors", "model.npz")

Formats: `formats()`. Reading runs nothing and unpickles nothing. What is written is read back and compared, bit by bit,
before it takes the place of anything; what a format has no place for is told in notes.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl

from oclbn import conventions
from oclbn.call import values
from oclbn.errors import ModuleParameterError, ParameterError, ParameterWarning, WeightsError, warn_caller
from oclbn.files import formats as known
from oclbn.files import whole
from oclbn.files.layers import ARRAYS, FIXED, Content, Host, Layer, Note, Written, gathered, matched, same_bits
from oclbn.modules.averaging import settled_count
from oclbn.modules.batchnorm import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D
from oclbn.modules.batchnormnd import BatchNormND

__all__ = [
    "Content",
    "Layer",
    "Note",
    "Report",
    "convert",
    "formats",
    "layer",
    "load_into",
    "module",
    "read",
    "renamed",
    "write",
]

Path_ = str | os.PathLike[str]
_MODULES = {0: BatchNorm, 1: BatchNorm1D, 2: BatchNorm2D, 3: BatchNorm3D}
_MOST_SPATIAL = 8
_MOST_TOLD = 8  # losses in an error
_OURS = {"epsilon": 1e-5, "minFactor": 0.1, "estimator": "sample"}  # defaults of modules


@dataclass(frozen=True)
class Report:
    """What was written: the files, their format, how many layers, and what was not carried over."""

    files: tuple[Path, ...]
    format: str
    layers: int
    notes: tuple[Note, ...]


def formats() -> tuple[known.Format, ...]:
    """The formats that are read and written: name, title, endings, dtypes, package."""
    return known.FORMATS


def read(path: Path_, *, format: str | None = None) -> Content:
    """Every batch normalization of a file, by name, in the file's order.

    format: one of `formats()`; None: told by what the file holds. Arrays are vectors of C elements, of the file's type.
    WeightsError: the file is damaged, of no format that is known, or holds pickled objects, which are never loaded.
    MissingExtraError: a package is not installed. OSError: the file cannot be read, or is no regular file.
    """
    source = Path(path)
    whole.check_source(source)
    found = known.of_file(source) if format is None else known.by_name(format)
    codec = found.codec()
    try:
        return codec.read(source)
    except WeightsError as error:
        told = str(error) if str(source) in str(error) else f"{source}: {error}"
        if format is not None and (other := known.other_than(found, source)):
            told += f"; it looks like {other.title}, format={other.name!r}"
        raise type(error)(told) from error


def write(
    path: Path_,
    layers: Iterable[Layer] | Mapping[str, Layer],
    *,
    format: str | None = None,
    into: Path_ | None = None,
    overwrite: bool = False,
    strict: bool = False,
) -> Report:
    """Write layers to a file, whole or not at all, and read them back.

    layers: as `read` or `layer` gives them. format: one of `formats()`; None: by the path's ending. into: a file of
    that format, most often a whole model, which is copied with these values in the place of its own; layers go there by
    name, or in order where there are as many and both formats keep the network's. overwrite: files that are there may
    be replaced. strict: what the notes of the report would call lost is an error.
    WeightsError: the format cannot hold a layer, or the model has no place for it. FileExistsError.
    """
    target = Path(path)
    found = known.of_name(target) if format is None else known.by_name(format)
    given = _layers_of(layers)
    if not given:
        raise WeightsError(f"{target}: there is no layer to write")
    if found.names and len({layer.name for layer in given}) < len(given):
        twice = Counter(layer.name for layer in given).most_common(1)[0][0]
        raise WeightsError(f"{target}: two layers have the name {twice!r}; names of their own are wanted")
    given, assumed = _stating_epsilon(found, given)
    model = None if into is None else Path(into)
    if model is not None:
        whole.check_source(model)
        model.stat()
        there = read(model, format=found.name)
        _check_order(found, layers, given, there, model)
    written = found.codec().write(given, target.name, model)
    _check_names(target, written)
    if isinstance(layers, Content):
        _check_source(layers, map(target.with_name, written.files), model)
    if not overwrite:
        for name in written.files:
            if target.with_name(name).exists():
                raise FileExistsError(f"{target.with_name(name)} is there already; overwrite=True replaces it")
    notes = (*assumed, *written.notes, *_check_back(found, target, given, written, model))
    if isinstance(layers, Content):  # of another file
        notes = (*notes, *_on_training(found, given))
    if strict and (lost := gathered([(note.layer, note.text) for note in notes if note.lost], len(given))):
        more = f"\n... and {len(lost) - _MOST_TOLD} more" if len(lost) > _MOST_TOLD else ""
        raise WeightsError(f"{target} is not written, as it would lose:\n" + "\n".join(lost[:_MOST_TOLD]) + more)
    whole.replace_together({target.with_name(name): content for name, content in written.files.items()})
    return Report(tuple(map(target.with_name, written.files)), found.name, len(given), notes)


def convert(
    source: Path_,
    target: Path_,
    *,
    source_format: str | None = None,
    format: str | None = None,
    into: Path_ | None = None,
    overwrite: bool = False,
    strict: bool = False,
) -> Report:
    """Write the layers of one file into another one, as `read` and `write` do; their errors.

    The report has the notes of both.
    """
    content = read(source, format=source_format)
    if not content:
        raise WeightsError(f"{content.source} has no batch normalization")
    report = write(target, content, format=format, into=into, overwrite=overwrite, strict=strict)
    return replace(report, notes=(*content.notes, *report.notes))


def _check_source(layers: Content, targets: Iterable[Path], model: Path | None) -> None:
    """WeightsError where the file that layers are of, or one beside it, would be replaced by them alone."""
    source = Path(layers.source)
    beside = [source, *(source.with_suffix(ending) for ending in known.by_name(layers.format).companions)]
    own = [path for path in beside if path.exists()]
    for target in targets:
        if target.exists() and any(target.samefile(path) for path in own):
            if model is not None and source.exists() and model.samefile(source):
                continue  # which is kept as a whole
            raise WeightsError(
                f"{target} is of the source, and would keep nothing of it but batch normalizations: give another name, "
                "or the source as `into`"
            )


def module(
    layer: Layer, nd: int = 2, *, name: str | None = None, queue: cl.CommandQueue | None = None, **options: Any
) -> BatchNormND:
    """A module with a layer's values that goes on as the framework's own would, in training and in evaluation.

    Where modules do not train as that framework does (`followed` of its convention is False, as of Darknet's), training
    leaves the running statistics as they are, unless update_running=None is given.

    nd: number of spatial axes: 0 for (N, C), 2 for images. name: of the module; None: the layer's. options: of the
    module, instead of what the layer and its framework's convention say (epsilon, initFactor, minFactor, estimator),
    or beside that (axis, activation, dtype, ...).
    """
    _check_layer(layer)
    nd = values.whole("nd", nd, 0, _MOST_SPATIAL)
    said = _options(layer) | {"name": layer.name if name is None else name, "queue": queue} | options
    if layer.scale is None and layer.bias is None:
        said.setdefault("affine", False)
    if layer.mean is None:
        said.setdefault("running", False)
        if not said["running"]:
            said = {key: value for key, value in said.items() if key not in ("cumulative", "estimator")}
    made: BatchNormND
    made = _MODULES[nd](layer.channels, **said) if nd in _MODULES else BatchNormND(nd, layer.channels, **said)
    _fill(made, layer)
    return made


def load_into(module: BatchNormND, layer: Layer) -> None:
    """Give a module a layer's values, and the epsilon, factors and count that the file states.

    All or nothing. A missing scale becomes 1, a missing bias 0. What the file does not state stays as it is, and the
    estimator of the running variance stays in any case; where the layer's framework has another default than the
    module, which has oclbn's own, a ParameterWarning says so: `module` makes one with the framework's.
    ModuleParameterError: the layer has another number of channels, or one of the two has running statistics alone.
    """
    if not isinstance(module, BatchNormND):
        raise ParameterError(f"module is {values.kind_of(module)}; a BatchNorm module of oclbn's is wanted")
    _check_layer(layer)
    if layer.channels != module.maps:
        raise ModuleParameterError(f"{module}: it has {module.maps} channels; {layer} has {layer.channels}")
    if layer.mean is None and module.running:
        raise ModuleParameterError(f"{module}: it has running statistics; {layer} has none")
    if layer.mean is not None and not module.running:
        raise ModuleParameterError(
            f"{module}: it has no running statistics; {layer} has some, which dataclasses.replace(layer, mean=None, "
            "var=None) leaves away"
        )
    if not module.affine and any(
        not (np.asarray(array, np.float64) == FIXED[key]).all() for key, array in layer.arrays.items() if key in FIXED
    ):
        raise ModuleParameterError(f"{module}: it is not affine; {layer} has a scale and a bias that are not 1 and 0")
    stated = {} if layer.epsilon is None else {"epsilon": layer.epsilon}
    if layer.factor is not None or layer.cumulative:
        stated |= {key: value for key, value in _options(layer).items() if key in ("initFactor", "minFactor")}
    with module.lock:
        before = {key: getattr(module, key) for key in stated}
        try:
            for key, value in stated.items():
                setattr(module, key, value)
            _fill(module, layer)
        except BaseException:
            for key, value in before.items():
                setattr(module, key, value)
            raise
    _warn_of_defaults(module, layer, stated)


def _warn_of_defaults(module: BatchNormND, layer: Layer, stated: Mapping[str, Any]) -> None:
    """A ParameterWarning where the layer's framework has other defaults, and the module has those of oclbn."""
    wanted = {key: value for key, value in _options(layer).items() if key in _OURS and key not in stated}
    ours = {key: getattr(module, key) for key in wanted if module.running or key == "epsilon"}
    differ = [key for key, value in ours.items() if value == _OURS[key] != wanted[key]]
    if differ:
        name = conventions.named(layer.convention).name
        told = ", ".join(f"{key} {ours[key]!r} where {name} has {wanted[key]!r}" for key in differ)
        warn_caller(
            f"{module}: it keeps {told}, which {layer} does not state: set it, or let weights.module(layer) make the "
            "module",
            ParameterWarning,
        )


def layer(module: BatchNormND, name: str | None = None) -> Layer:
    """What a module holds, for `write`. name: None: the module's."""
    if not isinstance(module, BatchNormND):
        raise ParameterError(f"module is {values.kind_of(module)}; a BatchNorm module of oclbn's is wanted")
    arrays: dict[str, Host] = {}
    for key in ARRAYS:
        array = getattr(module, key) if module.running or key in FIXED else None
        if array is not None and (module.affine or key not in FIXED):
            arrays[key] = array.get().ravel()
    cumulative = module.initFactor == 1.0 and module.minFactor == 0.0
    return Layer(
        name if name is not None else module.name or "",
        **arrays,
        epsilon=module.epsilon,
        factor=None if cumulative else module.minFactor,
        cumulative=cumulative,
        batches=module.numOfProps if module.running else None,
        convention="pytorch" if not module.running or module.estimator == "sample" else "keras",
    )


def renamed(layer: Layer, name: str) -> Layer:
    """The same layer by another name."""
    return replace(layer, name=name)


def _options(layer: Layer) -> dict[str, Any]:
    """What a module of the layer's framework would be made with."""
    convention = conventions.named(layer.convention)
    if convention.followed and layer.factor is not None:
        options = convention.options(convention.momentum_for(layer.factor))
    else:
        options = convention.options(evaluation=not convention.followed)
    if layer.epsilon is not None:
        options["epsilon"] = layer.epsilon
    return options | ({"initFactor": 1.0, "minFactor": 0.0} if layer.cumulative else {})


def _fill(module: BatchNormND, layer: Layer) -> None:
    """All values and the counter, or none and an error."""
    given: dict[str, Any] = {name: np.full(layer.channels, value) for name, value in FIXED.items()}
    given |= layer.arrays
    if not module.running:
        given = {name: array for name, array in given.items() if name in FIXED}
    with module.lock:
        module._take_values(given)
        if module.running:
            unknown = settled_count(module.initFactor, module.minFactor)
            module.numOfProps = unknown if layer.batches is None else layer.batches


def _layers_of(layers: Any) -> tuple[Layer, ...]:
    if isinstance(layers, Layer | BatchNormND):
        raise ParameterError(f"layers is one {type(layers).__name__}; several are wanted: [layer]")
    given = tuple(layers.values() if isinstance(layers, Mapping) else layers)
    for one in given:
        _check_layer(one, "layers has ")
    return given


def _check_layer(layer: Any, told: str = "layer is ") -> None:
    """ParameterError for what is no Layer, with how to have one."""
    if isinstance(layer, Layer):
        return
    advice = "content[name] of what weights.read gives is one"
    if isinstance(layer, Content):
        advice = f"a file's content has several: content[{next(iter(layer), 'name')!r}]"
    elif isinstance(layer, BatchNormND):
        advice = "weights.layer(bn, name) makes one of a module"
    raise ParameterError(f"{told}{values.kind_of(layer)}; a Layer is wanted: {advice}")


def _stating_epsilon(found: known.Format, layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], list[Note]]:
    """Layers whose epsilon is not known, with their framework's default where that of the file's readers is another."""
    made, notes = [], []
    for one in layers:
        if one.epsilon is None and found.convention:
            own, other = conventions.named(one.convention), conventions.named(found.convention)
            if own.epsilon != other.epsilon:
                notes.append(Note(one.name, f"epsilon is not known: {own.name}'s default is taken, {own.epsilon:g}"))
                one = replace(one, epsilon=own.epsilon)
        made.append(one)
    return tuple(made), notes


def _check_order(
    found: known.Format,
    layers: Iterable[Layer] | Mapping[str, Layer],
    given: Sequence[Layer],
    there: Content,
    model: Path,
) -> None:
    """WeightsError where layers would be paired in order, and a format sorts them by name."""
    if len(given) == 1 or all(layer.name in there for layer in given):
        return
    files = [(found, there), *([(known.by_name(layers.format), layers)] if isinstance(layers, Content) else [])]
    sorting = [form.title for form, content in files if not (form.ordered and content.ordered)]
    if sorting:
        lacking = next(layer.name for layer in given if layer.name not in there)
        raise WeightsError(
            f"{model} has no layer {lacking!r}, and layers cannot be paired in order, as {sorting[0]} does not keep "
            "the network's: give them the names that it has (weights.renamed, or --rename OLD=NEW): "
            f"{', '.join(map(repr, list(there)[:8]))}"
            f"{', ...' if len(there) > 8 else ''}"
        )


def _check_names(target: Path, written: Written) -> None:
    """No writer puts a file anywhere but beside the one that was asked for.

    WeightsError: that one is a link and another one is none, so that the file it leads to would lose its companion.
    """
    for name in written.files:
        if Path(name).name != name:
            raise AssertionError(f"a file beside {target} is to be called {name!r}")
        if target.is_symlink() and not target.with_name(name).is_symlink():
            raise WeightsError(
                f"{target} is a link to {target.resolve()}, and {name}, which would be written with it, is no link: "
                "name the file that it leads to, or remove the link"
            )


def _check_back(
    found: known.Format, target: Path, given: Sequence[Layer], written: Written, into: Path | None
) -> list[Note]:
    """WeightsError unless what was written reads as what was given, but for what the notes tell of.

    Returns notes of numbers and names that read otherwise, of which none has told.
    """
    with tempfile.TemporaryDirectory(prefix="oclbn-") as folder:
        for name, content in written.files.items():
            Path(folder, name).write_bytes(content)
        back = found.codec().read(Path(folder, target.name)).layers
    lost = {(note.layer, note.text.split(" ", 1)[0]) for note in written.notes if note.lost}
    by_name = into is not None or found.names
    notes: list[Note] = []
    for one, same in matched(given, back, target) if by_name else zip(given, back, strict=True):
        for name, array in one.arrays.items():
            there = getattr(same, name)
            if (one.name, name) in lost:
                continue
            with np.errstate(invalid="ignore"):  # of NaN that signals
                kept = there is not None and same_bits(there.astype(array.dtype), array)
            if not kept:
                raise WeightsError(
                    f"{target}: {name} of {one} reads differently from what was written, so that nothing was kept; "
                    f"this is a fault of oclbn or of {found.package or 'NumPy'}: please report it"
                )
        if (one.name, "epsilon") not in lost and _differ(one.epsilon, same.epsilon):
            text = f"epsilon is {one.epsilon:g}, and {same.epsilon:g} stands in the file"
            notes.append(Note(one.name, text, lost=True))
        if (one.name, "a") not in lost and _differ(one.factor, same.factor):
            text = f"a new batch weighs {one.factor:g}, and {same.factor:g} by what stands in the file"
            notes.append(Note(one.name, text, lost=True))
        changed = into is None and found.names and one.name != same.name
        if changed and not any(note.layer == one.name and repr(same.name) in note.text for note in written.notes):
            text = f"it is called {same.name!r} in {target.name}: its own name has no place there"
            notes.append(Note(one.name, text))
    return notes


def _differ(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and not math.isclose(one, other, rel_tol=1e-6)


def _on_training(found: known.Format, layers: Iterable[Layer]) -> Iterator[Note]:
    """What plays no part in evaluation, and is otherwise where training goes on in another framework."""
    for one in layers:
        if one.batches is not None and "batches" not in found.keeps:
            yield Note(one.name, f"that it has seen {one.batches:,} batches has no place")
        if found.convention and one.mean is not None:
            own, other = conventions.named(one.convention), conventions.named(found.convention)
            if own.trains and other.trains and own.estimator != other.estimator:
                by = {"sample": "m - 1", "population": "m"}
                text = f"{own.name}'s running variance is divided by {by[str(own.estimator)]}, {other.name}'s by "
                yield Note(one.name, f"{text}{by[str(other.estimator)]}: where training goes on it moves by a little")
