"""Sound files of Keras 3, for damaging."""

from __future__ import annotations

import json

from layer_samples import layer
from real_files import content

from oclbn.files.formats import keras


def samples() -> list[dict[str, bytes]]:
    made = dict(keras.write([layer(), layer("other", 3, "bfloat16")], "one.weights.h5", None).files)
    names = ("keras-3.15.1-own.weights.h5", "keras-3.15.1-bfloat16.weights.h5", "tf_keras-2.21.0.weights.h5")
    shard = {"model_00000.weights.h5": made["one.weights.h5"]}
    index = {"weight_map": {"/layers/batch_normalization/vars": list(shard)}}
    return [
        made,
        *({name: content(name)} for name in names),
        {"keras-3.15.1.keras": content("keras-3.15.1.keras")},
        {"model.weights.json": json.dumps(index).encode(), **shard},
    ]
