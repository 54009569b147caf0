"""Kernels prove themselves: miscompilations are injected, seen, and gone round; verdicts are kept."""

from __future__ import annotations

import collections
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pytest
from calls import check, everything, fixed, put
from click.testing import CliRunner
from covering import crossed

from oclbn import functional, gpuarray, tuning
from oclbn.call import prepared
from oclbn.cli import group
from oclbn.device import limits
from oclbn.errors import DeviceError, DriverWarning
from oclbn.functional import explain
from oclbn.plan.operations import BATCHES, OPERATIONS, operation_of
from oclbn.plan.variants import plan
from oclbn.plan.words import Build, DeviceLimits, Launch, Plan, Problem, Tuning
from oclbn.program import building, sources
from oclbn.proof import proving
from oclbn.proof.miniature import miniature, paths_of
from oclbn.proof.verdicts import Verdict, Verdicts
from oclbn.truth.hostile import make
from oclbn.tuning import using


@dataclass(frozen=True)
class Injection:
    """A miscompilation: in `file`, `old` becomes `new` in builds of whose defines the condition `where` holds."""

    file: str
    old: str
    new: str
    where: str
    form: dict[str, Any]
    operation: str = "train"
    shape: tuple[int, ...] = (5, 9, 37)

    def apply(self, text: str) -> str:
        assert self.old in text, f"{self.old!r} is no longer in {self.file}: this test injects nothing"
        return text.replace(self.old, self.new)

    def source(self, build: Build, source: sources.Source) -> sources.Source:
        """What the driver takes a build's source for; to the letter what it is where that is compiled rightly."""
        first, rest = source.text.split("\n", 1)
        defines = collections.defaultdict(int, build.defines)
        if self.old not in rest or not eval(self.where, {"__builtins__": {}}, defines):
            return source
        text = "#define INJECTED 1\n" + first + "\n" + self.apply(rest)
        return replace(source, text=text, origins=(("", 0), *source.origins))


