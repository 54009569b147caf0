"""One class for each framework whose batch normalization conventions.py measures: a layer for (N, C) in float32.

Each is made with the number of channels, its own momentum and epsilon (None: left out, so that its default counts), and
has: `train` and `evaluate`, NumPy in and out; `set`, which gives scale and bias their values; `statistics`, the running
mean and variance as they are stored; `packages`, whose versions count. `probes` are the edge cases that the framework
answers, or refuses with an exception of Python's.

Python 3.8 and NumPy 1.23 do: old frameworks want them.
"""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import numpy as np

ALL = ("one value", "empty", "epsilon 0", "epsilon 1e-12")


def given(**options):
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


class Layer:
    packages: tuple[str, ...] = ()
    versions: dict[str, str] = {}  # noqa: RUF012 - of what is no package
    probes = ALL
    momentum = 0.75  # the other one than the default

    def statistics(self):
        raise NotImplementedError


class Torch(Layer):
    packages = ("torch",)
    momentum = 0.25

    def __init__(self, channels, momentum=None, epsilon=None):
        import torch

        self.torch = torch
        self.layer = torch.nn.BatchNorm1d(channels, **given(momentum=momentum, eps=epsilon))

    def set(self, scale, bias):
        self.layer.weight.data, self.layer.bias.data = self.torch.tensor(scale), self.torch.tensor(bias)

    def train(self, x):
        return self.layer.train()(self.torch.tensor(x)).detach().numpy()

    def evaluate(self, x):
        return self.layer.eval()(self.torch.tensor(x)).detach().numpy()

    def statistics(self):
        return self.layer.running_mean.numpy().copy(), self.layer.running_var.numpy().copy()


class TorchCumulative(Torch):
    """With momentum=None, which leaves no other one to ask for."""

    probes = ()
    momentum = None

    def __init__(self, channels, momentum=None, epsilon=None):
        super().__init__(channels, epsilon=epsilon)
        self.layer.momentum = None


class Keras(Layer):
    packages = ("keras", "jax")

    def __init__(self, channels, momentum=None, epsilon=None):
        os.environ["KERAS_BACKEND"] = self.packages[1]
        import keras

        self.keras = keras
        self.layer = keras.layers.BatchNormalization(**given(momentum=momentum, epsilon=epsilon))
        self.layer.build((None, channels))

    def set(self, scale, bias):
        self.layer.gamma.assign(scale)
        self.layer.beta.assign(bias)

    def _call(self, x, training):
        y = self.layer(self.keras.ops.convert_to_tensor(x), training=training)
        return np.asarray(self.keras.ops.convert_to_numpy(y))

    def train(self, x):
        return self._call(x, True)

    def evaluate(self, x):
        return self._call(x, False)

    def statistics(self):
        return tuple(
            np.array(self.keras.ops.convert_to_numpy(one))
            for one in (self.layer.moving_mean, self.layer.moving_variance)
        )


class KerasTorch(Keras):
    packages = ("keras", "torch")


class KerasTensorFlow(Keras):
    packages = ("keras", "tensorflow")


class TfKeras(Layer):
    """Of two axes, which tf_keras does not fuse."""

    packages = ("tf_keras", "tensorflow")
    middle = ()

    def __init__(self, channels, momentum=None, epsilon=None):
        import tf_keras

        self.layer = tf_keras.layers.BatchNormalization(**given(momentum=momentum, epsilon=epsilon))
        self.layer.build((None, *self.middle, channels))

    def set(self, scale, bias):
        self.layer.gamma.assign(scale)
        self.layer.beta.assign(bias)

    def _call(self, x, training):
        y = self.layer(x.reshape(len(x), *self.middle, x.shape[1]), training=training)
        return y.numpy().reshape(x.shape)

    def train(self, x):
        return self._call(x, True)

    def evaluate(self, x):
        return self._call(x, False)

    def statistics(self):
        return self.layer.moving_mean.numpy(), self.layer.moving_variance.numpy()


class TfKerasFused(TfKeras):
    """Of four axes, (N, H, W, C), which it fuses."""

    middle = (1, 1)


class Flax(Layer):
    packages = ("flax", "jax")

    def __init__(self, channels, momentum=None, epsilon=None):
        from flax import nnx

        self.layer = nnx.BatchNorm(channels, rngs=nnx.Rngs(0), **given(momentum=momentum, epsilon=epsilon))

    def set(self, scale, bias):
        self.layer.scale[...], self.layer.bias[...] = scale, bias

    def train(self, x):
        return np.asarray(self.layer(x, use_running_average=False))

    def evaluate(self, x):
        return np.asarray(self.layer(x, use_running_average=True))

    def statistics(self):
        return np.array(self.layer.mean[...]), np.array(self.layer.var[...])


