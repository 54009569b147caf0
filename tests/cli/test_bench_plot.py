"""The benchmark's pictures: files of their kind, whatever there is to draw. How they look is for eyes."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import matplotlib.image
import pyopencl as cl
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from oclbn import device
from oclbn.cli import bench_plot
from oclbn.cli.bench_report import Report
from oclbn.cli.group import oclbn
from oclbn.tools.bench import benchmark
from oclbn.tools.bench.suites import SUITES, Case

pytestmark = pytest.mark.once(reason="pictures are drawn by the host")

STARTS = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF"}
PEERS = ("one", "another")


def report(queue: cl.CommandQueue, cases: tuple[Case, ...], outputs: tuple[str, ...], peers: tuple[str, ...]) -> Report:
    """As if everything had been timed, but the peer "another", which only infers."""
    made = Report(device.select(queue.device), list(cases), tuple(benchmark.TENSORS), outputs, peers)
    for (shape, axis), kind in ((case, kind) for case in cases for kind in outputs):
        size = math.prod(shape) * 4
        told = [("copy", name, 2, 1e-3) for name in benchmark.COPIES]
        told += [
            (who, operation, tensors, 2e-3)
            for operation, tensors in benchmark.TENSORS.items()
            for who in ("oclbn", *peers)
            if who != "another" or operation == "inference"
        ]
        rows = [
            benchmark.Row(shape, axis, name, time, time, time, tensors * size, time / 1e-3, "", who, kind, 9)
            for who, name, tensors, time in told
        ]
        made.add(benchmark.Comparison(rows, [], dict.fromkeys(peers, "1.0")))
    return made


@pytest.mark.parametrize("file_format", STARTS)
def test_pictures_are_of_their_kind(queue: cl.CommandQueue, file_format: str) -> None:
    picture = bench_plot.draw(report(queue, SUITES["resnet50"], ("preallocated", "fresh"), PEERS), file_format)
    assert picture.startswith(STARTS[file_format])


@pytest.mark.parametrize(
    ("cases", "outputs", "peers"),
    [
        pytest.param(SUITES["resnet50"][:1], ("fresh",), (), id="one shape"),
        pytest.param(SUITES["densenet"], ("preallocated",), PEERS, id="many shapes"),
        pytest.param((), ("preallocated",), PEERS, id="nothing"),
    ],
)
def test_few_or_many(
    queue: cl.CommandQueue, cases: tuple[Case, ...], outputs: tuple[str, ...], peers: tuple[str, ...]
) -> None:
    assert bench_plot.draw(report(queue, cases, outputs, peers), "png").startswith(STARTS["png"])


def test_every_shape_and_peer_is_named(queue: cl.CommandQueue) -> None:
    """In an SVG, texts are drawn as shapes, with the text beside them as a comment."""
    text = bench_plot.draw(report(queue, SUITES["channels-last"], ("preallocated",), PEERS), "svg").decode()
    for name in ("32x56x56x256 @3", "one", "another", "forward", "fastest copy", "outputs preallocated"):
        assert f"<!-- {name}" in text


def test_no_panel_is_empty_and_a_sentence_says_how_to_read_it(queue: cl.CommandQueue) -> None:
    """One size has no curve of bandwidths, and an operation that no other library does has no panel of them."""
    one = bench_plot.draw(report(queue, SUITES["resnet50"][:1], ("preallocated",), ()), "svg").decode()
    assert "A row is a shape" in one
    assert "bandwidth" not in one
    assert "librar" not in one
    several = bench_plot.draw(report(queue, SUITES["channels-last"], ("preallocated",), ("another",)), "svg").decode()
    assert several.count("<!-- library's time") == 1, "of inference alone"
    assert "<!-- bandwidth, GB/s" in several


def test_no_panel_is_empty_where_libraries_were_timed_with_some_outputs_only(queue: cl.CommandQueue) -> None:
    """As with a memory pool, which is oclbn's alone."""
    made = report(queue, SUITES["channels-last"], ("preallocated", "pool"), PEERS)
    made.rows = [row for row in made.rows if row.outputs != "pool" or row.who not in PEERS]
    text = bench_plot.draw(made, "svg").decode()
    assert text.count("<!-- library's time") == len(benchmark.TENSORS)
    assert text.count("<!-- outputs pool") == 2, "ratios and bandwidths"


