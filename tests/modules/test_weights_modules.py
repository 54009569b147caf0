"""oclbn.weights on a device: modules of layers, and layers of modules."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyopencl as cl
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from layer_samples import layer

from oclbn import BatchNorm, BatchNorm1D, BatchNorm2D, BatchNormND, conventions, gpuarray, weights
from oclbn.errors import ModuleParameterError, ParameterError, ParameterWarning
from oclbn.files.formats import FORMATS
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="values are copied to and from the device")


def test_a_module_evaluates_as_the_layer_says(queue: cl.CommandQueue) -> None:
    one = layer(channels=6, epsilon=0.01, factor=0.2, batches=50)
    bn = weights.module(one, 2, queue=queue)
    assert isinstance(bn, BatchNorm2D)
    assert (bn.epsilon, bn.minFactor, bn.initFactor, bn.numOfProps) == (0.01, 0.2, 0.0, 50)
    assert (bn.estimator, bn.name) == ("sample", "net.bn1")
    bn.evalMode()
    x = np.random.default_rng(1).normal(size=(3, 6, 4, 4)).astype(np.float32)
    scale, bias, mean, var = (array.astype(np.float64)[:, None, None] for array in one.arrays.values())
    wanted = (x - mean) / np.sqrt(var + 0.01) * scale + bias
    assert np.abs(bn(gpuarray.to_gpu(x, queue=queue)).get() - wanted).max() < 1e-5


@pytest.mark.parametrize("name", sorted({form.name for form in FORMATS}))
def test_every_formats_layers_make_modules_and_come_back(name: str, queue: cl.CommandQueue, tmp_path: Path) -> None:
    form = next(one for one in FORMATS if one.name == name)
    path = tmp_path / f"one{form.endings[0]}"
    weights.write(path, [layer(channels=6, batches=7)], format=name)
    (one,) = weights.read(path).values()
    bn = weights.module(one, 1, queue=queue)
    assert isinstance(bn, BatchNorm1D)
    back = weights.layer(bn)
    for role, array in one.arrays.items():
        assert np.array_equal(back.arrays[role], array.astype(np.float32)), role
    weights.write(path, [weights.renamed(back, one.name)], format=name, overwrite=True)
    (again,) = weights.read(path).values()
    assert all(np.array_equal(again.arrays[role], back.arrays[role]) for role in back.arrays)


def test_a_module_goes_on_as_the_framework_would(queue: cl.CommandQueue) -> None:
    """Epsilon, momentum and estimator are the convention's where the file is silent; counters go on."""
    for name, (epsilon, factor, estimator) in {
        "pytorch": (1e-5, 0.1, "sample"),
        "keras": (1e-3, 0.01, "population"),
        "flax": (1e-5, 0.01, "population"),
    }.items():
        bn = weights.module(layer(convention=name), 0, queue=queue)
        assert isinstance(bn, BatchNorm)
        assert (bn.epsilon, bn.initFactor, bn.estimator) == (epsilon, 0.0, estimator)
        assert bn.minFactor == pytest.approx(factor)
    cumulative = weights.module(layer(cumulative=True, batches=9), 0, queue=queue)
    assert (cumulative.initFactor, cumulative.minFactor, cumulative.numOfProps) == (1.0, 0.0, 9)


def test_statistics_of_unknown_age_are_not_wiped(queue: cl.CommandQueue) -> None:
    for given in ({}, {"convention": "darknet"}, {"cumulative": True}):
        one = layer(channels=3, mean=np.full(3, 100, np.float32), **given)
        bn = weights.module(one, 0, queue=queue)
        bn(gpuarray.to_gpu(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), queue=queue))
        assert bn.mean.get().min() > 50, given


def test_every_convention_makes_a_module(queue: cl.CommandQueue) -> None:
    for name in conventions.ALL:
        bn = weights.module(layer(convention=name), 0, queue=queue)
        assert bn.epsilon == conventions.ALL[name].options(evaluation=True)["epsilon"]