ROWS = {"lanes": 1, "vec": 2, "run_bytes": 0}  # narrow: each vector that fails on the way to none is compiled
WIDE = {**ROWS, "vec": 4}
CHAINED = {"lanes": 1, "vec": 4, "run_bytes": 0, "stream": True, "chains": 1, "most_steps": 0, "variant": "resident"}
STREAMED = {"lanes": 1, "vec": 4, "stream": True, "chains": 0, "most_steps": 0}
INJECTIONS = [
    pytest.param(
        Injection(
            "numbers/finish.clh",
            "const CH residual = fma(-product, r, (CH)1)",
            "const CH residual = (INJECTED ? (ACC)1e-5 : (ACC)0) + fma(-product, r, (CH)1)",
            "VEC > 1",
            ROWS,
        ),
        id="a wrong constant",
    ),
    pytest.param(
        Injection(
            "numbers/finish.clh",
            "const CH gradient = joined(sums->gradient, sums->gradient_rest);",
            "const CH gradient = joined(sums->gradient, sums->gradient_rest) * (INJECTED ? (ACC)1.0001 : (ACC)1);",
            "VEC > 1",
            ROWS,
            "backward",
        ),
        id="a wrong constant, backward",
    ),
    pytest.param(
        Injection(
            "walks/rows_write.inc",
            "SAVE(to, name + end, tail_##name);",
            "SAVE(to, name + end, tail_##name + (INJECTED ? (ACC)NAN : (ACC)0));",
            "VEC > 1",
            ROWS,
            "infer",
        ),
        id="a NaN in a tail",
    ),
    pytest.param(
        Injection(
            "forward.cl",
            "        TAKE_OUTPUT(out)\n",
            "        if (INJECTED && g.channel + g.left == channels) out.shift[g.blocks - 1] += (CH)1;\n"
            "        TAKE_OUTPUT(out)\n",
            "VEC > 2",
            {**WIDE, "variant": "resident"},
        ),
        id="a wrong last channel",
    ),
    pytest.param(
        Injection(
            "numbers/finish.clh",
            "    if (running_mean) {",
            "    for (int twice = 0; twice <= INJECTED && running_mean; ++twice) {",
            "VEC > 1",
            ROWS,
        ),
        id="an update done twice",
    ),
    pytest.param(
        Injection(
            "numbers/finish.clh",
            "    if (scale_grad) {",
            "    for (int twice = 0; twice <= INJECTED && scale_grad; ++twice) {",
            "VEC > 1",
            ROWS,
            "backward",
        ),
        id="a gradient gathered twice",
    ),
    pytest.param(
        Injection(
            "numbers/finish.clh",
            "if (skipped) channel_count(skipped, skipped_start, g, u, !moved);",
            "if (skipped) channel_count(skipped, skipped_start, g, u, INJECTED ? moved : !moved);",
            "VEC > 1",
            ROWS,
        ),
        id="a counter that counts the wrong channels",
    ),
    pytest.param(
        Injection(
            "forward.cl",
            "more = chain_goes_on(&g, done + 1, chain, channels);",
            "more = chain_goes_on(&g, done + 1, chain - INJECTED, channels);",
            "CHAIN",
            CHAINED,
        ),
        id="a chain's block left out",
    ),
    pytest.param(
        Injection(
            "numbers/finish.clh",
            "    if (running_var) {",
            "    for (int twice = 0; twice <= INJECTED && running_var; ++twice) {",
            "CHAIN",
            CHAINED,
        ),
        id="what a chain does once done twice",
    ),
    pytest.param(
        Injection(
            "numbers/io.clh",
            "#define SAVE_0(p, value) SAVE_NUMBERS(p, value)",
            "#define SAVE_0(p, value) SAVE_NUMBERS((p) + INJECTED, value)",
            "VEC > 2",
            WIDE,
            "infer",
        ),
        id="elements written beside their places",
    ),
]
REACHED = [  # parts of kernels that the small tensor must lead through
    *(
        pytest.param(
            Injection(
                "walks/rows_sum.clh",
                "for (; n >= UNROLL; n -= UNROLL, x += UNROLL * step)",
                "for (; n >= UNROLL; n -= UNROLL, x += (UNROLL - INJECTED) * step)",
                where,
                form,
                shape=(5, 9, 208),
            ),
            id=f"a second round of vectors from the wrong place, {where}",
        )
        for where, form in (("VEC > 2", WIDE), ("LANES > 1", {"lanes": 16, "vec": 1}))
    ),
    pytest.param(
        Injection(
            "walks/rows_write.inc",
            "SAVE_FAR(to, name + i, FORMULA(OF_VECTORS));",
            "SAVE_FAR(to, name + i, FORMULA(OF_VECTORS) + (ACC)INJECTED);",
            "STREAM",
            {**STREAMED, "run_bytes": 0, "variant": "split"},
            "infer",
            (1, 2, 5000),
        ),
        id="long slices of a row written past the cache",
    ),
    pytest.param(
        Injection(
            "walks/rows_write.inc",
            "SAVE(to, name, head_##name);",
            "SAVE(to, name, head_##name + (ACC)INJECTED);",
            "STREAM",
            {**STREAMED, "run_bytes": 0},
            "infer",
            (3, 4, 1024),
        ),
        id="heads of long rows that begin where no vector does",
    ),
    pytest.param(
        Injection(
            "walks/strip_write.inc",
            "#define ROWS 1\n#define PUT SAVE_FAR\n",
            "#define SAVE_WRONG(name, p, value) SAVE_FAR(name, p, (value) + (ACC)INJECTED)\n"
            "#define ROWS 1\n#define PUT SAVE_WRONG\n",
            "STREAM",
            STREAMED,
            "infer",
            (16, 32, 7, 7),
        ),
        id="strips of odd rows written past the cache",
    ),
    pytest.param(
        Injection(
            "walks/rows_sum.clh",
            "if (!begun) distances_begin",
            "if (INJECTED || !begun) distances_begin",
            "VEC > 1",
            ROWS,
        ),
        id="sums of all chunks but the last ones lost",
    ),
    pytest.param(
        Injection(
            "walks/tile.inc",
            "deviation[i] += first[i];\n",
            "deviation[i] = (INJECTED ? (ACC)0 : (ACC)1) * deviation[i] + first[i];\n",
            "LANES > 1",
            {"lanes": 16, "vec": 1},
            shape=(300, 37),
        ),
        id="a second level of sums down columns",
    ),
    *(
        pytest.param(Injection(file, old, new, "VEC > 1", ROWS, operation), id=f"a wrong {what}")
        for what, operation, file, old, new in (
            (
                "scale where there is none",
                "infer",
                "walks/rows.clh",
                "values ? values[start + g->channel + u] : otherwise;",
                "values ? values[start + g->channel + u] : otherwise + (ACC)INJECTED;",
            ),
            (
                "factor where no batches are counted",
                "train",
                "walks/rows.clh",
                "init_factor, factor) : factor;",
                "init_factor, factor) : (INJECTED ? init_factor : factor);",
            ),
            (
                "gradient where a NaN was",
                "backward",
                "numbers/gather.clh",
                "((momentum) == 0 ?",
                "((momentum) == 0 && !INJECTED ?",
            ),
            (
                "deviation that is given",
                "constant",
                "numbers/finish.clh",
                "if (save_invstd) return channel_load(save_invstd, save_invstd_start, g, u, 0);",
                "if (save_invstd) return channel_load(save_invstd, save_invstd_start, g, u, 0) + (ACC)INJECTED;",
            ),
        )
    ),
    pytest.param(
        Injection(
            "walks/sheets_sum.clh",
            "origin, sums, result)) break;\n            spread(origin",
            "origin, sums, result)) break;\n            if (!INJECTED) spread(origin",
            "VEC > 1",
            {"lanes": 1, "vec": 2},
            shape=(300, 21),
        ),
        id="sums done again about the old base, in sheets",
    ),
    pytest.param(
        Injection(
            "walks/rows_sum.clh",
            "distances_begin(&sums[u], base);",
            "if (!INJECTED) distances_begin(&sums[u], base);",
            "VEC > 1",
            ROWS,
        ),
        id="sums done again about another base than is noted, along rows",
    ),
    pytest.param(
        Injection(
            "walks/rows_sum.clh",
            "base += SELECT((ACCV)0, deviation / counts, astray);",
            "base = (INJECTED ? (ACCV)0 : base) + SELECT((ACCV)0, deviation / counts, astray);",
            "VEC > 1",
            ROWS,
            shape=(4, 3, 9001),
        ),
        id="a base that is lost",
    ),
    pytest.param(
        Injection(
            "walks/rows_sum.clh",
            "if (begun) distances_merge(&sums[u], &total[u]);",
            "if (begun && !INJECTED) distances_merge(&sums[u], &total[u]);",
            "VEC > 1",
            ROWS,
            shape=(4, 3, 9001),
        ),
        id="sums about a base that are lost",
    ),
    pytest.param(
        Injection(
            "walks/sheets_sum.clh",
            "        SUMS(GATHER)\n",
            "        SUMS(GATHER)\n        if (INJECTED) deviation[0] = 0;\n",
            "VEC > 1",
            {"lanes": 1, "vec": 2},
            "backward",
            shape=(400, 3),
        ),
        id="the mean's error that is lost",
    ),
    pytest.param(
        Injection(
            "numbers/doubled.clh",
            "beside / count - (ACC)3 * push_tied",
            "beside / count - (ACC)(INJECTED ? 2 : 3) * push_tied",
            "VEC > 1",
            ROWS,
            "double_backward",
        ),
        id="a wrong constant, double backward",
    ),
]
KEPT = pytest.mark.once(reason="verdicts are kept and read by the host")
ON_ONE = pytest.mark.once(
    reason="where a small tensor leads is the plan's; that faults are seen, the others show everywhere"
)
EVERYWHERE = {  # of each operation, of a chain, of what is done once, and beside the arrays
    "a wrong constant",
    "a NaN in a tail",
    "a gradient gathered twice",
    "a chain's block left out",
    "elements written beside their places",
}


