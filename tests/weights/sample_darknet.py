"""Sound Darknet files, for damaging."""

from __future__ import annotations

from layer_samples import layer
from real_files import contents

from oclbn.files.formats import darknet


def samples() -> list[dict[str, bytes]]:
    ours = dict(darknet.write([layer(), layer("other", 3)], "one.weights", None).files)
    return [ours, contents("darknet_opencv")]
