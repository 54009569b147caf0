"""Sound safetensors files, for damaging."""

from __future__ import annotations

import json

from layer_samples import layer

from oclbn.files.formats import safetensors


def samples() -> list[dict[str, bytes]]:
    layers = [layer(batches=7), layer("other", 3, "bfloat16")]
    one = dict(safetensors.write(layers, "one.safetensors", None).files)
    weights = {f"net.bn1.{name}": "one.safetensors" for name in ("weight", "bias", "running_mean", "running_var")}
    index = json.dumps({"metadata": {"total_size": 80}, "weight_map": weights}).encode()
    return [one, {"model.safetensors.index.json": index, **one}]
