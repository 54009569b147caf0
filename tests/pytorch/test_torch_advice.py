"""Settings of oclbn.torch's layers, and that what errors and warnings advise works."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyopencl as cl
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'oclbn[torch]'")
import oclbn.device  # noqa: E402
import oclbn.torch as ours  # noqa: E402
from oclbn import gpuarray  # noqa: E402
from oclbn.activations import NAMES  # noqa: E402
from oclbn.elements import bfloat16  # noqa: E402
from oclbn.errors import ArrayTypeError, ParameterError, ParameterWarning  # noqa: E402


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def advised(error: pytest.ExceptionInfo[Any], pattern: str, **names: Any) -> Any:
    """What an expression in an error's message makes, which the pattern's group is."""
    found = re.search(pattern, str(error.value))
    assert found is not None, str(error.value)
    return eval(found[1], {"torch": torch, "np": np, "oclbn": oclbn, **names})


# --- activations and devices as attributes


@pytest.mark.parametrize("activation", [*NAMES[1:], ("leaky_relu", 0.2), ("elu", 0.5)], ids=str)
def test_an_activation_that_revert_refuses_is_had_behind_the_layer(activation: Any, spec: str) -> None:
    layer = ours.BatchNorm1d(4, activation=activation, opencl=spec)
    assert layer.activation == activation
    model, x = torch.nn.Sequential(layer), torch.randn(64, 4) * 4
    right = model(x)
    with pytest.raises(ParameterError, match=r"layer '0' with activation=.*: set layer\.activation = None") as caught:
        ours.revert(model)
    assert type(layer) is ours.BatchNorm1d
    model.append(advised(caught, r"put (torch\.nn\.\w+\(.*\)) behind it"))
    layer.activation = None
    assert "activation" not in repr(layer)
    assert torch.allclose(model(x), right, atol=1e-5)
    assert torch.allclose(ours.revert(model)(x), right, atol=1e-5)
    assert "activation" not in layer.__dict__


def test_an_activation_can_be_set(spec: str) -> None:
    layer = ours.convert(torch.nn.BatchNorm1d(4), opencl=spec)
    assert layer.activation is None
    plain = layer(torch.ones(2, 4).cumsum(0))
    layer.activation = "relu"
    assert repr(layer).endswith(f"oclbn, activation='relu', opencl={spec!r})")
    assert torch.equal(layer(torch.ones(2, 4).cumsum(0)), plain.relu())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("relo", "activation is 'relo'"),
        (torch.nn.ReLU(), r"activation is ReLU\(\); .*did you mean 'relu'"),
        (torch.nn.Parameter(torch.ones(1)), "activation is a torch.nn.parameter.Parameter of shape"),
    ],
)
def test_what_is_set_is_checked(value: Any, words: str) -> None:
    layer = ours.BatchNorm1d(4, activation="silu")
    with pytest.raises(ParameterError, match=words):
        layer.activation = value
    assert layer.activation == "silu"
    assert not [*layer.children()]
    with pytest.raises(ParameterError, match=r"opencl is .*; a name or index of a device"):
        layer.opencl = 0
    assert layer.opencl is None


def test_a_device_is_set_for_one_layer(queue: Any, spec: str) -> None:
    info = oclbn.device.select(spec)
    model = ours.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)))
    assert repr(model[0]).endswith("track_running_stats=True, oclbn)")
    for choice, shown in (
        (spec, repr(spec)),
        (info, repr(info.title)),
        (info.device, repr(info.name)),
        (queue, f"a queue on {info.name!r}"),
    ):
        model[0].opencl = choice
        assert model[0].opencl is choice
        assert repr(model[0]).endswith(f", oclbn, opencl={shown})")
        assert model[0](torch.randn(3, 4)).shape == (3, 4)
    assert model[1].opencl is None
    assert isinstance(info.device, cl.Device)
    ours.revert(model)
    assert repr(model[0]) == repr(torch.nn.BatchNorm1d(4))


# --- numbers


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "0.1", True])
def test_momentum_is_called_so(value: Any, spec: str) -> None:
    layer = ours.BatchNorm2d(3, momentum=value, opencl=spec)  # as PyTorch's own can be made, and set later
    with pytest.raises(ParameterError, match=r"^momentum is .*; a number from 0 to 1 is wanted"):
        layer(torch.randn(2, 3, 4, 4))
    assert layer.running_mean.abs().sum() == 0
    assert layer.eval()(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)  # which momentum is nothing to
    still = ours.BatchNorm2d(3, momentum=value, track_running_stats=False, opencl=spec)
    assert still(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    layer.momentum = 0.5
    assert layer.train()(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [-1e-5, float("nan"), float("inf"), None, 1e300])
def test_eps_is_called_so(value: Any, training: bool, spec: str) -> None:
    layer = ours.BatchNorm1d(4, opencl=spec).train(training)
    layer.eps = value
    with pytest.raises(ParameterError, match=r"^eps is .*; a number from 0 to"):
        layer(torch.randn(3, 4))
    layer.eps = 0
    assert layer(torch.randn(3, 4)).shape == (3, 4)


# --- tensors


def test_how_a_tensor_is_made_of_an_array(spec: str) -> None:
    layer = ours.BatchNorm1d(4, opencl=spec)
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    fixed = whole.copy()
    fixed.setflags(write=False)
    packed = np.zeros(12, [("x", np.float32), ("more", np.uint8)])["x"].reshape(3, 4)  # steps of 5 bytes
    packed[:] = whole
    arrays = {
        "input": [whole, np.asfortranarray(whole), whole.repeat(2, 1)[:, ::2]],
        "np.array(input)": [whole[::-1], fixed, packed],
        "np.array(input, np.float32)": [whole.astype(">f4"), whole.astype(int), whole > 5, whole.astype(bfloat16())],
    }
    for made, given in arrays.items():
        for array in given:
            with pytest.raises(ArrayTypeError, match=r"^input is a numpy\.ndarray; a torch\.Tensor") as caught:
                layer(array)
            assert f": torch.from_numpy({made}) makes one" in str(caught.value)
            tensor = advised(caught, r"(torch\.from_numpy.*) makes one", input=array)
            assert np.array_equal(tensor.numpy(), np.asarray(array, np.float32))
            assert layer(tensor).shape == (3, 4)
    for nothing in (None, "x", whole.astype(complex), whole.tolist()):
        with pytest.raises(ArrayTypeError, match=r"^input is .*; a torch\.Tensor is wanted$"):
            layer(nothing)


def test_how_a_tensor_is_made_of_a_device_array(queue: Any) -> None:
    given = gpuarray.to_gpu(np.arange(12, dtype=np.float32).reshape(3, 4), queue=queue)
    layer = ours.BatchNorm1d(4, opencl=queue)
    with pytest.raises(ArrayTypeError, match=r"input is a pyopencl\.array\.Array") as caught:
        layer(given)
    assert layer(advised(caught, r"(torch\.from_numpy.*) makes one", input=given)).shape == (3, 4)
    with pytest.raises(ArrayTypeError, match=r"running_mean is a numpy\.ndarray") as caught:
        ours.batch_norm(torch.randn(3, 4), np.zeros(4, np.float32), torch.ones(4), opencl=queue)
    assert advised(caught, r"(torch\.from_numpy.*) makes one", running_mean=np.zeros(4, np.float32)).shape == (4,)


def test_input_without_data(spec: str) -> None:
    model = ours.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(4)), opencl=spec)
    given = torch.empty(3, 4, device="meta")
    with pytest.raises(ArrayTypeError, match=r"input is a tensor on meta, without data") as caught:
        model(given)
    assert ".cpu()" not in str(caught.value)
    reverted = advised(caught, r"(oclbn\.torch\.revert\(model\))", model=model)
    assert reverted.to("meta")(given).shape == (3, 4)


@pytest.mark.parametrize("filled", ["load_state_dict(state)", "reset_parameters()"])
def test_a_layer_without_data(filled: str, spec: str) -> None:
    layer = ours.BatchNorm1d(4, opencl=spec, device="meta")
    with pytest.raises(ArrayTypeError, match="running_mean is a tensor on meta, without data") as caught:
        layer(torch.randn(3, 4))
    assert ".cpu()" not in str(caught.value)
    advised(caught, r"(layer\.to_empty\(.*?\)) gives", layer=layer)
    state = torch.nn.BatchNorm1d(4).state_dict()
    advised(caught, rf"(layer\.{re.escape(filled)})", layer=layer, state=state)
    x = torch.randn(3, 4)
    assert torch.allclose(layer(x), torch.nn.BatchNorm1d(4)(x), atol=1e-6)


class Elsewhere(torch.Tensor):  # type: ignore[misc]
    """A tensor that says that it is on a device that this machine need not have."""

    @staticmethod
    def __new__(cls, held: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="xpu")

    def __init__(self, held: Any) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is torch.ops.aten._to_copy.default, function
        assert kwargs["device"].type == "cpu"
        return args[0].held.clone()


def test_tensors_of_another_device_are_moved(spec: str) -> None:
    layer, x = ours.BatchNorm1d(4, opencl=spec), torch.randn(3, 4)
    with pytest.raises(ArrayTypeError, match=r"input is a tensor on xpu.*oclbn\.torch\.revert") as caught:
        layer(Elsewhere(x))
    assert torch.equal(advised(caught, r"(input\.cpu\(\)) makes one", input=Elsewhere(x)), x)
    layer.running_mean = Elsewhere(torch.full((4,), 2.0))
    with pytest.raises(ArrayTypeError, match="running_mean is a tensor on xpu") as caught:
        layer(x)
    advised(caught, r"(layer\.cpu\(\)) moves", layer=layer)
    assert torch.allclose(layer.eval()(x), x - 2, atol=1e-4)


def test_a_tensor_without_strides(spec: str) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ArrayTypeError, match=r"layout torch\.sparse_coo") as caught:
        ours.batch_norm(x.to_sparse(), torch.zeros(4), torch.ones(4), opencl=spec)
    assert "revert" not in str(caught.value)
    assert torch.equal(advised(caught, r"(input\.to_dense\(\)) makes one", input=x.to_sparse()), x)


# --- convert where there is nothing to convert


def test_convert_tells_what_it_left(spec: str) -> None:
    class Own(torch.nn.BatchNorm1d):  # type: ignore[misc]
        pass

    options = {"eps": 0.25, "momentum": None, "affine": False}
    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(4, **options), Own(4), torch.nn.LazyBatchNorm1d())
    left = r"'0' \(SyncBatchNorm\), '1' \(Own\), '2' \(LazyBatchNorm1d\)\. A lazy layer"
    with pytest.warns(
        ParameterWarning, match=f"^module has no .*nothing is converted. Left as they are: {left}"
    ) as seen:
        ours.convert(model, opencl=spec)
    assert seen[0].filename == __file__
    found = re.search(r"put (oclbn.*?\)), 1d or 3d", str(seen[0].message))
    assert found is not None
    layer, x = model[0], torch.randn(3, 4, 2, 2)
    mine = eval(found[1], {"oclbn": oclbn, "layer": layer})
    mine.opencl = spec
    mine.load_state_dict(layer.state_dict())
    assert torch.allclose(mine.eval()(x), layer.eval()(x), atol=1e-6)
    model[0] = mine
    assert ours.convert(model) is model  # which has a layer of ours: nothing to say


def test_convert_tells_only_what_is_there() -> None:
    def said(module: Any) -> str:
        with pytest.warns(ParameterWarning) as caught:
            ours.convert(module)
        return str(caught[0].message)

    assert said(torch.nn.Linear(2, 2)).endswith("nothing is converted")
    lazy = said(torch.nn.LazyBatchNorm2d())
    assert lazy.endswith("'itself' (LazyBatchNorm2d). A lazy layer can be converted after its first call")
    many = said(torch.nn.ModuleList(torch.nn.SyncBatchNorm(2) for _ in range(8)))
    assert "'4' (SyncBatchNorm) and 3 more" in many
    assert "lazy" not in many
