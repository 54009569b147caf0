"""Sound parameters of NNabla, for damaging."""

from __future__ import annotations

from layer_samples import layer
from real_files import content

from oclbn.files.formats import nnabla


def samples() -> list[dict[str, bytes]]:
    made = dict(nnabla.write([layer("a/bn"), layer("b/bn", 3, "float16")], "one.h5", None).files)
    return [made, {"nnabla-1.39.0.h5": content("nnabla-1.39.0.h5")}]
