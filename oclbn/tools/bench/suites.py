"""PURE: the shapes that the benchmark times, by name.

A case is a shape and the axis of its channels. The networks' suites hold each distinct shape that batch normalization
sees once, however often the network has it, largest maps first. Sources: K. He et al., arXiv:1512.03385, table 1
(ResNet-50); G. Huang et al., arXiv:1608.06993, table 1 (DenseNet-121, growth 32); M. Sandler et al., arXiv:1801.04381,
table 2 (MobileNetV2).
"""

from __future__ import annotations

Shape = tuple[int, ...]
Case = tuple[Shape, int]
Layers = tuple[tuple[int, int], ...]


def _resnet50() -> Layers:
    """A block normalises its own maps twice, then four times as many; a stage's first halves sides at its second."""
    found = [(64, 112)]
    before = 56
    for channels, side, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        for block in range(blocks):
            found += [(channels, before), (channels, side), (4 * channels, side)]
            found += [(4 * channels, side)] if block == 0 else []  # of what goes round it
            before = side
    return tuple(found)


def _mobilenet_v2() -> Layers:
    """A block normalises expanded maps twice, before and behind its stride, and what it makes of them."""
    found = [(32, 112)]
    channels, side = 32, 112
    for expansion, made, blocks, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(blocks):
            found += [(channels * expansion, side)] if expansion > 1 else []
            side //= stride if block == 0 else 1
            found += [(channels * expansion, side), (made, side)]
            channels = made
    return (*found, (1280, side))


def _densenet121() -> Layers:
    """A layer normalises all maps so far, then the 128 of its bottleneck; a transition halves maps and sides."""
    found = [(64, 112)]
    channels, side = 64, 56
    for layers in (6, 12, 24, 16):
        for _ in range(layers):
            found += [(channels, side), (128, side)]
            channels += 32
        found.append((channels, side))
        if side > 7:
            channels, side = channels // 2, side // 2
    return tuple(found)


# Channels and side of what each batch normalization of a network sees, in the order of its forward pass.
NETWORKS: dict[str, Layers] = {"resnet50": _resnet50(), "mobilenet": _mobilenet_v2(), "densenet": _densenet121()}


def _maps(batch: int, network: str) -> tuple[Case, ...]:
    """The distinct square maps of a network, largest sides first."""
    distinct = sorted(dict.fromkeys(NETWORKS[network]), key=lambda layer: -layer[1])
    return tuple(((batch, channels, side, side), 1) for channels, side in distinct)


SUITES: dict[str, tuple[Case, ...]] = {
    "resnet50": _maps(32, "resnet50"),
    "resnet50-1": _maps(1, "resnet50"),
    "resnet50-128": _maps(128, "resnet50"),
    "resnet50-256": _maps(256, "resnet50"),
    "densenet": _maps(32, "densenet"),
    "mobilenet": _maps(32, "mobilenet"),
    "mlp": tuple(
        ((batch, features), 1)
        for batch, features in (
            *((64, 64), (64, 1024), (256, 256), (256, 1024), (1024, 1024), (1024, 4096)),
            *((16384, 64), (16384, 1024), (65536, 64), (65536, 512), (65536, 4096)),
        )
    ),
    "channels-last": tuple(
        ((32, side, side, channels), 3) for channels, side in ((256, 56), (512, 28), (1024, 14), (2048, 7))
    ),
    "extremes": (
        *(((1, 3, 2048, 2048), 1), ((65536, 64), 1), ((2, 4097, 1, 1), 1)),
        *(((256, 2048, 7, 7), 1), ((1, 1, 1 << 25), 1)),
    ),
    "sweep": tuple(((1 << power, 256, 32, 32), 1) for power in range(12)),  # 1 MiB to 2 GiB, doubling
}
