"""Sound .h5 files of Keras 2, for damaging."""

from __future__ import annotations

from layer_samples import layer
from real_files import content

from oclbn.files.formats import keras2


def samples() -> list[dict[str, bytes]]:
    made = dict(keras2.write([layer(), layer("other", 3, "float16")], "one.h5", None).files)
    names = ("tf_keras-2.21.0.h5", "tf_keras-2.21.0-weights.h5", "tf_keras-2.21.0-renorm.h5")
    return [made, *({name: content(name)} for name in names)]
