"""oclbn.torch's layers beside torch.nn's: results, formats, types, states and errors."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'oclbn[torch]'")
import oclbn.torch as ours  # noqa: E402
from oclbn.errors import ArrayTypeError, DtypeError, OclbnError, ParameterError, ShapeError  # noqa: E402

PAIRS = {
    1: (torch.nn.BatchNorm1d, ours.BatchNorm1d),
    2: (torch.nn.BatchNorm2d, ours.BatchNorm2d),
    3: (torch.nn.BatchNorm3d, ours.BatchNorm3d),
}
LAST, LAST_3D = torch.channels_last, torch.channels_last_3d
TENSORS = [
    pytest.param(lambda: torch.randn(6, 4), id="(N, C)"),
    pytest.param(lambda: torch.randn(5, 4, 7), id="(N, C, L)"),
    pytest.param(lambda: torch.randn(3, 4, 5, 7), id="pictures"),
    pytest.param(lambda: torch.randn(2, 4, 3, 5, 7), id="volumes"),
    pytest.param(lambda: torch.randn(3, 4, 5, 7).to(memory_format=LAST), id="pictures, channels last"),
    pytest.param(lambda: torch.randn(2, 4, 3, 5, 7).to(memory_format=LAST_3D), id="volumes, channels last"),
    pytest.param(lambda: torch.randn(4, 6).t(), id="transposed"),
    pytest.param(lambda: torch.randn(5, 7, 4).transpose(1, 2), id="transposed sequences"),
    pytest.param(lambda: torch.randn(3, 4, 5, 14)[..., ::2], id="every second column"),
    pytest.param(lambda: torch.randn(3, 8, 5, 7).to(memory_format=LAST)[:, :4], id="some of channels that are last"),
    pytest.param(lambda: torch.randn(3, 8, 5, 7).to(memory_format=LAST)[:, ::2], id="every second of them"),
    pytest.param(lambda: torch.randn(7, 3, 4, 5).permute(1, 2, 0, 3), id="axes anyhow"),
    pytest.param(lambda: torch.randn(3, 4, 1, 1).to(memory_format=LAST), id="one pixel, any format"),
    pytest.param(lambda: torch.randn(3, 1, 5, 7), id="one channel, any format"),
    pytest.param(lambda: torch.randn(9, 1, 5).expand(9, 4, 5), id="channels that are the same memory"),
    pytest.param(lambda: torch.randn(1000)[3 : 3 + 96].view(2, 4, 12), id="off any alignment"),
]


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def dims(x: Any) -> int:
    return max(x.dim() - 2, 1)


def pair(x: Any, spec: str, **options: Any) -> tuple[Any, Any]:
    """A layer of PyTorch's and one of ours, with the same parameters and statistics, no fresh layer's."""
    theirs_class, ours_class = PAIRS[dims(x)]
    theirs = theirs_class(x.shape[1], **options)
    with torch.no_grad():
        for one in theirs.state_dict().values():
            if one.is_floating_point():
                one.uniform_(0.5, 1.5)
    mine = ours_class(x.shape[1], opencl=spec, **options)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, mine


def step(layer: Any, x: Any, dy: Any) -> dict[str, Any]:
    """y, all gradients and the state after it."""
    x = x.detach().requires_grad_()
    y = layer(x)
    found = {"y": y.detach()}
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad(y, (x, *parameters.values()), dy)
    found |= dict(zip(("dx", *(f"d{name}" for name in parameters)), gradients, strict=True))
    return found | {name: one.clone() for name, one in layer.named_buffers()}


def double(layer: Any) -> Any:
    """The layer in float64, for what is right."""
    return copy.deepcopy(layer).double()


def lies(tensor: Any) -> list[int]:
    """Strides, but for those of axes of one element, which say nothing."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def near(found: dict[str, Any], right: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == right.keys()
    for name, one in found.items():
        scale = max(1.0, right[name].abs().max().item()) if right[name].numel() else 1.0
        error = (one.double() - right[name]).abs().max().item() if one.numel() else 0.0
        assert error <= tolerance * scale, name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("make", TENSORS)
