"""The forms of kernels that tests/program/test_kernels.py forces, its shapes, and how any form is forced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyopencl as cl
import pytest
from conftest import LONG

from oclbn.call import prepared
from oclbn.device import limits
from oclbn.elements import dtype_of
from oclbn.program.kept import kept
from oclbn.tuning import using

FORMS = [
    pytest.param({"variant": "resident", "lanes": 1, "vec": 4}, id="resident, one work-item"),
    pytest.param({"variant": "resident", "lanes": 1, "vec": 8, "blocks": 2}, id="resident, one work-item, wide"),
    pytest.param({"variant": "resident", "lanes": 16, "vec": 1, "blocks": 1}, id="resident, 16 work-items"),
    pytest.param({"variant": "resident", "lanes": 64, "vec": 4, "blocks": 2}, id="resident, 64 work-items, vectors"),
    pytest.param({"variant": "split", "lanes": 1, "vec": 4, "groups_per_unit": 5}, id="split, one work-item"),
    pytest.param({"variant": "resident", "lanes": 1, "vec": 4, "run_bytes": 60}, id="resident, strips of 15"),
    pytest.param({"variant": "split", "lanes": 1, "vec": 8, "unroll": 2, "run_bytes": 72}, id="split, strips of 18"),
    pytest.param({"variant": "split", "lanes": 1, "vec": 1, "unroll": 1}, id="split, one work-item, no vectors"),
    pytest.param({"variant": "split", "lanes": 32, "vec": 1, "blocks": 1}, id="split, 32 work-items"),
    pytest.param({"variant": "split", "lanes": 16, "vec": 4, "blocks": 1}, id="split, 16 work-items, vectors"),
    pytest.param({"variant": "serial"}, id="serial"),
]
# Of each walk a form and a shape that is small; "past the cache": where everything is (shrink).
WALKS = [
    pytest.param({"variant": "resident", "lanes": 1, "vec": 4, "run_bytes": 0}, (3, 5, 37), id="small rows"),
    pytest.param({"variant": "split", "lanes": 1, "vec": 8, "run_bytes": 0}, (4, 3, 301), id="small rows in slices"),
    pytest.param({"variant": "resident", "lanes": 16, "vec": 4}, (3, 4, 200), id="small rows, 16 work-items"),
    pytest.param({"variant": "resident", "lanes": 1, "vec": 4, "run_bytes": 60}, (19, 7, 3), id="small runs"),
    pytest.param({"variant": "split", "lanes": 1, "vec": 8, "run_bytes": 720}, (9, 11, 49), id="runs in slices"),
    pytest.param({"variant": "resident", "lanes": 1, "vec": 4}, (35, 5), id="small sheets"),
    pytest.param(
        {"variant": "split", "lanes": 16, "vec": 4, "blocks": 1}, (140, 70), id="small columns, 16 work-items"
    ),
    pytest.param({"variant": "serial"}, (3, 4, 5), id="small serial"),
    pytest.param({"lanes": 1, "vec": 8, "chains": 4, "run_bytes": 0}, (5, 9, 601), id="rows past the cache"),
    pytest.param({"lanes": 1, "vec": 8, "chains": 4}, (35, 19, 49), id="runs past the cache"),
]
SHAPES = [
    pytest.param((3, 2, 5), 1, id="small rows"),
    pytest.param((2, 3, 16), 1, id="small rows of whole vectors"),
    pytest.param((5, 7), 1, id="small columns"),
    pytest.param((2, 3, 9), -1, id="small channels last"),
    pytest.param((9, 3, 5), 1, id="small run"),
    pytest.param((19, 7, 3), 1, id="small runs, the last one shorter"),
    pytest.param((35, 5), 1, id="small columns, several rows at a time and a rest"),
    pytest.param((9, 5, 7, 7), 1, id="short rows"),
    pytest.param((6, 83, 3, 3), 1, id="short rows of many channels"),
    pytest.param((5, 37, 7, 9), 1, id="runs of rows, the last one shorter"),
    pytest.param((4, 3, 4096), 1, id="rows of several chunks"),
    pytest.param((2, 2, 9001), 1, id="ragged rows of several chunks"),
    pytest.param((400, 70), 1, id="columns, several rows at a time"),
    pytest.param((530, 1030), 1, id="columns of several chunks"),
    pytest.param((3, 20, 21, 33), 3, id="channels last, a scrap"),
]
# Shapes with their element types: float32 everywhere, each other type where a walk has another way to load or save.
_OTHERS = {
    "small rows": ("float16", "bfloat16"),
    "small channels last": ("float64", "float16", "bfloat16"),
    "small columns, several rows at a time and a rest": ("float16", "bfloat16"),
    "short rows": ("float64", "bfloat16"),
    "runs of rows, the last one shorter": ("float16", "bfloat16"),
    "ragged rows of several chunks": ("float64", "float16", "bfloat16"),
    "channels last, a scrap": ("float16",),
}
# Forms for each way to load and save: vectors by work-items, sums and results apart or together. Compilers take most of
# the time of these tests, so that on the matrix's runtimes each has one shape with each type, rows or columns, and each
# type has all of its shapes.
_OTHER_FORMS = {
    "resident, one work-item, wide": {
        "float16": "small rows",
        "bfloat16": "small channels last",
        "float64": "short rows",
    },
    "resident, 64 work-items, vectors": {
        "float16": "small columns, several rows at a time and a rest",
        "bfloat16": "short rows",
        "float64": "small channels last",
    },
    "split, one work-item": {
        "float16": "ragged rows of several chunks",
        "bfloat16": "small columns, several rows at a time and a rest",
        "float64": "small channels last",
    },
    "split, strips of 18": {
        "float16": "small channels last",
        "bfloat16": "runs of rows, the last one shorter",
        "float64": "short rows",
    },
    "split, one work-item, no vectors": {
        "float16": "channels last, a scrap",
        "bfloat16": "ragged rows of several chunks",
        "float64": "ragged rows of several chunks",
    },
    "split, 32 work-items": {
        "float16": "runs of rows, the last one shorter",
        "bfloat16": "small channels last",
        "float64": "small channels last",
    },
    "serial": {
        "float16": "small channels last",
        "bfloat16": "small rows",
        "float64": "ragged rows of several chunks",
    },
}
# In the README's run, so that each of those forms walks rows, runs and columns in one of 16 bits.
_OTHER_WALKS = {
    "resident, one work-item, wide": ("bfloat16", "ragged rows of several chunks"),
    "split, one work-item": ("float16", "runs of rows, the last one shorter"),
    "split, strips of 18": ("float16", "ragged rows of several chunks"),
    "split, one work-item, no vectors": ("bfloat16", "runs of rows, the last one shorter"),
    "serial": ("float16", "ragged rows of several chunks"),
}
_ONCE = pytest.mark.once(reason="on each runtime each form meets each type, and each type each of its shapes")


def _typed() -> list[Any]:
    """Forms with shapes and types. In half and bfloat16 a form has one shape of a walk, unless OCLBN_LONG is 1."""
    made = []
    for form in FORMS:
        everywhere = _OTHER_FORMS.get(str(form.id), {})
        for row in SHAPES:
            shape = str(row.id)
            name = f"{form.id}-{shape}"
            made.append(pytest.param(*form.values, *row.values, dtype_of("float32"), id=name))
            for other in _OTHERS.get(shape, ()) if everywhere else ():
                chosen = everywhere[other] == shape
                if chosen or LONG or other == "float64" or (other, shape) == _OTHER_WALKS.get(str(form.id)):
                    marks = () if chosen else (_ONCE,)
                    values = *form.values, *row.values, dtype_of(other)
                    made.append(pytest.param(*values, id=f"{name}, {other}", marks=marks))
    return made


TYPED = _typed()


def suited(queue: cl.CommandQueue, choices: Mapping[str, Any], *, widest: int = 2) -> dict[str, Any]:
    """Choices to be forced, as the runtime bears them: Intel's four rows at a time for two, llvmpipe narrow vectors.

    Intel's compiler rearranges dx of two rows at a time, which proofs refuse (test_proof.py). llvmpipe makes a vector
    of eight work-items of each element: where groups have one it compiles a kernel with vectors of 4 for seconds, with
    vectors of 8 for half a minute. Vectors wider than `widest` become vectors of 2 there, as oclbn plans for it.
    """
    made = dict(choices)
    if "Intel" in queue.device.platform.name and made.get("unroll") == 2:
        made["unroll"] = 4
    if queue.device.platform.name == "rusticl" and made.get("lanes", 16) == 1 and made.get("vec", 0) > widest:
        made["vec"] = 2
    return made


@contextlib.contextmanager
def forced(queue: cl.CommandQueue, **choices: Any) -> Iterator[None]:
    """As oclbn.tuning.using, with choices that suit the queue's runtime."""
    with using(**suited(queue, choices)):
        yield