class Haiku(Layer):
    """decay_rate has no default; 0.99 stands for one."""

    packages = ("dm-haiku", "jax")

    def __init__(self, channels, momentum=None, epsilon=None):
        import haiku
        import jax

        options = given(eps=epsilon)

        def run(x, training):
            return haiku.BatchNorm(True, True, 0.99 if momentum is None else momentum, **options)(x, training)

        layer = haiku.without_apply_rng(haiku.transform_with_state(run))
        self.run = layer.apply
        self.parameters, self.state = layer.init(jax.random.key(0), np.zeros((2, channels), np.float32), True)

    def set(self, scale, bias):
        self.parameters = {"batch_norm": {"scale": scale[None], "offset": bias[None]}}

    def train(self, x):
        y, self.state = self.run(self.parameters, self.state, x, True)
        return np.asarray(y)

    def evaluate(self, x):
        return np.asarray(self.run(self.parameters, self.state, x, False)[0])

    def statistics(self):
        return tuple(np.array(self.state[f"batch_norm/~/{name}_ema"]["average"]).ravel() for name in ("mean", "var"))


class Equinox(Layer):
    packages = ("equinox", "jax")
    mode = "batch"

    def __init__(self, channels, momentum=None, epsilon=None):
        import equinox
        import jax

        self.equinox = equinox
        self.layer, self.state = equinox.nn.make_with_state(equinox.nn.BatchNorm)(
            channels, axis_name="batch", mode=self.mode, **given(momentum=momentum, eps=epsilon)
        )
        axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
        self.run = lambda layer, x: jax.vmap(layer, **axes)(x, self.state)

    def set(self, scale, bias):
        self.layer = self.equinox.tree_at(lambda one: (one.weight, one.bias), self.layer, (scale, bias))

    def train(self, x):
        y, self.state = self.run(self.layer, x)
        return np.asarray(y)

    def evaluate(self, x):
        return np.asarray(self.run(self.equinox.nn.inference_mode(self.layer), x)[0])

    def statistics(self):
        import jax

        return tuple(np.array(one) for one in jax.tree_util.tree_leaves(self.state)[-2:])


class EquinoxEma(Equinox):
    mode = "ema"


class Tinygrad(Layer):
    packages = ("tinygrad",)
    momentum = 0.25

    def __init__(self, channels, momentum=None, epsilon=None):
        import tinygrad

        self.Tensor = tinygrad.Tensor
        self.mode = lambda training: tinygrad.helpers.Context(TRAINING=training)
        self.layer = tinygrad.nn.BatchNorm(channels, **given(momentum=momentum, eps=epsilon))

    def set(self, scale, bias):
        self.layer.weight, self.layer.bias = self.Tensor(scale), self.Tensor(bias)

    def train(self, x):
        with self.mode(1):
            y = self.layer(self.Tensor(x)).numpy()
        self.layer.running_mean.realize()
        self.layer.running_var.realize()
        return y

    def evaluate(self, x):
        return self.layer(self.Tensor(x)).numpy()

    def statistics(self):
        return self.layer.running_mean.numpy(), self.layer.running_var.numpy()


class Mlx(Layer):
    packages = ("mlx",)
    momentum = 0.25

    def __init__(self, channels, momentum=None, epsilon=None):
        import mlx.core
        import mlx.nn

        self.array, self.evaluated = mlx.core.array, mlx.core.eval
        self.layer = mlx.nn.BatchNorm(channels, **given(momentum=momentum, eps=epsilon))

    def set(self, scale, bias):
        self.layer.weight, self.layer.bias = self.array(scale), self.array(bias)

    def train(self, x):
        self.layer.train()
        y = self.layer(self.array(x))
        self.evaluated(y, self.layer.running_mean, self.layer.running_var)
        return np.array(y)

    def evaluate(self, x):
        self.layer.eval()
        return np.array(self.layer(self.array(x)))

    def statistics(self):
        return np.array(self.layer.running_mean), np.array(self.layer.running_var)


class Paddle(Layer):
    packages = ("paddlepaddle",)

    def __init__(self, channels, momentum=None, epsilon=None):
        import paddle

        self.paddle = paddle
        self.layer = paddle.nn.BatchNorm1D(channels, **given(momentum=momentum, epsilon=epsilon))

    def set(self, scale, bias):
        self.layer.weight.set_value(scale)
        self.layer.bias.set_value(bias)

    def train(self, x):
        self.layer.train()
        return self.layer(self.paddle.to_tensor(x)).numpy()

    def evaluate(self, x):
        self.layer.eval()
        return self.layer(self.paddle.to_tensor(x)).numpy()

    def statistics(self):
        return self.layer._mean.numpy(), self.layer._variance.numpy()


