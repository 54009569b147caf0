"""MatConvNet's networks in MAT-files: SimpleNN and DagNN, as variables of their own or within one, as "net".

    SimpleNN: layers, a cell of structs; of type 'bnorm': weights {gamma, beta, moments}, epsilon, learningRate;
              of old filters and biases in the place of weights, without moments
    DagNN:    layers, an array of structs: name, type 'dagnn.BatchNorm', params {names}, block.epsilon;
              params, an array of structs: name, value, learningRate

moments is (C, 2): the mean, and the *standard deviation* sqrt(variance + epsilon), which is what is averaged in
training and divided by in evaluation: vl_nnbnorm's help and code say so, and so do its importers. The third
learningRate, of the moments, is the weight of a new batch. Where no epsilon is stated it is 1e-5 (vl_simplenn_tidy,
dagnn.BatchNorm), which changes no evaluation, as the deviation has it already.

So a variance is the square of what is there less epsilon, in float64. A float32 of that does not come back through a
float32 deviation, so files that are written here have it once more, as `variance` of the layer, which MatConvNet passes
over; it counts as long as it gives the deviation that is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oclbn.errors import WeightsError
from oclbn.files.formats import mat5
from oclbn.files.formats.mat5 import Matrix
from oclbn.files.layers import Content, Host, Layer, Note, Written, fitted, fitted_array, matched, same_bits

_EPSILON = 1e-5
_ALLOWED = (np.dtype(np.float32), np.dtype(np.float64))
_SIMPLE = ("name", "type", "weights", "filters", "biases", "epsilon", "learningRate", "variance")
_MOMENTS_RATE = 2  # which of the learning rates is of the moments


@dataclass(frozen=True)
class _Found:
    """A layer of a file, and where its numbers are."""

    name: str
    scale: Matrix
    bias: Matrix
    moments: Matrix | None
    epsilon: Matrix | None
    rate: Matrix | None
    rate_place: int
    variance: Matrix | None


def claims(path: Path, head: bytes) -> bool:
    return mat5.claims(head)


def read(path: Path) -> Content:
    with mat5.opened(path) as file:
        layers, notes = [], []
        for one in _found(file):
            layer, more = _layer(path, one)
            layers.append(layer)
            notes += more
        objects = [name for name, one in file.variables.items() if one.type == mat5.OPAQUE]
    if not layers:
        text = "it has no layer of MatConvNet's types bnorm or dagnn.BatchNorm"
        if objects:
            text += f"; {', '.join(objects)} is an object of MATLAB's: save(FILE, '-struct', 'S') of S = net.saveobj()"
        notes = [Note("", text)]
    return Content("matconvnet", str(path), tuple(layers), tuple(notes))


def write(layers: Sequence[Layer], name: str, into: Path | None) -> Written:
    if into is not None:
        return _replaced(layers, name, into)
    notes: list[Note] = []
    cells = []
    for layer in layers:
        fit, more = fitted(layer, _ALLOWED, "MATLAB's arrays")
        notes += [*more, *_untold(layer)]
        if layer.epsilon is None:
            notes.append(Note(layer.name, f"its epsilon is not known: {_EPSILON:g} is written"))
        cells.append(_struct(fit))
    return Written({name: mat5.written({"layers": cells, "meta": {"writer": "oclbn"}})}, tuple(notes))


def _untold(layer: Layer) -> Iterator[Note]:
    if layer.cumulative:
        yield Note(layer.name, "all batches weigh alike, which MatConvNet's learning rate of moments cannot say", True)


def _struct(layer: Layer) -> dict[str, Any]:
    """A layer as SimpleNN has it."""
    any_array = next(iter(layer.arrays.values()))
    scale = np.ones_like(any_array) if layer.scale is None else layer.scale
    bias = np.zeros_like(any_array) if layer.bias is None else layer.bias
    epsilon = _EPSILON if layer.epsilon is None else float(layer.epsilon)
    weights = [scale.reshape(-1, 1), bias.reshape(-1, 1)]
    made: dict[str, Any] = {"type": "bnorm", "name": layer.name, "weights": weights}
    made["epsilon"] = np.array([[epsilon]])
    if layer.factor is not None:
        made["learningRate"] = np.array([[1.0, 1.0, layer.factor]])
    if layer.mean is not None and layer.var is not None:
        dtype = np.result_type(layer.mean, layer.var)
        deviation = _deviation(layer.var, epsilon, dtype)
        weights.append(np.stack([layer.mean.astype(dtype), deviation], axis=1))
        made["variance"] = layer.var.reshape(-1, 1)
    return made


def _deviation(var: Host, epsilon: float, dtype: np.dtype[Any]) -> Host:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.sqrt(var.astype(np.float64) + epsilon).astype(dtype))


def _same(one: Host, other: Host) -> Any:
    """Where numbers are the same, NaN as well."""
    return (one == other) | (np.isnan(one) & np.isnan(other))


def _variance(deviation: Host, epsilon: float) -> Host | None:
    """Variances that give these deviations with this epsilon, to the last bit; None: there are none.

    The square less epsilon does, or a neighbour of it, but where a deviation is far below epsilon's root.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        first = deviation.astype(np.float64) ** 2 - epsilon
        found = first
        for towards in (-np.inf, np.inf):
            right = _same(_deviation(found, epsilon, deviation.dtype), deviation)
            found = np.where(right, found, np.nextafter(first, towards))
        right = _same(_deviation(found, epsilon, deviation.dtype), deviation)
    return found if right.all() else None


