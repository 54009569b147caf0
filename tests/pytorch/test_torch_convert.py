"""Whole models: converted and back, trained beside PyTorch's own layers, loaded by processes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra torch: pip install 'oclbn[torch]'")
import oclbn.torch as ours  # noqa: E402
from oclbn.errors import ArrayTypeError, ParameterError, ParameterWarning  # noqa: E402


class Own(torch.nn.BatchNorm2d):
    """A layer that somebody has derived."""


class Network(torch.nn.Module):
    """All kinds of layers, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3)
        self.norm = self.same = torch.nn.BatchNorm2d(4)
        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8))
        self.volume = torch.nn.BatchNorm3d(2)
        self.own, self.sync = Own(4), torch.nn.SyncBatchNorm(4)

    def forward(self, x: Any) -> Any:
        return self.inner(self.norm(self.first(x)).relu())


def kinds(model: Any) -> list[type]:
    return [type(layer) for layer in model.modules()]


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def test_there_and_back(spec: str) -> None:
    model = Network()
    before, layers, parameters = kinds(model), list(model.modules()), list(model.parameters())
    model.norm.eval()
    seen: list[str] = []
    model.norm.register_forward_hook(lambda module, given, result: seen.append(type(module).__module__))
    state = copy.deepcopy(model.state_dict())

    assert ours.convert(model, opencl=spec) is model
    assert [type(one) for one in (model.norm, model.inner[2], model.volume)] == [
        ours.BatchNorm2d,
        ours.BatchNorm1d,
        ours.BatchNorm3d,
    ]
    assert model.same is model.norm
    assert [type(one) for one in (model.own, model.sync)] == [Own, torch.nn.SyncBatchNorm]
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert not model.norm.training
    assert model.inner[2].training
    x = torch.randn(5, 1, 6, 6)
    y = model(x)

    assert ours.revert(model) is model
    assert kinds(model) == before
    assert all(one is other for one, other in zip(model.modules(), layers, strict=True))
    assert "_opencl" not in model.norm.__dict__
    model.load_state_dict(state)
    assert torch.allclose(model(x), y, atol=1e-5)
    assert seen == ["oclbn.torch.modules", "torch.nn.modules.batchnorm"]


def test_a_layer_that_is_all_of_the_model(spec: str) -> None:
    layer = torch.nn.BatchNorm1d(3)
    assert type(ours.convert(layer, opencl=spec)) is ours.BatchNorm1d
    assert layer(torch.randn(4, 3)).shape == (4, 3)
    assert type(ours.revert(layer)) is torch.nn.BatchNorm1d


def test_a_copy_leaves_the_model_alone(spec: str) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    converted = ours.convert(copy.deepcopy(model), opencl=spec)
    assert (type(model[0]), type(converted[0])) == (torch.nn.BatchNorm1d, ours.BatchNorm1d)


def test_lazy_layers_are_converted_once_they_are_made(spec: str) -> None:
    model = torch.nn.Sequential(torch.nn.LazyBatchNorm1d())
    with pytest.warns(ParameterWarning, match="A lazy layer can be converted after its first call"):
        ours.convert(model, opencl=spec)
    assert type(model[0]) is torch.nn.LazyBatchNorm1d
    model(torch.randn(4, 3))
    assert type(ours.convert(model, opencl=spec)[0]) is ours.BatchNorm1d
    assert model(torch.randn(4, 3)).shape == (4, 3)


def test_what_is_refused() -> None:
    with pytest.raises(ArrayTypeError, match=r"module is of type list; a torch\.nn\.Module"):
        ours.convert([torch.nn.BatchNorm1d(3)])
    with pytest.raises(ParameterError, match="opencl"):
        ours.convert(torch.nn.BatchNorm1d(3), opencl=1.5)
    model = torch.nn.Sequential(ours.BatchNorm1d(3), ours.BatchNorm1d(3, activation="relu"))
    with pytest.raises(ParameterError, match="layer '1' with activation='relu'"):
        ours.revert(model)
    assert type(model[0]) is ours.BatchNorm1d


def test_training_comes_to_the_same(spec: str) -> None:
    x = torch.randn(64, 1, 6, 6)
    labels = (x.mean((1, 2, 3)) > 0).long()
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Linear(8, 2),
    )
    losses = []
    for network in (copy.deepcopy(model), ours.convert(copy.deepcopy(model), opencl=spec)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(x), labels)
            loss.backward()
            optimizer.step()
        network.eval()
        losses.append((loss.item(), torch.nn.functional.cross_entropy(network(x), labels).item()))
    assert losses[0][0] < 0.1
    for theirs, mine in zip(*losses, strict=True):
        assert mine == pytest.approx(theirs, rel=0.05, abs=5e-3)


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """Data that workers load, which needs no device."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.full((3,), float(index))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_that_load_data_may_be_forked(spec: str) -> None:
    layer = ours.BatchNorm1d(3, opencl=spec)
    layer(torch.randn(4, 3))
    loaded = torch.utils.data.DataLoader(Rows(), batch_size=4, num_workers=1)
    assert [layer(batch).shape for batch in loaded] == [(4, 3), (4, 3)]