def test_results_and_formats_are_pytorchs(make: Any, training: bool, spec: str) -> None:
    x = make()
    theirs, mine = pair(x, spec)
    dy = torch.randn(x.shape)
    right = step(double(theirs).train(training), x.double(), dy.double())
    wanted = step(theirs.train(training), x, dy)
    found = step(mine.train(training), x, dy)
    near(found, right, 4e-6)
    for name in ("y", "dx"):
        assert lies(found[name]) == lies(wanted[name])
    assert all(found[name].dtype == one.dtype for name, one in wanted.items())


@pytest.mark.parametrize(
    "options",
    [
        {"affine": False},
        {"track_running_stats": False},
        {"track_running_stats": False, "affine": False},
        {"momentum": None},
        {"momentum": 0.37, "eps": 0.1},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_there(options: dict[str, Any], spec: str) -> None:
    theirs, mine = pair(torch.randn(3, 4, 5, 7), spec, **options)
    theirs = double(theirs)
    for training in (True, True, True, False):  # the state of one step is that of the next
        x, dy = torch.randn(3, 4, 5, 7), torch.randn(3, 4, 5, 7)
        right = step(theirs.train(training), x.double(), dy.double())
        near(step(mine.train(training), x, dy), right, 4e-6)


@pytest.mark.parametrize("parameters", ["float32", "the same"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(dtype: Any, parameters: str, spec: str) -> None:
    x = torch.randn(4, 3, 5, 7).to(dtype)
    theirs, mine = pair(x, spec)
    if parameters == "the same":
        theirs, mine = theirs.to(dtype), mine.to(dtype)
    dy = torch.randn_like(x)
    wanted, found = step(theirs, x, dy), step(mine, x, dy)
    assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in wanted.items()}
    right = step(double(theirs.load_state_dict(mine.state_dict()) and theirs), x.double(), dy.double())
    tolerance = torch.finfo(dtype).eps
    near({name: found[name] for name in ("y", "dx")}, {name: right[name] for name in ("y", "dx")}, tolerance)
    sums = ("dweight", "dbias")
    near({name: found[name] for name in sums}, {name: right[name] for name in sums}, tolerance)


def test_autocast_changes_nothing_as_it_does_there(spec: str) -> None:
    theirs, mine = pair(torch.randn(3, 4, 5, 7), spec)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 4, 5, 7).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            assert mine(x).dtype == theirs(x).dtype == dtype


def test_a_network_under_autocast_trains(spec: str) -> None:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), ours.BatchNorm2d(4, opencl=spec), torch.nn.Flatten())
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.randn(3, 2, 6, 6))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(one.grad.dtype == torch.float32 and one.grad.isfinite().all() for one in network.parameters())


def test_large_means_are_exact(spec: str) -> None:
    x = torch.randn(256, 8) + 1e4
    theirs, mine = pair(x, spec)
    right = step(double(theirs), x.double(), torch.ones(256, 8).double())["y"]
    error, others = ((layer(x).double() - right).abs().max().item() for layer in (mine, theirs))
    assert error < 5e-6
    assert error < others / 50  # which rounds the mean to steps of 1e-3


def test_a_channel_that_is_not_finite_is_as_it_is_there(spec: str) -> None:
    x = torch.randn(6, 4)
    x[2, 1] = torch.nan
    theirs, mine = pair(x, spec)
    wanted, found = step(theirs, x, torch.ones(6, 4)), step(mine, x, torch.ones(6, 4))
    for name, one in wanted.items():
        assert torch.equal(found[name].isnan(), one.isnan()), name
    assert found["running_var"].isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("training", [True, False])
def test_empty_batches(training: bool, spec: str) -> None:
    x = torch.empty(0, 4, 5, 7)
    theirs, mine = pair(x, spec)
    wanted, found = step(theirs.train(training), x, x), step(mine.train(training), x, x)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], one) for name, one in wanted.items())