def _found(file: mat5.MatFile) -> list[_Found]:
    """All layers of all networks of a file, in their order."""
    networks = []
    variables = file.variables
    if "layers" in variables:
        networks.append(("", variables["layers"], variables.get("params")))
    for name, variable in variables.items():
        if variable.type == mat5.STRUCT and variable.count == 1 and name not in ("layers", "params"):
            fields = next(variable.structs(("layers", "params")), {})
            if "layers" in fields:
                networks.append((f"{name}/", fields["layers"], fields.get("params")))
    networks = [one for one in networks if one[1].type in (mat5.CELL, mat5.STRUCT)]
    found: list[_Found] = []
    for prefix, layers, params in networks:
        prefix = prefix if len(networks) > 1 else ""
        if layers.type == mat5.CELL:
            found += _simple(file, layers, prefix)
        else:
            found += _dag(file, layers, params, prefix)
    return found


def _simple(file: mat5.MatFile, layers: Matrix, prefix: str) -> Iterator[_Found]:
    for place, cell in enumerate(layers.cells()):
        if cell.type != mat5.STRUCT or cell.count != 1:
            continue
        fields = next(cell.structs(_SIMPLE), {})
        if "type" not in fields or fields["type"].text() != "bnorm":
            continue
        name = prefix + ((fields["name"].text() if "name" in fields else "") or f"layer{place + 1}")
        if "weights" in fields:
            weights = list(fields["weights"].cells())
        else:
            weights = [fields[key] for key in ("filters", "biases") if key in fields]
        if not 2 <= len(weights) <= 3:
            raise WeightsError(f"{file.path}: layer {name!r} has {len(weights)} weights; 2 or 3 are wanted")
        moments = weights[2] if len(weights) > 2 and weights[2].count else None
        rate = fields.get("learningRate")
        yield _Found(
            name, weights[0], weights[1], moments, fields.get("epsilon"), rate, _MOMENTS_RATE, fields.get("variance")
        )