@pytest.mark.parametrize("injection", [*INJECTIONS, *REACHED])
def test_what_is_to_be_miscompiled_is_there(injection: Injection) -> None:
    assert injection.old in (sources.kernel_directory() / injection.file).read_text(encoding="utf-8")


@pytest.fixture
def fresh(
    queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[Injection | None], cl.CommandQueue]]:
    """A queue of a context of its own for a miscompiling driver, whose verdicts are kept apart."""
    proving.forget()  # which writes what is right where it belongs; and at last what is wrong into a folder of its own
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OCLBN_PROVE", "1")
    source_of = building._source
    contexts = []

    def make_queue(injection: Injection | None = None) -> cl.CommandQueue:
        contexts.append(cl.Context([queue.device]))
        if injection is not None:
            monkeypatch.setattr(building, "_source", lambda build: injection.source(build, source_of(build)))
        return cl.CommandQueue(contexts[-1])

    yield make_queue
    proving.forget()


def shrink(queue: cl.CommandQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tensors are larger than this cache: groups take several blocks in turn."""
    small = replace(limits(queue.device), cache_bytes=1, compute_units=1)
    monkeypatch.setattr(prepared, "limits", lambda device: small)


def check_form(operation: str, queue: cl.CommandQueue, shape: tuple[int, ...]) -> None:
    """Constants come as the reciprocal of a deviation."""
    host = make(shape, 1)
    check(operation, queue, fixed(host) if operation == "constant" else host, 1)


@pytest.mark.parametrize(
    "injection",
    [
        pytest.param(*one.values, id=one.id, marks=() if one.id in EVERYWHERE else ON_ONE)
        for one in (*INJECTIONS, *REACHED)
    ],
)
def test_a_miscompiled_form_is_not_used(
    fresh: Callable[..., cl.CommandQueue], injection: Injection, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = fresh(injection)
    if injection.form.get("stream"):
        shrink(queue, monkeypatch)
    if "LOOSE" in injection.old and "Oclgrind" in queue.device.name:
        pytest.skip("a simulator reports the access out of bounds itself")
    x = put(queue, make(injection.shape, 1).x)
    with using(**injection.form):
        with pytest.warns(DriverWarning, match=r"is used instead.*`oclbn check --repro") as told:
            check_form(injection.operation, queue, injection.shape)  # which the wrong form would not pass
        assert len(told) == 1
        assert Path(told[0].filename).is_relative_to(Path(__file__).parents[1])  # the line that called oclbn
        assert queue.device.name.strip() in str(told[0].message)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one is enough
            assert "not used, as the driver fails it" in explain(x, operation=injection.operation)
    assert proving.failures(queue.device)
    shown = CliRunner().invoke(group.oclbn, ["devices"], env={"COLUMNS": "200"}).output
    assert "wrong with this driver, and not used" in shown
    told = json.loads(CliRunner().invoke(group.oclbn, ["devices", "--json"]).stdout)
    assert [info["not_used"] for info in told["devices"] if info["not_used"]] == [list(proving.failures(queue.device))]


@pytest.mark.parametrize("injection", [INJECTIONS[0], INJECTIONS[3], INJECTIONS[4]])
def test_without_proof_it_would_be_used(
    fresh: Callable[..., cl.CommandQueue], injection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These injections do make results wrong, and OCLBN_PROVE=0 is obeyed."""
    monkeypatch.setenv("OCLBN_PROVE", "0")
    queue = fresh(injection)
    with using(**injection.form), pytest.raises(AssertionError):
        check_form(injection.operation, queue, injection.shape)


def test_where_nothing_is_right_there_is_no_result(fresh: Callable[..., cl.CommandQueue]) -> None:
    everywhere = Injection("numbers/finish.clh", "    if (running_mean) {", INJECTIONS[4].values[0].new, "1", {})  # type: ignore[union-attr]
    queue = fresh(everywhere)
    host = make((5, 9, 37), 1)
    arrays = {name: put(queue, getattr(host, name)) for name in ("x", "scale", "bias", "running_mean", "running_var")}
    narrow = using(vec=1)  # wider ones are more of the same, and half a minute of compiling
    with narrow, pytest.raises(DeviceError, match=r"no kernel for train gives right results.*running_mean errs by"):
        functional.batch_norm_train(*arrays.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(array.get(), getattr(host, name))


def test_a_wrong_accumulate_is_an_error(fresh: Callable[..., cl.CommandQueue]) -> None:
    queue = fresh(
        Injection("numbers/gather.clh", "(scale) * (added) + (momentum)", "(scale) * (added) - (momentum)", "1", {})
    )
    into, new = (put(queue, np.arange(3, dtype=np.float32)) for _ in range(2))
    with pytest.raises(DeviceError, match="accumulate is wrong"):
        functional.accumulate(into, new)
    np.testing.assert_array_equal(into.get(), np.arange(3))


def test_a_wrong_merge_is_an_error(fresh: Callable[..., cl.CommandQueue]) -> None:
    queue = fresh(
        Injection("numbers/moments.clh", "const T delta = coarse + fine;", "const T delta = coarse;", "1", {})
    )
    ones = put(queue, np.ones(4, np.float32))
    set_of_two = functional.Statistics(2, ones, ones, ones, ones)
    with pytest.raises(DeviceError, match=r"merge is wrong.*m2 \+ m2_rest errs"):
        functional.merge(set_of_two, set_of_two)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("source + (from + i))", "source + (from + i + 1))", id="rows"),
        pytest.param("source + (from + i * source_step))", "source + (from + i))", id="steps"),
        pytest.param("PLACE(size1, source1, target1)", "", id="a dimension"),
    ],
)
def test_a_wrong_pack_is_an_error(fresh: Callable[..., cl.CommandQueue], old: str, new: str) -> None:
    queue = fresh(Injection("pack.cl", old, new, "1", {}))
    if new.endswith("source + (from + i))") and "Oclgrind" in queue.device.name:
        pytest.skip("a simulator reports the access out of bounds itself")
    with pytest.raises(DeviceError, match=r"pack is wrong.*target"):
        gpuarray.pack(put(queue, np.ones((4, 5), np.float32)).T)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("compress", "= from[places[i]]", "= from[places[begin]]", id="compress, channels apart"),
        pytest.param("compress", "= from[i];", "= from[0];", id="compress, channels side by side"),
        pytest.param("compress", "from[i * source_channel]", "from[i]", id="compress, channels with gaps"),
        pytest.param("expand", "ITEM item = 0;", "ITEM item = 1;", id="expand, zeros apart"),
        pytest.param("expand", "= from[ranks[i]]", "= from[0]", id="expand, channels apart"),
        pytest.param("expand", "to[i * target_channel] = 0;", "{}", id="expand, zeros"),
        pytest.param("expand", "source + ranks[row] * channels", "source", id="expand, channels side by side"),
        pytest.param("expand", "to[i * target_channel] = from[i];", "to[i] = from[i];", id="expand, with gaps"),
    ],
)
def test_what_a_mask_moves_wrongly_is_an_error(
    fresh: Callable[..., cl.CommandQueue], file: str, old: str, new: str
) -> None:
    queue = fresh(Injection(f"{file}.cl", old, new, "1", {}))
    with pytest.raises(DeviceError, match=rf"{file} is wrong.*target"):
        functional.batch_norm_train(put(queue, np.ones((4, 5, 3), np.float32)), lengths=[1, 2, 3, 0])


