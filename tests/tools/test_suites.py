"""The benchmark's shapes."""

from __future__ import annotations

import math

import pytest

from oclbn.tools.bench.suites import NETWORKS, SUITES


@pytest.mark.parametrize("suite", SUITES)
def test_suites_are_distinct_shapes(suite: str) -> None:
    assert len(set(SUITES[suite])) == len(SUITES[suite])
    for shape, axis in SUITES[suite]:
        assert 0 <= axis < len(shape)
        assert all(size > 0 for size in shape)
        assert math.prod(shape) > shape[axis], "one value per channel cannot be trained"


@pytest.mark.parametrize(("suite", "batch"), [("resnet50-1", 1), ("resnet50-256", 256)])
def test_batches_differ_in_nothing_else(suite: str, batch: int) -> None:
    assert [(batch, *shape[1:]) for shape, _ in SUITES["resnet50"]] == [shape for shape, _ in SUITES[suite]]


@pytest.mark.parametrize(
    ("suite", "shape"),
    [
        pytest.param("resnet50", (32, 64, 112, 112), id="the stem"),
        pytest.param("densenet", (32, 224, 56, 56), id="the last layer of block 1"),
        pytest.param("densenet", (32, 256, 56, 56), id="the first transition"),
        pytest.param("densenet", (32, 1024, 14, 14), id="the last transition"),
        pytest.param("densenet", (32, 512, 7, 7), id="the first layer of block 4"),
        pytest.param("densenet", (32, 1024, 7, 7), id="before the classifier"),
        pytest.param("mobilenet", (32, 1280, 7, 7), id="the last convolution"),
        pytest.param("mlp", (65536, 4096), id="the largest"),
        pytest.param("extremes", (1, 1, 1 << 25), id="one channel"),
    ],
)
def test_shapes_of_the_networks(suite: str, shape: tuple[int, ...]) -> None:
    assert (shape, 1) in SUITES[suite]


def test_densenet_121_has_its_transitions_and_no_more() -> None:
    assert max(shape[1] for shape, _ in SUITES["densenet"]) == 1024
    assert {shape[2] for shape, _ in SUITES["densenet"]} == {112, 56, 28, 14, 7}


def test_the_sweep_goes_from_1_mib_to_2_gib_by_doubling() -> None:
    sizes = [4 * math.prod(shape) for shape, _ in SUITES["sweep"]]
    assert sizes == [1 << power for power in range(20, 32)]


@pytest.mark.parametrize(
    ("network", "layers", "parameters"),
    [
        pytest.param("resnet50", 53, 53_120, id="ResNet-50"),
        pytest.param("mobilenet", 52, 34_112, id="MobileNetV2"),
        pytest.param("densenet", 121, 83_648, id="DenseNet-121"),
    ],
)
def test_networks_have_all_their_layers(network: str, layers: int, parameters: int) -> None:
    """As many as torchvision's models: modules of BatchNorm2d, and their scales and biases."""
    assert len(NETWORKS[network]) == layers
    assert sum(2 * channels for channels, _ in NETWORKS[network]) == parameters