_FEWER = {  # for a shape of SHAPES one with fewer elements, and choices with which it is cut as that is
    (4, 3, 4096): ((4, 3, 3072), {}),
    (2, 2, 9001): ((2, 2, 701), {"chunk_bytes": 2048}),
    (6, 83, 3, 3): ((6, 21, 3, 3), {}),
    (400, 70): ((264, 70), {}),
    (530, 1030): ((530, 67), {"run_bytes": 256}),
    (3, 20, 21, 33): ((3, 10, 11, 33), {}),
}


def fewer(shape: tuple[int, ...], form: Mapping[str, Any]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A shape for a simulator, which takes minutes for the larger ones, and choices that belong to it.

    They lead the form through the same parts of its kernels (test_kernels.py).
    """
    small, choices = _FEWER.get(shape, (shape, {}))
    if shape == (530, 1030) and form.get("lanes", 1) > 1:  # whose channels are what a group takes together, and some
        small = 140, max(64, form["lanes"] * form["vec"] * form["blocks"]) + 3
    return small, choices


def shrink(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, **facts: int) -> None:
    """Make all tensors larger than the cache, for the rest of a test."""
    small = replace(limits(queue.device), cache_bytes=1, **facts)
    monkeypatch.setattr(prepared, "limits", lambda device: small)
    monkeypatch.setattr(kept(queue.context).thread, "prepared", {}, raising=False)


CHAINED = [
    pytest.param((3, 9, 11), {"vec": 4}, id="small rows"),
    pytest.param((9, 23, 3), {"vec": 4, "run_bytes": 60}, id="small runs, the last one shorter"),
    pytest.param((35, 19, 7, 7), {"vec": 8}, id="runs whose sums take two levels"),
    pytest.param((71, 9, 5), {"vec": 4, "unroll": 1}, id="runs of more than one chunk"),
    pytest.param((6, 41, 14, 14), {"vec": 8, "run_bytes": 2048}, id="runs of long channels"),
    pytest.param((7, 37, 15), {"vec": 4, "run_bytes": 0}, id="short rows of several channels"),
    pytest.param((5, 9, 601), {"vec": 8}, id="ragged rows that are written past the cache"),
    pytest.param((3, 6, 5003), {"vec": 4, "unroll": 2}, id="rows of several chunks"),
    pytest.param((3, 5, 37), {"vec": 1}, id="rows without vectors"),
]