def _dag(file: mat5.MatFile, layers: Matrix, params: Matrix | None, prefix: str) -> Iterator[_Found]:
    values: dict[str, dict[str, Matrix]] = {}
    for param in params.structs(("name", "value", "learningRate")) if params is not None else ():
        values[(param["name"].text() if "name" in param else None) or ""] = param
    for fields in layers.structs(("name", "type", "params", "block")):
        if "type" not in fields or fields["type"].text() != "dagnn.BatchNorm":
            continue
        name = prefix + ((fields["name"].text() if "name" in fields else "") or "")
        called = [cell.text() for cell in fields["params"].cells()] if "params" in fields else []
        if len(called) != 3 or not all(one in values and "value" in values[one] for one in called if one is not None):
            told = ", ".join(map(repr, called[:4]))
            raise WeightsError(f"{file.path}: layer {name!r} has params {told}; 3 of those in the file are wanted")
        scale, bias, moments = (values.get(one or "", {}) for one in called)
        block = next(fields["block"].structs(("epsilon",)), {}) if "block" in fields else {}
        if not (scale and bias and moments):
            raise WeightsError(f"{file.path}: layer {name!r} has a param without a name")
        epsilon, rate = block.get("epsilon"), moments.get("learningRate")
        there = moments["value"] if moments["value"].count else None
        yield _Found(name, scale["value"], bias["value"], there, epsilon, rate, 0, None)


@np.errstate(invalid="ignore")  # of comparing signalling NaN
def _layer(path: Path, one: _Found) -> tuple[Layer, list[Note]]:
    notes = []
    epsilon = _number(path, one, "epsilon", one.epsilon, 0, math.inf)
    factor = _number(path, one, "learningRate", one.rate, one.rate_place, 1.0)
    arrays: dict[str, Any] = {
        "scale": _vector(path, one.name, "scale", one.scale),
        "bias": _vector(path, one.name, "bias", one.bias),
    }
    if one.moments is None:
        notes.append(Note(one.name, "it has no moments, as networks of old: there are no running statistics"))
    else:
        count = arrays["scale"].size
        moments = _array(path, one.name, "moments", one.moments)
        if one.moments.dims != (count, 2):
            raise WeightsError(f"{path}: moments of layer {one.name!r} are {one.moments.dims}; {(count, 2)} is wanted")
        arrays["mean"], deviation = moments[:count], moments[count:]
        if (deviation < 0).any():
            raise WeightsError(f"{path}: layer {one.name!r} has standard deviations below 0")
        assumed = _EPSILON if epsilon is None else epsilon
        arrays["var"], told = _variance_of(path, one, deviation, assumed)
        if told is None:
            epsilon = 0.0
            notes.append(Note(one.name, "its deviations are far below epsilon's root: epsilon is taken as 0"))
        elif not deviation.any():
            notes.append(Note(one.name, "its moments are 0, as before training: MatConvNet divides by 0"))
    layer = Layer(one.name, **arrays, epsilon=_EPSILON if epsilon is None else epsilon, convention="matconvnet")
    return replace(layer, factor=factor), notes


def _variance_of(path: Path, one: _Found, deviation: Host, epsilon: float) -> tuple[Host, float | None]:
    """The variances, and the epsilon that they go with: None where that is 0 and not the file's."""
    if one.variance is not None:
        stated = _vector(path, one.name, "variance", one.variance)
        if stated.size == deviation.size and _same(_deviation(stated, epsilon, deviation.dtype), deviation).all():
            return stated, epsilon
    found = _variance(deviation, epsilon)
    if found is not None:
        return found, epsilon
    with np.errstate(over="ignore", invalid="ignore"):
        return deviation.astype(np.float64) ** 2, None


def _array(path: Path, name: str, what: str, matrix: Matrix) -> Host:
    array = matrix.numbers()
    if array is None or array.dtype not in _ALLOWED:
        raise WeightsError(
            f"{path}: {what} of layer {name!r} is of MATLAB's class {matrix.type}; single or double is wanted"
        )
    return array


def _vector(path: Path, name: str, what: str, matrix: Matrix) -> Host:
    if max(matrix.dims) != matrix.count:
        raise WeightsError(f"{path}: {what} of layer {name!r} is {matrix.dims}; one number per channel is wanted")
    return _array(path, name, what, matrix)


def _number(path: Path, one: _Found, what: str, matrix: Matrix | None, place: int, most: float) -> float | None:
    """One of the numbers of a matrix, from 0 to most; None where it is not there."""
    array = None if matrix is None else matrix.numbers()
    if array is None or array.size <= place:
        return None
    value = float(array[place])
    if not 0 <= value <= most or math.isinf(value):
        raise WeightsError(f"{path}: {what} of layer {one.name!r} is {value:g}; a number from 0 to {most:g} is wanted")
    return value


