"""NumPy's .npz as frameworks write it: Chainer's serializer and MLX, and layers that are none per channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import real_files
from layer_samples import layer

from oclbn import weights
from oclbn.files.layers import same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")


@pytest.mark.parametrize("name", ["npz_chainer", "npz_mlx_float32", "npz_mlx_bfloat16"])
def test_real_files_compute_what_their_framework_computes(name: str, tmp_path: Path) -> None:
    real_files.check(name, weights.read(real_files.unpacked(name, tmp_path)))


def test_chainer(tmp_path: Path) -> None:
    """Renormalization keeps the same statistics; group and decorrelated normalization are none of these."""
    content = weights.read(real_files.unpacked("npz_chainer", tmp_path))
    assert {one.convention for one in content.layers} == {"chainer"}
    assert content["bn"].batches is None, "its N counts no batches but those of fine-tuning: it is 0 after two"
    assert content["bare"].scale is None
    (note,) = content.notes
    assert str(note).startswith("apart: it is not read: shapes are")


def test_a_copy_takes_values_and_keeps_what_is_not_read(tmp_path: Path) -> None:
    path = real_files.unpacked("npz_chainer", tmp_path)
    weights.write(tmp_path / "new.npz", [layer("bn", 3)], into=path)
    with np.load(path) as before, np.load(tmp_path / "new.npz") as after:
        assert before.files == after.files
        for name in before.files:
            if not name.startswith("bn/"):
                assert same_bits(before[name], after[name])


def test_mlx_has_pytorchs_names(tmp_path: Path) -> None:
    """bfloat16 is two bytes without a type in its files."""
    content = weights.read(real_files.unpacked("npz_mlx_bfloat16", tmp_path))
    assert {one.convention for one in content.layers} == {"pytorch"}
    assert "MLX" in content.notes[0].text
    mean = content["layers.1"].mean
    assert mean is not None
    assert mean.dtype.name == "bfloat16"