def test_nothing_is_recorded_without_a_graph(spec: str) -> None:
    layer, x = ours.BatchNorm1d(4, opencl=spec), torch.randn(6, 4, requires_grad=True)
    with torch.no_grad():
        assert layer(x).grad_fn is None
    with torch.inference_mode():
        assert layer.eval()(x).is_inference()
    layer.requires_grad_(False)
    assert not layer(x.detach()).requires_grad


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_only_the_gradients_that_are_wanted(frozen: str, spec: str) -> None:
    x = torch.randn(6, 4, requires_grad=True)
    _, mine = pair(x, spec)
    {"x": x, "weight": mine.weight, "bias": mine.bias}[frozen].requires_grad_(False)
    mine(x).square().sum().backward()
    assert {"x": x, "weight": mine.weight, "bias": mine.bias}[frozen].grad is None
    assert sum(one.grad is not None for one in (x, mine.weight, mine.bias)) == 2


def test_what_pytorch_does_in_place_behind_it_is_fine(spec: str) -> None:
    x = torch.randn(64, 64, 16, 16, requires_grad=True)  # 4 MB: of the kept memory
    theirs, mine = pair(x, spec)
    results = []
    for layer in (theirs, mine):
        y = layer(x)
        y.mul_(2).relu_()
        results.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.allclose(*results, atol=1e-5)


def test_a_weight_that_changed_in_between_is_seen(spec: str) -> None:
    layer = ours.BatchNorm1d(4, opencl=spec)
    y = layer(torch.randn(6, 4))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_evaluation_keeps_the_statistics_that_it_used(spec: str) -> None:
    x = torch.randn(6, 4, requires_grad=True)
    layer = ours.BatchNorm1d(4, opencl=spec, affine=False).eval()
    y = layer(x)
    layer.train()(x.detach() * 100)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(dx, torch.full_like(dx, (1 + 1e-5) ** -0.5))


@pytest.mark.usefixtures("bears_threads")
def test_backward_in_another_thread(spec: str) -> None:
    x = torch.randn(6, 4, requires_grad=True)
    theirs, mine = pair(x, spec)
    y = mine(x)
    thread = threading.Thread(target=lambda: y.square().sum().backward())
    thread.start()
    thread.join()
    found, x.grad = x.grad, None
    theirs(x).square().sum().backward()
    assert found is not None
    assert torch.allclose(found, x.grad, atol=1e-5)


# --- states


def test_states_and_copies(spec: str) -> None:
    theirs, mine = pair(torch.randn(2, 4), spec)
    mine(torch.randn(6, 4))
    theirs.load_state_dict(mine.state_dict(), strict=True)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    copied = copy.deepcopy(mine)
    assert copied._opencl.opencl == spec
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is ours.BatchNorm1d
    assert loaded._opencl.opencl is None
    x = torch.randn(6, 4)
    right = theirs.eval()(x)
    for layer in (mine, copied):
        assert torch.allclose(layer.eval()(x), right, atol=1e-6)
    loaded._opencl = mine._opencl
    assert torch.equal(loaded.eval()(x), mine(x))
    assert loaded.state_dict()["num_batches_tracked"] == 1


