"""What is written to a file of any format, and read back: the same bits, or a note that says what is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layer_samples import DTYPES, layer, strange

from oclbn import weights
from oclbn.errors import WeightsError
from oclbn.files import formats
from oclbn.files.formats import Format
from oclbn.files.layers import Layer, same_bits

pytestmark = pytest.mark.once(reason="files are the host's affair")
ALL = pytest.mark.parametrize("form", formats.FORMATS, ids=lambda form: form.name)


def there_and_back(folder: Path, form: Format, *layers: Layer) -> tuple[list[Layer], weights.Report]:
    path = folder / f"file{form.endings[0]}"
    report = weights.write(path, layers, overwrite=True, format=form.name)
    assert formats.of_file(path) == form, "told by what it holds"
    return list(weights.read(path).values()), report


@ALL
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back_bit_by_bit(form: Format, dtype: str, tmp_path: Path) -> None:
    given = [layer(dtype=dtype, channels=5, epsilon=1e-3), layer("net.bn2", 1, dtype, 1), layer("out", 130, dtype, 2)]
    back, report = there_and_back(tmp_path, form, *given)
    if form.names:
        assert [one.name for one in back] == [one.name for one in given]
    for one, same in zip(given, back, strict=True):
        for role, array in one.arrays.items():
            found = same.arrays[role]
            if dtype in form.dtypes:
                if not form.derived:
                    assert found.dtype == array.dtype
                assert same_bits(found.astype(array.dtype), array)
            elif dtype != "float64":  # into float32, which holds it
                assert same_bits(found.astype(array.dtype), array)
            else:
                assert np.array_equal(found, array.astype(found.dtype))
                assert any(note.lost and note.layer == one.name and role in note.text for note in report.notes)


@ALL
def test_numbers_that_are_not_finite_come_back(form: Format, tmp_path: Path) -> None:
    """NaN with a payload, infinities, zeros of both signs, the least number: of a layer whose training went wrong."""
    for dtype in set(DTYPES) & set(form.dtypes):
        odd = strange(dtype)
        given = layer(channels=6, dtype=dtype, mean=odd, scale=odd[::-1].copy(), bias=odd.copy())
        (back,), _ = there_and_back(tmp_path, form, given)
        for role, array in given.arrays.items():
            assert same_bits(back.arrays[role].astype(array.dtype), array), (dtype, role)


@ALL
def test_numbers_that_have_a_place_come_back(form: Format, tmp_path: Path) -> None:
    """epsilon, factor, cumulative and batches; what has no place is told."""
    given = layer(epsilon=0.002, factor=0.25, batches=12)
    (back,), report = there_and_back(tmp_path, form, given)
    for key in ("epsilon", "factor", "batches"):
        if key in form.keeps:
            assert getattr(back, key) == pytest.approx(getattr(given, key), rel=1e-7), key
        elif key != "batches":
            assert any(note.lost and str(getattr(given, key)) in note.text for note in report.notes), key


@ALL
def test_a_layer_without_running_statistics_is_refused_or_kept(form: Format, tmp_path: Path) -> None:
    given = layer(mean=None, var=None)
    path = tmp_path / f"file{form.endings[0]}"
    try:
        weights.write(path, [given], format=form.name)
    except WeightsError as refused:
        told = str(refused)
    else:
        told = ""
    if told:
        assert "running statistics" in told
        assert not list(tmp_path.iterdir()), "nothing is left behind"
    else:
        (back,) = weights.read(path).values()
        assert back.mean is None


@ALL
def test_a_layer_without_scale_and_bias(form: Format, tmp_path: Path) -> None:
    """They stay away, or stand there as ones and zeros."""
    (back,), _ = there_and_back(tmp_path, form, layer(scale=None, bias=None))
    assert back.scale is None or (back.scale == 1).all()
    assert back.bias is None or (back.bias == 0).all()


@ALL
def test_a_copy_of_a_model_takes_other_values(form: Format, tmp_path: Path) -> None:
    """`into`: by name, and in order where no name fits; a wrong number of channels is told."""
    model, target = tmp_path / f"model{form.endings[0]}", tmp_path / f"new{form.endings[0]}"
    weights.write(model, [layer("a", 4, seed=1, batches=1), layer("b", 6, seed=2, batches=2)], format=form.name)
    first, second = layer("a", 4, seed=3), layer("b", 6, seed=4)
    before = model.read_bytes()
    for names in ("ab", "xy") if form.ordered else ("ab",):
        renamed = [weights.renamed(one, name) for one, name in zip((first, second), names, strict=True)]
        weights.write(target, renamed, into=model, format=form.name, overwrite=True)
        for one, same in zip((first, second), weights.read(target).values(), strict=True):
            for role, array in one.arrays.items():
                assert same_bits(same.arrays[role].astype(array.dtype), array)
    assert model.read_bytes() == before
    if form.names:
        bare = layer("a", 4, seed=5, scale=None, bias=None)
        weights.write(target, [bare], into=model, format=form.name, overwrite=True)
        back = weights.read(target)["a"]
        assert back.scale is None or (back.scale == 1).all(), "what was there is not left behind"
        assert back.bias is None or (back.bias == 0).all()
    with pytest.raises(WeightsError, match="channels"):
        weights.write(target, [layer("a", 5), layer("b", 6)], into=model, format=form.name, overwrite=True)
    with pytest.raises(WeightsError, match="layers go by name"):
        weights.write(target, [layer("x", 4)], into=model, format=form.name, overwrite=True)
    if not form.ordered:
        with pytest.raises(WeightsError, match="cannot be paired in order"):
            weights.write(target, [layer("x", 4), layer("y", 6)], into=model, format=form.name, overwrite=True)
