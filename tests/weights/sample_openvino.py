"""Sound IR files, for damaging."""

from __future__ import annotations

import tempfile
from pathlib import Path

from layer_samples import layer
from real_files import real

from oclbn.files.formats import openvino


def samples() -> list[dict[str, bytes]]:
    layers = [layer(epsilon=1e-3), layer("a<b", 3, "bfloat16"), layer("third", 2, "float64")]
    with tempfile.TemporaryDirectory() as folder:
        real("openvino", Path(folder))
        kept = {name: Path(folder, name).read_bytes() for name in ("model.xml", "model.bin")}
    return [dict(openvino.write(layers, "one.xml", None).files), kept]