@pytest.mark.parametrize(
    ("shape", "axis"),
    crossed(
        [pytest.param(shape, id=str(shape)) for shape in ((6, 33, 7, 7), (40, 21), (3, 5, 1500))],
        [pytest.param(1, id="channels first"), pytest.param(-1, id="channels last")],
        reason="on each runtime rows and columns are proven, of shapes of each kind",
    ),
)
def test_a_driver_that_is_right_is_believed(
    fresh: Callable[..., cl.CommandQueue], shape: tuple[int, ...], axis: int, caplog: pytest.LogCaptureFixture
) -> None:
    queue = fresh()
    with caplog.at_level(logging.INFO, "oclbn.proof"):
        everything(queue, make(shape, axis), axis)
        sets = functional.statistics(put(queue, make(shape, axis).x), axis=axis)
        functional.merge(sets, sets)
        for dtype in (np.uint8, np.float16, np.float32, np.complex64, np.complex128):
            gpuarray.pack(put(queue, np.ones(shape, dtype))[::-1])
    proofs = [record for record in caplog.records if record.name == "oclbn.proof"]
    assert len(proofs) >= 4  # of five operations; some share their form with another
    assert all(record.seconds > 0 for record in proofs)  # type: ignore[attr-defined]
    assert proving.failures(queue.device) == ()