class Chainer(Layer):
    packages = ("chainer",)

    def __init__(self, channels, momentum=None, epsilon=None):
        import chainer
        from chainer import links

        self.mode = lambda train: chainer.using_config("train", train)
        self.layer = links.BatchNormalization(channels, **given(decay=momentum, eps=epsilon))

    def set(self, scale, bias):
        self.layer.gamma.data[...], self.layer.beta.data[...] = scale, bias

    def train(self, x):
        with self.mode(True):
            return self.layer(x).data

    def evaluate(self, x):
        with self.mode(False):
            return self.layer(x).data

    def statistics(self):
        return self.layer.avg_mean.copy(), self.layer.avg_var.copy()


class Mxnet(Layer):
    packages = ("mxnet",)
    probes = ("one value", "epsilon 0", "epsilon 1e-12")

    def __init__(self, channels, momentum=None, epsilon=None):
        import mxnet

        self.mxnet = mxnet
        self.layer = mxnet.gluon.nn.BatchNorm(in_channels=channels, **given(momentum=momentum, epsilon=epsilon))
        self.layer.initialize()

    def set(self, scale, bias):
        self.layer.gamma.set_data(self.mxnet.nd.array(scale))
        self.layer.beta.set_data(self.mxnet.nd.array(bias))

    def train(self, x):
        with self.mxnet.autograd.record():
            y = self.layer(self.mxnet.nd.array(x))
        y.backward()  # which moves the statistics
        return y.asnumpy()

    def evaluate(self, x):
        return self.layer(self.mxnet.nd.array(x)).asnumpy()

    def statistics(self):
        return self.layer.running_mean.data().asnumpy(), self.layer.running_var.data().asnumpy()


class Nnabla(Layer):
    packages = ("nnabla",)
    probes = ("one value", "epsilon 0", "epsilon 1e-12")

    def __init__(self, channels, momentum=None, epsilon=None):
        import nnabla
        from nnabla import parametric_functions as pf

        nnabla.clear_parameters()
        self.nnabla = nnabla
        self.options = given(decay_rate=momentum, eps=epsilon)
        self.layer = pf.batch_normalization
        self.evaluate(np.zeros((2, channels), np.float32))

    def set(self, scale, bias):
        found = self.nnabla.get_parameters(grad_only=False)
        found["bn/gamma"].d, found["bn/beta"].d = scale.reshape(1, -1, 1, 1), bias.reshape(1, -1, 1, 1)

    def _call(self, x, training):
        variable = self.nnabla.Variable.from_numpy_array(x[:, :, None, None])
        y = self.layer(variable, batch_stat=training, **self.options)
        y.forward()
        return y.d.reshape(x.shape).copy()

    def train(self, x):
        return self._call(x, True)

    def evaluate(self, x):
        return self._call(x, False)

    def statistics(self):
        found = self.nnabla.get_parameters(grad_only=False)
        return found["bn/mean"].d.ravel().copy(), found["bn/var"].d.ravel().copy()


class Jittor(Layer):
    packages = ("jittor",)
    probes = ("one value", "epsilon 0", "epsilon 1e-12")
    momentum = 0.25

    def __init__(self, channels, momentum=None, epsilon=None):
        import jittor

        self.jittor = jittor
        self.layer = jittor.nn.BatchNorm(channels, **given(momentum=momentum, eps=epsilon))

    def set(self, scale, bias):
        self.layer.weight, self.layer.bias = self.jittor.array(scale), self.jittor.array(bias)

    def train(self, x):
        self.layer.train()
        return self.layer(self.jittor.array(x)).numpy()

    def evaluate(self, x):
        self.layer.eval()
        return self.layer(self.jittor.array(x)).numpy()

    def statistics(self):
        return self.layer.running_mean.numpy().copy(), self.layer.running_var.numpy().copy()


