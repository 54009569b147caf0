"""Sound ncnn files, for damaging."""

from __future__ import annotations

from layer_samples import layer
from real_files import contents

from oclbn.files.formats import ncnn


def samples() -> list[dict[str, bytes]]:
    layers = [layer(epsilon=1e-3), layer("other", 3)]
    ours = dict(ncnn.write(layers, "one.param", None).files)
    return [ours, contents("ncnn_pnnx"), contents("ncnn_kinds")]