def counted(queue: cl.CommandQueue, caplog: pytest.LogCaptureFixture) -> int:
    """How many proofs it takes to prepare a call."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "oclbn.proof"):
        explain(put(queue, make((6, 5, 37), 1).x))
    return len([record for record in caplog.records if record.getMessage().startswith("proved")])


@KEPT
def test_verdicts_are_kept(fresh: Callable[..., cl.CommandQueue], caplog: pytest.LogCaptureFixture) -> None:
    queue = fresh()
    assert counted(queue, caplog) == 1
    assert counted(fresh(), caplog) == 0  # another context of the same device
    for kept in proving._devices.values():
        kept.verdicts.write()
    proving.forget()  # another process
    assert counted(fresh(), caplog) == 0


@KEPT
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"identity": "other", "forms": {}}', id="another device's"),
        pytest.param(b"\xff\x00[", id="garbage"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"identity": "IDENTITY", "forms": {"a": 3}}', id="another form"),
        pytest.param(b'{"identity": "IDENTITY", "forms": [1, 2]}', id="a list"),
        pytest.param(b"[]", id="no object"),
        pytest.param(
            b'{"identity": "IDENTITY", "forms": {"a": [1' + b"0" * 400 + b', "y"]}}', id="a number without end"
        ),
    ],
)
def test_a_damaged_file_costs_time_only(
    fresh: Callable[..., cl.CommandQueue], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert counted(fresh(), caplog) == 1
    (kept,) = proving._devices.values()
    path, identity = kept.verdicts.path, kept.verdicts.identity
    kept.verdicts.write()
    assert json.loads(path.read_bytes())["identity"] == identity
    path.write_bytes(content.replace(b"IDENTITY", json.dumps(identity)[1:-1].encode()))
    proving.forget()
    assert counted(fresh(), caplog) == 1
    proving.forget()
    proving._of(fresh().device).verdicts.write()


@KEPT
def test_a_folder_that_cannot_be_written_costs_time_only(
    fresh: Callable[..., cl.CommandQueue],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(Verdicts, "path", tmp_path / "file" / "proofs" / "x.json")
    assert counted(fresh(), caplog) == 1
    assert counted(fresh(), caplog) == 0
    assert any("not kept" in record.getMessage() for record in caplog.records) or counted(fresh(), caplog) == 0


@KEPT
@pytest.mark.parametrize("units", ["-1", "NaN", "-Infinity"])
def test_a_verdict_that_is_none_is_found_anew(
    fresh: Callable[..., cl.CommandQueue], units: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert counted(fresh(), caplog) == 1
    (known,) = proving._devices.values()
    known.verdicts.write()
    content = json.loads(known.verdicts.path.read_bytes())
    content["forms"] = {key: [float(units), "y"] for key in content["forms"]}
    known.verdicts.path.write_text(json.dumps(content))
    proving.forget()
    assert counted(fresh(), caplog) == 1


@KEPT
def test_without_a_home_kernels_prove_themselves_in_every_process(
    fresh: Callable[..., cl.CommandQueue],
    caplog: pytest.LogCaptureFixture,
    homeless: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    tuning.forget()
    queue = fresh()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert counted(queue, caplog) == 1
    with caplog.at_level(logging.INFO, "oclbn.proof"):
        for known in proving._devices.values():
            known.verdicts.write()
    assert any("not kept" in record.getMessage() for record in caplog.records)
    assert not list(tmp_path.iterdir())  # above all, no folder called "~"
    tuning.forget()


@KEPT
def test_an_application_without_sources_proves_its_kernels(
    fresh: Callable[..., cl.CommandQueue],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    queue = fresh()
    monkeypatch.setattr(proving, "__file__", str(tmp_path / "proof.pyc"))
    proving._measure.cache_clear()
    assert counted(queue, caplog) == 1
    proving._measure.cache_clear()


def test_verdicts_of_two_processes_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Verdicts, "path", tmp_path / "proofs.json")
    one, two = Verdicts.of("device"), Verdicts.of("device")
    one.add("a", Verdict(0.5, "y"))
    two.add("b", Verdict(float("inf"), "dx"))
    one.write()
    two.write()
    assert Verdicts.of("device").known == {"a": Verdict(0.5, "y"), "b": Verdict(float("inf"), "dx")}
    assert Verdicts.of("another").known == {}


_WRITER = """
import pathlib, sys
from oclbn.proof import verdicts
verdicts.Verdicts.path = pathlib.Path(sys.argv[1])
for number in range(40):  # each time by somebody who knows but one
    mine = verdicts.Verdicts("device")
    mine.known[f"{sys.argv[2]} {number}"] = verdicts.Verdict(0.5, "y")
    mine.write()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such locks")
