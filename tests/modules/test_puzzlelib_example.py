"""The example of PuzzleLib's page on BatchNorm, with nothing but its import lines changed."""

from __future__ import annotations

import numpy as np
import pyopencl as cl
import pytest

from oclbn import BatchNorm, device, gpuarray


@pytest.fixture(autouse=True)
def default_queue(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example names no queue: let the default one be that of the device under test."""
    monkeypatch.setattr(device, "default_queue", lambda: queue)


def test_the_example_of_the_page() -> None:
    batchsize, insize = 3, 6
    data = gpuarray.to_gpu(np.arange(batchsize * insize).reshape(batchsize, insize).astype(np.float32))
    bn = BatchNorm(insize)
    bn(data)

    assert bn.mean.shape == bn.var.shape == bn.scale.shape == bn.bias.shape == (1, 6, 1, 1)
    np.testing.assert_array_equal(bn.mean.get().ravel(), [6, 7, 8, 9, 10, 11])
    np.testing.assert_allclose(bn.var.get().ravel(), 36, rtol=4 * np.finfo(np.float32).eps)
    np.testing.assert_array_equal(bn.bias.get().ravel(), 0)
    scale = bn.scale.get().ravel()
    assert np.all(np.abs(scale - 1) < 0.06)  # six standard deviations
    assert np.unique(scale).size == 6
    # The page prints four digits behind the point; the population variance is 24.
    rows = np.array([[-1.2247], [0.0], [1.2247]])
    np.testing.assert_allclose(bn.data.get(), scale * rows, rtol=0, atol=1e-4)


def test_the_first_batch_is_taken_whole_and_the_second_by_half() -> None:
    """running = (1 - factor) * running + factor * batch: the page prints the weights the other way round."""
    bn = BatchNorm(1, initFactor=1.0, minFactor=0.1)
    bn(gpuarray.to_gpu(np.array([[4.0], [8.0]], np.float32)))
    assert bn.mean.get().item() == 6.0
    assert bn.var.get().item() == 8.0
    bn(gpuarray.to_gpu(np.array([[0.0], [4.0]], np.float32)))
    assert bn.mean.get().item() == 4.0
    assert bn.var.get().item() == 8.0
    for _ in range(20):
        bn(gpuarray.to_gpu(np.array([[0.0], [4.0]], np.float32)))
    before = bn.mean.get().item()
    bn(gpuarray.to_gpu(np.array([[100.0], [100.0]], np.float32)))
    np.testing.assert_allclose(bn.mean.get().item(), 0.9 * before + 0.1 * 100.0, rtol=1e-6)


def test_a_training_step_as_puzzlelibs_users_write_it() -> None:
    rng = np.random.default_rng(5)
    data = gpuarray.to_gpu(rng.standard_normal((16, 10)).astype(np.float32))
    grad = gpuarray.to_gpu(rng.standard_normal((16, 10)).astype(np.float32))
    bn = BatchNorm(10, name="bn")
    bn(data)
    bn.backward(grad)
    bias_before, scale_before = bn.bias.get(), bn.scale.get()
    scalegrad, biasgrad = bn.vars["scale"].grad.get(), bn.vars["bias"].grad.get()
    np.testing.assert_allclose(biasgrad.ravel(), grad.get().sum(axis=0), rtol=1e-5, atol=1e-5)
    bn.updateParams(1e-2)
    np.testing.assert_allclose(bn.bias.get(), bias_before + 1e-2 * biasgrad, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(bn.scale.get(), scale_before + 1e-2 * scalegrad, rtol=1e-6)
    bn.zeroGradParams()
    assert not bn.vars["scale"].grad.get().any()
    bn.evalMode()
    assert bn(data).shape == (16, 10)
