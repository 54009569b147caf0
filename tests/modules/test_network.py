"""A small network with a residual, trained on the device and in float64: the losses keep together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import put

from oclbn import BatchNorm
from oclbn.truth import reference

_STEPS, _RATE, _BATCH, _WIDTH, _EPSILON = 200, 0.05, 48, 24, 1e-5


def _made() -> dict[str, np.ndarray[Any, Any]]:
    """Data, a target that is no linear function of them, and weights; all numbers of float32."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((_BATCH, 16))
    target = np.tanh(x @ rng.standard_normal((16, 1))) * np.abs(x[:, :1])
    weights = {
        "first": rng.standard_normal((16, _WIDTH)) / 4.0,
        "second": rng.standard_normal((_WIDTH, _WIDTH)) / 5.0,
        "last": rng.standard_normal((_WIDTH, 1)) / 5.0,
    }
    return {name: array.astype(np.float32) for name, array in {"x": x, "target": target, **weights}.items()}


def _losses_of_the_reference() -> list[float]:
    w = {name: array.astype(np.float64) for name, array in _made().items()}
    scales, biases = [np.ones(_WIDTH)] * 2, [np.zeros(_WIDTH)] * 2
    losses = []
    for _ in range(_STEPS):
        a = w["x"] @ w["first"]
        one = reference.train(a, scales[0], biases[0], epsilon=_EPSILON)
        h = np.maximum(one.y, 0.0)
        b = h @ w["second"]
        two = reference.train(b, scales[1], biases[1], epsilon=_EPSILON)
        k = np.maximum(two.y + h, 0.0)
        off = k @ w["last"] - w["target"]
        losses.append(float(np.mean(off**2)))
        dout = 2.0 * off / off.size
        dlast, dk = k.T @ dout, (dout @ w["last"].T) * (k > 0)
        db, dscale, dbias = reference.backward(b, dk, scales[1], two.mean, two.invstd)
        dh = (db @ w["second"].T + dk) * (h > 0)
        da, dscale1, dbias1 = reference.backward(a, dh, scales[0], one.mean, one.invstd)
        for name, gradient in (("first", w["x"].T @ da), ("second", h.T @ db), ("last", dlast)):
            w[name] = w[name] - _RATE * gradient
        scales = [scales[0] - _RATE * dscale1, scales[1] - _RATE * dscale]
        biases = [biases[0] - _RATE * dbias1, biases[1] - _RATE * dbias]
    return losses


def _losses_of_modules(queue: cl.CommandQueue) -> list[float]:
    w = _made()
    first, second = (BatchNorm(_WIDTH, queue=queue, activation="relu", epsilon=_EPSILON, seed=0) for _ in range(2))
    for bn in (first, second):
        bn.scale = np.ones(_WIDTH)
    losses = []
    for _ in range(_STEPS):
        h = first(put(queue, w["x"] @ w["first"]))
        k = second(put(queue, h.get() @ w["second"]), residual=h)
        off = k.get() @ w["last"] - w["target"]
        losses.append(float(np.mean(off.astype(np.float64) ** 2)))
        dout = np.float32(2.0) * off / np.float32(off.size)
        dlast = k.get().T @ dout
        db = second.backward(put(queue, dout @ w["last"].T)).get()
        dh = put(queue, db @ w["second"].T + second.residualgrad.get())
        da = first.backward(dh).get()
        gradients = {"first": w["x"].T @ da, "second": h.get().T @ db, "last": dlast}
        for name, gradient in gradients.items():
            w[name] = w[name] - np.float32(_RATE) * gradient
        for bn in (first, second):
            bn.updateParams(-_RATE)
            bn.zeroGradParams()
    return losses


@pytest.mark.once("functions are compared on each runtime")
def test_losses_follow_those_of_float64(queue: cl.CommandQueue) -> None:
    wanted, found = _losses_of_the_reference(), _losses_of_modules(queue)
    assert wanted[-1] < wanted[0] / 5
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