@pytest.mark.parametrize("peers", [(), PEERS])
def test_what_stands_below_is_not_cut(queue: cl.CommandQueue, peers: tuple[str, ...]) -> None:
    """Nothing but paper at both edges, beside the sentences that say how to read the picture."""
    png = bench_plot.draw(report(queue, SUITES["resnet50"], ("preallocated",), peers), "png")
    pixels = matplotlib.image.imread(io.BytesIO(png))[..., :3]
    below = pixels[-70:]
    assert (below < 0.6).any(), "there are sentences"
    for edge in (below[:, :8], below[:, -8:]):
        assert (edge == 1.0).all()


def test_the_command_draws(queue: cl.CommandQueue, tmp_path: Path) -> None:
    file = tmp_path / "bench.PNG"
    given = ["bench", "--shape", "4,6,5", "--rounds", "3", "--against", "numpy", "--plot", str(file)]
    result = CliRunner().invoke(oclbn, given)
    assert result.exit_code == 0, result.output
    assert file.read_bytes().startswith(STARTS["png"])


@pytest.mark.parametrize("libraries", [(), ("torch",)])
def test_a_picture_of_another_type_says_so(queue: cl.CommandQueue, libraries: tuple[str, ...]) -> None:
    """What is timed beside is oclbn itself on float32, and no library."""
    made = report(queue, SUITES["resnet50"], ("preallocated",), ("float32", *libraries))
    made.dtype = "float16"
    text = bench_plot.draw(made, "svg").decode()
    assert "<!-- elements of float16 -->" in text
    assert "float32: oclbn on elements of that type, in the same run; right of 1, float16 is faster." in text
    assert ("Other libraries: right of 1" in text) is bool(libraries)
    label = "time / oclbn's time on float16" if libraries else "time on float32 / time on float16"
    assert text.count(f"<!-- {label} -->") == len(benchmark.TENSORS)
    plain = bench_plot.draw(report(queue, SUITES["resnet50"], ("preallocated",), PEERS), "svg").decode()
    assert "float" not in re.sub(r"<!-- .*oclbn \d.*-->", "", plain)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.7], [1.0, 1.04], [0.96, 1.0], [1.0, 2e5], [1.0, 30.0]])
def test_an_axis_has_two_ticks_and_more(values: list[float]) -> None:
    panel = Figure().subplots()
    panel.set_xscale("log")
    bench_plot._log_ticks(panel, values, bench_plot._TICKS)
    low, high = panel.get_xlim()
    ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
    assert len(ticks) >= 2
    assert 1 in ticks
    assert low < min(values)
    assert max(values) < high


@pytest.mark.parametrize("libraries", [(), ("torch",)])
def test_a_picture_of_what_is_fused_says_so(queue: cl.CommandQueue, libraries: tuple[str, ...]) -> None:
    """What is timed beside is oclbn itself without it, and no library."""
    made = report(queue, SUITES["resnet50"], ("preallocated",), ("plain", *libraries))
    made.fused, made.dtype = "relu", "float16"
    text = bench_plot.draw(made, "svg").decode()
    assert "<!-- elements of float16, with relu -->" in text
    assert "plain: oclbn without relu, in the same run; left of 1 by what that costs." in text
    assert ("Other libraries: right of 1" in text) is bool(libraries)
    label = "time / oclbn's time with relu" if libraries else "time without relu / time with it"
    assert text.count(f"<!-- {label} -->") == len(benchmark.TENSORS)
