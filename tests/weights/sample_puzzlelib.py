"""Sound parameter files of PuzzleLib's layout, for damaging: of both of HDF5's formats, packed and not."""

from __future__ import annotations

import fuzzed_files
from layer_samples import layer

from oclbn.files.formats import puzzlelib


def samples() -> list[dict[str, bytes]]:
    layers = [layer(batches=7), layer("other", 3, "bfloat16"), layer("third", 3, seed=1)]  # names enough for a heap
    made = dict(puzzlelib.write(layers, "one.hdf", None).files)
    return [made, *({f"{number}.hdf": image} for number, image in enumerate(fuzzed_files.images()))]
