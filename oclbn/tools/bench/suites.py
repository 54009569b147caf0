"""PURE: the shapes that the benchmark times, by name.

A case is a shape and the axis of its channels. The networks' suites hold each distinct shape that batch normalization
sees once, however often the network has it, largest maps first. Sources: K. He et al., arXiv:1512.03385, table 1
(ResNet-50); G. Huang et al., arXiv:1608.06993, table 1 (DenseNet-121, growth 32); M. Sandler et al., arXiv:1801.04381,
table 2 (MobileNetV2).
"""

from __future__ import annotations

Shape = tuple[int, ...]
Case = tuple[Shape, int]

_RESNET50 = (
    *((64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28)),
    *((256, 28), (256, 14), (1024, 14), (512, 14), (512, 7), (2048, 7)),
)
_MOBILENET_V2 = (
    *((32, 112), (16, 112), (96, 112), (96, 56), (24, 56), (144, 56), (144, 28), (32, 28), (192, 28)),
    *((192, 14), (64, 14), (384, 14), (96, 14), (576, 14), (576, 7), (160, 7), (960, 7), (320, 7), (1280, 7)),
)


def _maps(batch: int, layers: tuple[tuple[int, int], ...]) -> tuple[Case, ...]:
    """Square maps: (channels, side) of each layer."""
    return tuple(((batch, channels, side, side), 1) for channels, side in layers)


def _densenet121() -> tuple[tuple[int, int], ...]:
    """A layer normalises all maps so far, then the 128 of its bottleneck; a transition halves maps and sides."""
    found: dict[tuple[int, int], None] = {(64, 112): None}
    channels, side = 64, 56
    for layers in (6, 12, 24, 16):
        for _ in range(layers):
            found |= {(channels, side): None, (128, side): None}
            channels += 32
        found[channels, side] = None
        if side > 7:
            channels, side = channels // 2, side // 2
    return tuple(found)


SUITES: dict[str, tuple[Case, ...]] = {
    "resnet50": _maps(32, _RESNET50),
    "resnet50-1": _maps(1, _RESNET50),
    "resnet50-128": _maps(128, _RESNET50),
    "resnet50-256": _maps(256, _RESNET50),
    "densenet": _maps(32, _densenet121()),
    "mobilenet": _maps(32, _MOBILENET_V2),
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
