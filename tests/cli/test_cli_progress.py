"""The bar: its numbers are whole on a narrow terminal, and a pipe gets none."""

from __future__ import annotations

import functools
import io
import re

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

from oclbn import device
from oclbn.cli import check_run, output, tune_run
from oclbn.cli.progress import progress
from oclbn.plan.words import DeviceLimits
from oclbn.tools.tune.search import Found

LONG = "2:0 backward.cl with COLUMNS=1 DOUBLE=1 LANES=1 VEC=4 BLOCKS=128 UNROLL=4 STREAM=0"


def shown(console: Console) -> list[str]:
    """What stood on each line of a terminal, without its colours."""
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    return [
        line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", printed)) if line.strip()
    ]


@pytest.mark.parametrize(("width", "text"), [(40, ""), (80, LONG[:20]), (200, LONG)])
def test_numbers_are_whole(width: int, text: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    with progress(console, MofNCompleteColumn, functools.partial(TextColumn, "checks"), TimeElapsedColumn) as bar:
        bar.update(bar.add_task("[bold]"), total=1632, completed=1215, description=LONG)
    last = shown(console)[-1]
    assert re.search(r"1215/1632 checks \d:\d\d:\d\d$", last), last
    assert len(last) <= width - len("^C"), "or Ctrl-C, as a terminal echoes it, begins another line"
    assert text in last


def test_a_text_is_no_markup() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress(console, MofNCompleteColumn) as bar:
        bar.add_task("[red]gfx1030[/red]", total=2)
    assert "[red]gfx1030[/red]" in shown(console)[-1]


def test_a_pipe_gets_none() -> None:
    console = Console(file=io.StringIO(), width=80)
    with progress(console, MofNCompleteColumn) as bar:
        bar.add_task("text", total=2)
    assert shown(console) == []


def test_the_bars_of_check_and_tune_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 80 columns, with what stands in them for long."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(output, "errors", lambda: console)
    info = device.DeviceInfo(
        *(0, 0, "a processor", "a platform", "OpenCL 3.0", "1", "cpu", False),
        *(DeviceLimits("cpu", 2, 64, 1 << 15, 0, 1 << 30, 1 << 28, True, False), None),  # type: ignore[arg-type]
    )
    with check_run._shown(info) as advance:
        advance(LONG, 1632)
    assert re.search(r" 1/1632 elapsed \d:\d\d$", shown(console)[-1])
    tuned = tune_run.Tuned(info, {}, Found({}, gain=1.023))
    with tune_run._shown(tuned) as bar:
        bar.starting("near_bytes", 2097152)
    assert re.search(r"pass 1: near_bytes = .* 2\.3 % faster so far elapsed \d:\d\d$", shown(console)[-1])