def test_hooks_see_what_passes(spec: str) -> None:
    layer, seen = ours.BatchNorm1d(4, opencl=spec), []
    layer.register_forward_pre_hook(lambda module, given: seen.append("before"))
    layer.register_forward_hook(lambda module, given, result: seen.append(tuple(result.shape)))
    layer.register_full_backward_hook(lambda module, into, out: seen.append(tuple(into[0].shape)))
    layer(torch.randn(6, 4, requires_grad=True)).sum().backward()
    assert seen == ["before", (6, 4), (6, 4)]


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.2), "gelu", "silu"], ids=str)
def test_activations(activation: Any, spec: str) -> None:
    x, dy = torch.randn(3, 4, 5, 7), torch.randn(3, 4, 5, 7)
    theirs, _ = pair(x, spec)
    behind = {
        "relu": torch.nn.ReLU(),
        "gelu": torch.nn.GELU(),
        "silu": torch.nn.SiLU(),
        ("leaky_relu", 0.2): torch.nn.LeakyReLU(0.2),
    }[activation]
    mine = ours.BatchNorm2d(4, opencl=spec, activation=activation)
    mine.load_state_dict(theirs.state_dict())
    network = torch.nn.Sequential(double(theirs), behind)
    whole = step(network, x.double(), dy.double())
    right = {name.removeprefix("d0.").removeprefix("0."): one for name, one in whole.items()}
    found = step(mine, x, dy)
    near(found, {name if name in found else f"d{name}": one for name, one in right.items()}, 4e-6)
    assert f"activation={activation!r}" in repr(mine)


# --- errors


def test_one_value_per_channel_is_pytorchs_error(spec: str) -> None:
    for layer in pair(torch.randn(1, 4), spec):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            layer(torch.randn(1, 4))
        assert layer.num_batches_tracked == 1  # as it is there
    assert ours.BatchNorm1d(4, opencl=spec).eval()(torch.randn(1, 4)).shape == (1, 4)


def test_wrong_ranks_are_pytorchs_errors(spec: str) -> None:
    for layer in pair(torch.randn(2, 4), spec):
        with pytest.raises(ValueError, match=r"expected 2D or 3D input \(got 4D input\)"):
            layer(torch.randn(2, 4, 5, 6))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (lambda: np.zeros((2, 4), np.float32), ArrayTypeError, "input is .*; a torch.Tensor is wanted"),
        (lambda: torch.randn(2, 4, device="meta"), ArrayTypeError, "input is a tensor on meta, without data"),
        (lambda: torch.randn(2, 4).to_sparse(), ArrayTypeError, "layout torch.sparse_coo.*input.to_dense.. makes one"),
        (lambda: torch.ones(2, 4, dtype=torch.int32), DtypeError, "input is of torch.int32; .*input.float"),
        (lambda: torch.ones(4), ShapeError, r"input has shape \(4,\)"),
        (lambda: torch.randn(2, 5), ShapeError, "running_mean has 4 elements; input has 5 channels on axis 1"),
        (lambda: torch.randn(2, 4).double(), DtypeError, "running_mean is of torch.float32; torch.float64 is wanted"),
    ],
)
def test_errors_name_what_is_wrong(given: Any, error: type[OclbnError], words: str, spec: str) -> None:
    layer = ours.BatchNorm1d(4, opencl=spec)
    with pytest.raises(error, match=words):
        ours.batch_norm(given(), layer.running_mean, layer.running_var, layer.weight, layer.bias, True, opencl=spec)
    assert layer.running_mean.abs().sum() == 0


def test_errors_of_options(spec: str) -> None:
    with pytest.raises(ParameterError, match=r"opencl is .*; a name or index of a device"):
        ours.BatchNorm1d(4, opencl=0)
    with pytest.raises(ParameterError, match="activation is 'relo'"):
        ours.BatchNorm1d(4, activation="relo")
    with pytest.raises(ArrayTypeError, match="running_var is None; in evaluation a tensor of 4 elements"):
        ours.batch_norm(torch.randn(2, 4), torch.zeros(4), None, opencl=spec)


def test_a_queue_of_ones_own(queue: Any) -> None:
    x = torch.randn(6, 4)
    theirs, mine = pair(x, queue)
    assert torch.allclose(mine(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_want_a_gradient_are_refused(training: bool, spec: Any) -> None:
    mean = torch.zeros(4, requires_grad=True)
    with pytest.raises(ArrayTypeError, match="running_mean requires a gradient"):
        ours.batch_norm(torch.randn(3, 4), mean, torch.ones(4), training=training, opencl=spec)
    with torch.no_grad():
        ours.batch_norm(torch.randn(3, 4), mean, torch.ones(4), training=training, opencl=spec)