class Onnx(Layer):
    """BatchNormalization of opset 15 with training_mode=1, whose running statistics the caller carries on."""

    packages = ("onnx",)

    def __init__(self, channels, momentum=None, epsilon=None):
        options = given(momentum=momentum, epsilon=epsilon)
        self.sessions = {training: self._session(channels, training, options) for training in (True, False)}
        self.held = SimpleNamespace(mean=np.zeros(channels, np.float32), var=np.ones(channels, np.float32))
        self.set(np.ones(channels, np.float32), np.zeros(channels, np.float32))

    def _session(self, channels, training, options):
        from onnx import TensorProto, helper

        def tensors(names, shape):
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]

        moved = ["moved_mean", "moved_var"] if training else []
        inputs = ["x", "scale", "bias", "mean", "var"]
        node = helper.make_node("BatchNormalization", inputs, ["y", *moved], training_mode=int(training), **options)
        graph = helper.make_graph(
            [node],
            "bn",
            tensors(["x"], [None, channels]) + tensors(inputs[1:], [channels]),
            tensors(["y"], [None, channels]) + tensors(moved, [channels]),
        )
        return self._made(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))

    def _made(self, model):
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model)

    def set(self, scale, bias):
        self.parameters = {"scale": scale, "bias": bias}

    def _call(self, x, training):
        return self.sessions[training].run(None, {"x": x, **self.parameters, **vars(self.held)})

    def train(self, x):
        y, self.held.mean, self.held.var = self._call(x, True)
        return y

    def evaluate(self, x):
        return self._call(x, False)[0]

    def statistics(self):
        return self.held.mean, self.held.var


class OnnxRuntime(Onnx):
    packages = ("onnxruntime", "onnx")

    def _made(self, model):
        import onnxruntime

        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class Mnn(Layer):
    """Whose epsilon is no option."""

    packages = ("MNN",)
    probes = ("one value",)

    def __init__(self, channels, momentum=None, epsilon=None):
        import MNN

        self.expr = MNN.expr
        axes, default = 4, 0.99
        self.layer = MNN.nn.batch_norm(
            channels, axes, default if momentum is None else momentum, 1e-5 if epsilon is None else epsilon
        )

    def _made(self, values):
        values = values.reshape(*values.shape, 1, 1) if values.ndim == 2 else values.reshape(1, -1, 1, 1)
        return self.expr.const(values.astype(np.float32), list(values.shape), self.expr.NCHW)

    def set(self, scale, bias):
        self.layer.load_parameters([self._made(scale), self._made(bias), *self.layer.parameters[2:]])

    def _call(self, x, training):
        self.layer.train(training)
        y = self.expr.convert(self.layer.forward(self._made(x)), self.expr.NCHW)
        return np.array(y.read()).reshape(x.shape)

    def train(self, x):
        return self._call(x, True)

    def evaluate(self, x):
        return self._call(x, False)

    def statistics(self):
        var, mean = (np.array(one.read()).ravel() for one in self.layer.parameters[2:])
        return mean, var


class Darknet(Layer):
    """Of OCLBN_DARKNET, a library that conventions_darknet.c is made to. Epsilon and momentum are in its code."""

    versions = {"pjreddie/darknet": "f6afaab"}  # noqa: RUF012
    probes = ("one value",)
    momentum = None
    most = 40  # samples

    def __init__(self, channels, momentum=None, epsilon=None):
        self.library = ctypes.CDLL(os.environ["OCLBN_DARKNET"], mode=os.RTLD_LAZY)
        self.library.made.restype = ctypes.c_void_p
        self.layer = ctypes.c_void_p(self.library.made(self.most, channels))
        self.channels = channels

    def _pointers(self, *arrays):
        return (array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for array in arrays)

    def set(self, scale, bias):
        self.library.set(self.layer, *self._pointers(scale, bias))

    def _call(self, x, training):
        x = np.ascontiguousarray(x)
        y = np.empty_like(x)
        self.library.run(self.layer, *self._pointers(x, y), len(x), int(training))
        return y

    def train(self, x):
        return self._call(x, True)

    def evaluate(self, x):
        return self._call(x, False)

    def statistics(self):
        found = np.empty(self.channels, np.float32), np.empty(self.channels, np.float32)
        self.library.statistics(self.layer, *self._pointers(*found))
        return found


class DarknetAlexeyAB(Darknet):
    versions = {"AlexeyAB/darknet": "59596d7"}  # noqa: RUF012


FRAMEWORKS = {
    "torch": Torch,
    "torch-cumulative": TorchCumulative,
    "keras-jax": Keras,
    "keras-torch": KerasTorch,
    "keras-tensorflow": KerasTensorFlow,
    "tf-keras": TfKeras,
    "tf-keras-fused": TfKerasFused,
    "flax": Flax,
    "haiku": Haiku,
    "equinox": Equinox,
    "equinox-ema": EquinoxEma,
    "tinygrad": Tinygrad,
    "mlx": Mlx,
    "paddle": Paddle,
    "chainer": Chainer,
    "mxnet": Mxnet,
    "nnabla": Nnabla,
    "jittor": Jittor,
    "onnx": Onnx,
    "onnxruntime": OnnxRuntime,
    "mnn": Mnn,
    "darknet-cpu": Darknet,
    "darknet-alexeyab": DarknetAlexeyAB,
}