def test_layers_without_arrays_make_modules_without(queue: cl.CommandQueue) -> None:
    plain = weights.module(layer(scale=None, bias=None), 0, queue=queue)
    assert not plain.affine
    assert weights.layer(plain).scale is None
    batch = weights.module(layer(mean=None, var=None), 0, queue=queue)
    assert not batch.running
    assert weights.layer(batch).mean is None
    half = weights.module(layer(scale=None), 0, queue=queue)
    assert half.affine
    assert (half.scale.get() == 1).all()


def test_options_are_the_modules(queue: cl.CommandQueue) -> None:
    one = layer(channels=4)
    bn = weights.module(one, 2, queue=queue, axis=-1, activation="relu", epsilon=0.5, name="mine", dtype="float16")
    assert (bn.axis, bn.activation, bn.epsilon, bn.name) == (3, "relu", 0.5, "mine")
    assert isinstance(weights.module(one, 4, queue=queue), BatchNormND)
    with pytest.raises(ParameterError, match="nd is 9"):
        weights.module(one, 9, queue=queue)
    wide = weights.module(layer(dtype="bfloat16"), 0, queue=queue)
    assert same_bits(weights.layer(wide).arrays["var"], layer(dtype="bfloat16").arrays["var"].astype(np.float32))


def test_loading_tells_what_stays_oclbns_own(queue: cl.CommandQueue) -> None:
    """Where neither the file nor whoever made the module has said a number, and the framework's default is another."""
    keras = layer(channels=5, convention="keras")
    with pytest.warns(ParameterWarning, match=r"epsilon 1e-05 where Keras has 0\.001, .*estimator 'sample'"):
        weights.load_into(BatchNorm2D(5, queue=queue), keras)
    with pytest.warns(ParameterWarning, match="keeps estimator 'sample' where Keras has 'population', which"):
        weights.load_into(BatchNorm2D(5, initFactor=0.0, minFactor=0.5, epsilon=0.5, queue=queue), keras)
    weights.load_into(weights.module(keras, queue=queue), keras)
    weights.load_into(BatchNorm2D(5, queue=queue), layer(channels=5))


def test_loading_is_all_or_nothing(queue: cl.CommandQueue) -> None:
    bn = weights.module(layer(channels=5, batches=3), 2, queue=queue)
    new = layer(channels=5, seed=9, batches=40, epsilon=0.25, factor=0.5)
    weights.load_into(bn, new)
    assert (bn.epsilon, bn.minFactor, bn.numOfProps) == (0.25, 0.5, 40)
    assert np.array_equal(bn.var.get().ravel(), new.arrays["var"])
    before = weights.layer(bn)
    for wrong, told in (
        (layer(channels=4), "5 channels; layer 'net.bn1' has 4"),
        (layer(mean=None, var=None), "has running statistics"),
        (layer(var=np.array([1, 2, -1, 4, 5], np.float32)), "variance below 0"),
        (layer(dtype="float64", mean=np.full(5, 1e300)), "numbers up to"),
    ):
        with pytest.raises(ModuleParameterError, match=told):
            weights.load_into(bn, wrong)
        after = weights.layer(bn)
        assert all(same_bits(after.arrays[role], array) for role, array in before.arrays.items())
        assert (bn.epsilon, bn.minFactor, bn.numOfProps) == (0.25, 0.5, 40)
    bn.epsilon = 0.5
    with pytest.raises(ModuleParameterError, match="epsilon"):  # which a float32 cannot hold
        weights.load_into(bn, layer(seed=3, epsilon=1e300))
    assert (bn.epsilon, bn.minFactor, bn.numOfProps) == (0.5, 0.5, 40)
    assert same_bits(weights.layer(bn).arrays["var"], before.arrays["var"])
    with pytest.raises(ModuleParameterError, match="no running statistics"):
        weights.load_into(BatchNorm2D(5, running=False, queue=queue), new)
    fixed = BatchNorm2D(5, affine=False, queue=queue)
    with pytest.raises(ModuleParameterError, match="not affine"):
        weights.load_into(fixed, new)
    weights.load_into(fixed, layer(scale=np.ones(5, np.float32), bias=None))
    assert fixed.numOfProps > 0