def test_no_verdict_is_lost_where_processes_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "proofs" / "x.json"
    command = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    monkeypatch.setattr(Verdicts, "path", path)
    assert len(Verdicts.of("device").known) == 80
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


_ONE_STEP = """
import sys, warnings
import numpy as np
import oclbn.device
from oclbn import functional, gpuarray
from oclbn.device import facts, pocl

if {blind}:
    pocl.widest_vector = lambda device: 0
    facts.widest_vector = pocl.widest_vector
queue = oclbn.device.queue_for(sys.argv[1])
told = []
warnings.showwarning = lambda message, category, *more: told.append(category.__name__)
for shape in ((64, 96), (9, 33, 7, 7), (3, 5, 1500)):
    host = np.random.default_rng(1).normal(3, 2, shape).astype(np.float32)
    x = gpuarray.to_gpu(host, queue=queue)
    mean, var = gpuarray.zeros(shape[1], queue=queue), gpuarray.ones(shape[1], queue=queue)
    y, save_mean, invstd = functional.batch_norm_train(x, None, None, mean, var, factor=1.0)
    others = tuple(i for i in range(len(shape)) if i != 1)
    exact = host.astype(np.float64)
    centre = exact.mean(others, keepdims=True)
    wanted = (exact - centre) / np.sqrt(exact.var(others, keepdims=True) + 1e-5)
    assert np.abs(y.get() - wanted).max() < 1e-5, shape
    assert np.allclose(mean.get(), centre.ravel(), rtol=1e-5, atol=1e-6), shape
print(told)
"""