def _replaced(layers: Sequence[Layer], name: str, into: Path) -> Written:
    """A copy of a file with other numbers in some of its matrices."""
    notes: list[Note] = []
    edits: dict[tuple[int, int], tuple[Matrix, bytes]] = {}

    def put(layer: Layer, role: str, matrix: Matrix, array: Host) -> None:
        new = (matrix, mat5_element(array))
        place = (matrix.variable, matrix.body)
        if place in edits and edits[place][1] != new[1]:
            raise WeightsError(f"{layer}: its {role} would be that of another layer of {into.name}, too, which differs")
        edits[place] = new

    with mat5.opened(into) as file:
        mat5_element = file.element
        found = {one.name: one for one in _found(file)}
        there = [_layer(into, one)[0] for one in found.values()]
        for layer, target in matched(layers, there, into):
            one = found[target.name]
            epsilon = _EPSILON if target.epsilon is None else target.epsilon
            if layer.epsilon is not None and layer.epsilon != epsilon:
                if one.epsilon is not None and one.epsilon.type == mat5.DOUBLE and one.epsilon.count == 1:
                    epsilon = float(layer.epsilon)
                    put(layer, "epsilon", one.epsilon, np.array([epsilon]))
                else:
                    text = f"epsilon is {layer.epsilon:g}, and {epsilon:g} in {into.name}, which has no place for it"
                    notes.append(Note(layer.name, text, lost=True))
            if layer.factor is not None and layer.factor != target.factor:
                rates = None if one.rate is None else one.rate.numbers()
                if (
                    one.rate is not None
                    and rates is not None
                    and one.rate.type == mat5.DOUBLE
                    and target.factor is not None
                ):
                    rates[one.rate_place] = layer.factor
                    put(layer, "learningRate", one.rate, rates)
                else:
                    text = f"a new batch weighs {layer.factor:g}, and {into.name} has no place for it"
                    notes.append(Note(layer.name, text, lost=True))
            notes += _untold(layer)
            full = layer.complete(into.name) if layer.mean is not None else layer
            for role, matrix in (("scale", one.scale), ("bias", one.bias)):
                array = getattr(full, role)
                if array is not None:
                    fit, more = _fit(layer, role, array, target.arrays[role].dtype, into)
                    notes += more
                    put(layer, role, matrix, fit)
            if layer.mean is None or layer.var is None:
                continue
            if one.moments is None or target.mean is None:
                notes += [Note(layer.name, f"{role} has no place in {into.name}", True) for role in ("mean", "var")]
                continue
            dtype = target.mean.dtype
            mean, more = _fit(layer, "mean", layer.mean, dtype, into)
            notes += more
            put(layer, "moments", one.moments, np.stack([mean, _deviation(layer.var, epsilon, dtype)], axis=1))
            if one.variance is not None and target.var is not None and one.variance.numbers() is not None:
                var, more = _fit(layer, "var", layer.var, _array(into, one.name, "variance", one.variance).dtype, into)
                notes += more
                put(layer, "variance", one.variance, var)
            else:
                notes += _changed(layer, epsilon, dtype, into)
        content = file.edited(edits)
    return Written({name: content}, tuple(notes))


def _fit(layer: Layer, role: str, array: Host, dtype: np.dtype[Any], into: Path) -> tuple[Host, list[Note]]:
    return fitted_array(layer.name, role, array, [dtype], f"the type of that array of {into.name}")


def _changed(layer: Layer, epsilon: float, dtype: np.dtype[Any], into: Path) -> Iterator[Note]:
    """A note where a variance does not come back from the deviation that stands for it."""
    assert layer.var is not None
    back = _variance(_deviation(layer.var, epsilon, dtype), epsilon)
    if back is None or not same_bits(back.astype(layer.var.dtype), layer.var):
        yield Note(
            layer.name, f"var is kept as a standard deviation of {dtype} in {into.name}, and rounded so", lost=True
        )
