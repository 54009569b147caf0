"""Sound files of Flax, for damaging."""

from __future__ import annotations

from layer_samples import layer
from real_files import contents

from oclbn.files.formats import flax


def samples() -> list[dict[str, bytes]]:
    layers = [layer(), layer("other/bn", 3, "bfloat16", scale=None)]
    return [
        dict(flax.write(layers, "one.msgpack", None).files),
        *(contents(name) for name in ("flax_linen", "flax_nnx")),
    ]