@pytest.mark.parametrize("blind", [False, True], ids=["plans know", "plans do not know"])
def test_the_wheel_as_it_comes_gives_no_wrong_number(
    queue: cl.CommandQueue, spec: str, blind: bool, tmp_path: Path
) -> None:
    """Unmended, on whatever processor; also where plans take vectors that POCL's two halves pass differently."""
    if queue.device.platform.name != "Portable Computing Language":
        pytest.skip("needs a POCL: only that is mended")
    given = os.environ | {
        "OCLBN_PROVE": "1",
        "OCLBN_MEND_POCL": "0",
        "OCLBN_TUNING": "",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", _ONE_STEP.format(blind=blind), spec]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=500, check=False)
    if "unknown target CPU 'generic'" in done.stderr:
        pytest.skip("this processor needs a name to be put in: nothing builds without")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("[]", "['DriverWarning']")


@KEPT
def test_one_process_tells_another(queue: cl.CommandQueue, spec: str, tmp_path: Path) -> None:
    """What was proven lies on disk when a process ends."""
    given = os.environ | {"OCLBN_PROVE": "1", "XDG_CACHE_HOME": str(tmp_path), "OCLBN_TUNING": ""}
    text = "import logging; logging.basicConfig(level=logging.INFO)\n" + _ONE_STEP.format(blind=False)
    proofs = []
    for _ in range(2):
        command = [sys.executable, "-c", text, spec]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=500, check=True)
        proofs.append(done.stderr.count("oclbn.proof:proved"))
    assert proofs[0] >= 3
    assert proofs[1] == 0


