"""First and second derivatives of oclbn.torch, by finite differences in float64 and within PyTorch's own machinery."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'oclbn[torch]'")
import oclbn.torch as ours  # noqa: E402
from oclbn.errors import DerivativeError  # noqa: E402
from oclbn.torch import function  # noqa: E402

SHAPES = [(4, 3), (3, 3, 5), (2, 3, 2, 3), (2, 2, 2, 3, 2)]
BOTH = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def check(x: Any, training: bool, affine: bool, spec: str, **options: Any) -> bool:
    channels = x.shape[1]
    mean, var = torch.randn(channels).double(), torch.rand(channels).double() + 0.5
    parameters = [torch.randn(channels).double().requires_grad_() for _ in range(2 if affine else 0)]

    def normalise(x: Any, *parameters: Any) -> Any:
        weight, bias = parameters or (None, None)
        return ours.batch_norm(x, mean, var, weight, bias, training, 0.0, opencl=spec, **options)

    given = (x.requires_grad_(), *parameters)
    second = "activation" in options or torch.autograd.gradgradcheck(normalise, given)
    return torch.autograd.gradcheck(normalise, given) and second


@pytest.mark.usefixtures("needs_fp64")
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_derivatives(shape: tuple[int, ...], training: bool, affine: bool, spec: str) -> None:
    assert check(torch.randn(shape).double(), training, affine, spec)


@pytest.mark.usefixtures("needs_fp64")
@BOTH
def test_both_derivatives_of_channels_last(training: bool, spec: str) -> None:
    assert check(torch.randn(2, 3, 2, 3).double().to(memory_format=torch.channels_last), training, True, spec)


@pytest.mark.usefixtures("needs_fp64")
@pytest.mark.parametrize("way", ["shared", "mapped", "copied"])
@BOTH
def test_both_derivatives_however_memory_is_lent(
    training: bool, way: Any, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "shared" and loan_way(spec) != "shared":
        pytest.skip("needs a device whose kernels and the host see one memory")
    monkeypatch.setattr(function, "forced_way", way)
    assert check(torch.randn(2, 3, 4).double(), training, True, spec)


def loan_way(spec: str) -> str:
    from oclbn.torch import loan

    return loan.way_of(function.queue_of(spec))


@pytest.mark.usefixtures("needs_fp64")
@pytest.mark.parametrize("activation", ["gelu", "softplus"])
@BOTH
def test_the_derivative_behind_an_activation(training: bool, activation: str, spec: str) -> None:
    assert check(torch.randn(2, 3, 2, 3).double(), training, True, spec, activation=activation)


def test_a_penalty_on_gradients_is_pytorchs(spec: str) -> None:
    x = torch.randn(5, 4, 6, requires_grad=True)
    found = []
    for layer in (torch.nn.BatchNorm1d(4).double(), ours.BatchNorm1d(4, opencl=spec)):
        z = x.to(layer.weight.dtype)
        (dx,) = torch.autograd.grad(layer(z).pow(3).sum(), z, create_graph=True)
        gradients = torch.autograd.grad((dx.square().sum(), layer(z).sum()), (x, layer.weight))
        found.append([one.double() for one in gradients])
    for right, mine in zip(*found, strict=True):
        assert torch.allclose(mine, right, rtol=1e-4, atol=1e-4 * right.abs().max().item())


def test_there_is_no_third(spec: str) -> None:
    x = torch.randn(5, 4, requires_grad=True)
    y = ours.BatchNorm1d(4, opencl=spec)(x).pow(3).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(DerivativeError, match="a third derivative"):
        torch.autograd.grad(second.sum(), x)


def test_there_is_no_second_behind_an_activation(spec: str) -> None:
    x = torch.randn(5, 4, requires_grad=True)
    y = ours.BatchNorm1d(4, activation="silu", opencl=spec)(x).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(DerivativeError, match="activation='silu'"):
        torch.autograd.grad(first.sum(), x)


def test_functional_derivatives(spec: str) -> None:
    layer, x = ours.BatchNorm1d(4, opencl=spec), torch.randn(6, 4)
    mean, var = layer.running_mean, layer.running_var

    def loss(x: Any, weight: Any) -> Any:
        return ours.batch_norm(x, mean, var, weight, None, True, opencl=spec).pow(3).sum()

    found = torch.func.grad(loss, argnums=(0, 1))(x, layer.weight.detach())
    z, weight = x.clone().requires_grad_(), layer.weight.detach().clone().requires_grad_()
    right = torch.autograd.grad(
        torch.nn.functional.batch_norm(z, None, None, weight, None, True).pow(3).sum(), (z, weight)
    )
    for mine, one in zip(found, right, strict=True):
        assert torch.allclose(mine, one, atol=1e-4)


def test_checkpoints(spec: str) -> None:
    from torch.utils.checkpoint import checkpoint

    layer, x = ours.BatchNorm1d(4, opencl=spec), torch.randn(6, 4, requires_grad=True)
    (plain,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    (again,) = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).pow(3).sum(), x)
    assert torch.equal(plain, again)


@pytest.mark.filterwarnings("ignore:::torch")  # the compiler's own
def test_a_compiled_network(spec: str) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), ours.BatchNorm1d(4, opencl=spec), torch.nn.ReLU())
    compiled, x = torch.compile(network, backend="eager"), torch.randn(6, 3)
    y = compiled(x)
    y.sum().backward()
    right = network(x)
    assert torch.allclose(y, right)
    found, network[0].weight.grad = network[0].weight.grad, None
    right.sum().backward()
    assert torch.allclose(found, network[0].weight.grad, atol=1e-6)
    assert network[1].num_batches_tracked == 2
