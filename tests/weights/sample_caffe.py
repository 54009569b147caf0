"""Sound Caffe files, for damaging."""

from __future__ import annotations

from layer_samples import layer
from real_files import contents

from oclbn.files.formats import caffe


def samples() -> list[dict[str, bytes]]:
    layers = [layer(epsilon=1e-3, factor=0.01), layer("other", 3, "float64", scale=None, bias=None)]
    ours = dict(caffe.write(layers, "one.caffemodel", None).files)
    return [ours, contents("caffe_opencv")]