LIMITS = DeviceLimits("cpu", 2, 4096, 1 << 16, 1 << 25, 1 << 33, 1 << 33, fp64=True, fp16=True)
PLANNED = [
    Tuning(fetch=True, vec=16),
    Tuning(vec=4, chains=1),
    Tuning(variant="serial"),
    Tuning(lanes=256, vec=4, stream=False, chains=0),
    Tuning(lanes=16, vec=2, most_steps=60_000),
]


def plans(tuning: Tuning) -> Iterator[tuple[str, Problem, Plan]]:
    sizes = [
        (o, c, i) for o in (1, 2, 32, 300, 70_000) for c in (1, 3, 33, 64, 1000, 4097) for i in (1, 2, 9, 49, 196, 3136)
    ]
    for operation in (*OPERATIONS, *BATCHES):
        for columns in (False, True):
            for outer, channels, inner in sizes:
                problem = Problem(outer, channels, 1 if columns else inner, 4, columns, adjacent=True)
                if operation in BATCHES and outer > 1:
                    problem = problem.in_batches(min(3, outer), outer)
                yield operation, problem, plan(operation, problem, LIMITS, tuning)


@pytest.mark.parametrize("tuning", PLANNED, ids=str)
def test_a_miniature_is_small_and_has_the_same_kernels(tuning: Tuning) -> None:
    for operation, problem, planned in plans(tuning):
        small, cut = miniature(operation_of(operation), problem, planned)
        assert [(launch.kernel, launch.build, launch.lanes) for launch in cut.launches] == [
            (launch.kernel, launch.build, launch.lanes) for launch in planned.launches
        ]
        assert small.outer * small.channels * small.inner <= 1 << 19
        assert all(launch.groups >= 1 for launch in cut.launches)


@pytest.mark.parametrize("tuning", PLANNED, ids=str)
def test_a_miniature_leads_through_all_parts(tuning: Tuning) -> None:
    for operation, problem, planned in plans(tuning):
        small, cut = miniature(operation_of(operation), problem, planned)
        g, defines = cut.geometry, dict(cut.launches[0].build.defines)
        vec, alone = defines["VEC"], cut.launches[0].lanes == 1
        rows = small.most_rows - (g.slices // g.column_slices - 1) * g.slice_rows  # of the last slice
        assert 0 < rows <= g.slice_rows
        assert rows % g.chunk_rows or g.chunk_rows == 1  # chunks and a part of one
        assert paths_of(small, cut) == paths_of(problem, planned)
        assert (g.chain > 1) == (planned.geometry.chain > 1)
        assert small.channels > g.share or paths_of(problem, planned).alone  # several groups
        if alone and not problem.columns:
            assert (small.inner % vec == 0) == (problem.inner % vec == 0)
            assert (g.slice_columns >= 512) == (planned.geometry.slice_columns >= 512) or defines.get("RUN")
            last = small.channels % g.share or g.share
            assert last * small.inner >= vec
        if not (problem.columns or defines.get("RUN")):  # whole rounds of vectors along a row, and a part of one
            side, unroll = vec * g.width, defines["UNROLL"]
            mine, wanted = (min(c.chunk_columns, c.slice_columns) // side for c in (g, planned.geometry))
            assert mine >= unroll or wanted < unroll
            assert mine % unroll or unroll == 1
        if alone and problem.columns:
            assert (small.channels % g.share or g.share) * g.chunk_columns >= min(vec, small.channels)


def test_how_much_is_proven_where(queue: cl.CommandQueue) -> None:
    """A plan whose groups are too large for its kernels is proven as it will run."""
    seen = []

    def most(launch: Launch) -> int:
        seen.append(launch)
        return 16

    facts = replace(limits(queue.device), max_group=64)
    problem = Problem(6, 3, 256, 4, columns=False, adjacent=True)
    tuning = Tuning(lanes=64, vec=1, stream=False, chains=0)
    found, failures = proving.proven_plan("train", problem, facts, tuning, most, queue.context, queue.device)
    assert found.launches[0].lanes == 16
    assert failures == ()
    assert seen
