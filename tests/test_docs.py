"""The README and the pages: their code runs and prints what they say, their commands parse, their pictures are current.

`mkdocs build --strict -f docs/mkdocs.yml`, a step of .ci/run, looks after links.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import click
import pytest
from pages import FENCED, blocks, prints

from oclbn import errors
from oclbn.cli.group import oclbn as group
from oclbn.plan.words import Tuning

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("pages/**/*.md"))]
GUIDES = [page for page in PAGES if page.parent.name != "measurements"]
EXAMPLES = sorted((ROOT / "examples").rglob("README.md"))
_RUN = """
import contextlib, io, json, sys
page, blocks = json.load(sys.stdin)
known, printed = {"__name__": "__main__"}, []
for line, code in blocks:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile("\\n" * line + code, page, "exec"), known)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


def title(page: Path) -> str:
    return str(page.relative_to(DOCS / "pages" if DOCS in page.parents else ROOT))


def languages(page: Path) -> set[str]:
    return {block.language for block in blocks(page)}


# --- code


@pytest.mark.once("the pages show what oclbn does, not what runtimes do")
@pytest.mark.parametrize("page", [page for page in PAGES if "python" in languages(page)], ids=title)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page: Path, spec: str, tmp_path: Path) -> None:
    given = [*blocks(page)]
    if any(re.search(r"^import torch$", block.text, re.MULTILINE) for block in given):
        pytest.importorskip("torch", reason="needs the extra torch: pip install 'oclbn[torch]'")
    for block in given:
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    given = [block for block in given if not block.file]
    code = [(block.line, block.text) for block in given if block.language == "python"]
    command = [sys.executable, "-W", "error", "-W", "ignore:Non-empty compiler output", "-c", _RUN]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "OCLBN_DEVICE": spec, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        input=json.dumps([title(page), code]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = iter(json.loads(done.stdout.splitlines()[-1]))
    out = ""
    for block in given:
        if block.language == "python":
            out = next(printed)
        elif block.language == "text" and block.follows:
            assert prints(block.text, out), f"{title(page)}:{block.line} says\n{block.text}\nbut it prints\n{out}"
            out = ""


def test_each_program_of_the_readme_stands_alone() -> None:
    """Whoever copies one of them alone has all that it needs."""
    for block in blocks(ROOT / "README.md"):
        if block.language == "python":
            imported = re.findall(r"^(?:import|from) .*", block.text, re.MULTILINE)
            for name in ("np", "gpuarray", "BatchNorm2D", "batch_norm_train"):
                if re.search(rf"\b{name}\b[.(]", block.text):
                    assert any(re.search(rf"\b{name}\b", line) for line in imported), f"README.md:{block.line}: {name}"


def test_pages_agree_on_how_to_install() -> None:
    """No package index has oclbn: the first thing that somebody does is in a checkout."""
    for page in (ROOT / "README.md", DOCS / "pages/guide/devices.md", DOCS / "pages/guide/troubleshooting.md"):
        text = page.read_text(encoding="utf-8")
        assert "python -m pip install '.[pocl" in text
        assert "pip install 'oclbn[" not in text


def test_the_number_of_examples_is_right() -> None:
    words = {3: "three", 4: "four", 5: "five", 6: "six"}
    count = len([*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*/README.md")])  # and larger ones
    assert f"{words[count].capitalize()} programs" in (ROOT / "examples/README.md").read_text(encoding="utf-8")
    assert f"has {words[count]} programs" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_text_behind_code_is_compared() -> None:
    """Every page that shows what code prints is held to it: no block of text stands elsewhere."""
    for page in GUIDES:
        before = ""
        for block in blocks(page):
            if block.language == "text":
                assert block.follows, f"{title(page)}:{block.line}: text that no code is before"
                assert before == "python", f"{title(page)}:{block.line}: text that no code is before"
            before = block.language


@pytest.mark.parametrize(
    ("wanted", "found", "same"),
    [
        ("loss 0.09\n", "loss 0.10\n", True),
        ("loss 0.09\n", "loss 0.11\n", False),
        ("(3, 4)\n", "(3, 5)\n", False),
        ("True\n", "", False),
        ("1.5 2\n", "1.5\n", False),
    ],
)
def test_what_counts_as_printing_the_same(wanted: str, found: str, same: bool) -> None:
    assert prints(wanted, found) is same


# --- commands


def commands(page: Path) -> list[str]:
    """Lines of ```console blocks behind "$ ", and the indented lines of the README."""
    text = page.read_text(encoding="utf-8")
    shown = [line for block in blocks(page) if block.language == "console" for line in block.text.splitlines()]
    found = [line[2:] for line in shown if line.startswith("$ ")]
    if page.name == "README.md":
        found += [line.strip() for line in FENCED.sub("", text).splitlines() if line.startswith("    ")]
    return found


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=title)
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data.npy", "model.safetensors", "model.onnx"):
        (tmp_path / name).touch()  # the reader's own, for what wants a file that is there
    for line in commands(page):
        for part in re.split(r" && ", line):
            words = shlex.split(part, comments=True)
            while re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            _check_command(words)


def _check_command(words: list[str]) -> None:
    if words[0] == "oclbn":
        command = group.get_command(click.Context(group), words[1])
        assert command is not None, words
        with command.make_context(words[1], words[2:]):
            pass  # which raises where an option or a value is wrong
    for word in words:
        if re.match(r"(tests|docs|examples|benchmarks|\.ci)/", word):
            assert (ROOT / word).exists(), f"{word}: no such file"
        if named := re.search(r"\[([\w,]+)\]$", word):
            assert set(named[1].split(",")) <= extras(), f"{word}: no such extra"


@pytest.mark.parametrize("page", GUIDES, ids=title)
def test_options_that_are_named_exist(page: Path) -> None:
    """In running text: `oclbn bench --profile`."""
    for words in re.findall(r"`oclbn (\w+[^`\n]*)`", FENCED.sub("", page.read_text(encoding="utf-8"))):
        name, *rest = words.split()
        if name.isupper():  # `oclbn COMMAND --help`
            continue
        command = group.get_command(click.Context(group), name)
        assert command is not None, f"oclbn {words}: no such command"
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options | {"--help"}, f"oclbn {words}"


def test_the_readme_has_the_two_commands() -> None:
    assert "python -m pip install '.[pocl,demo]' && oclbn demo" in commands(ROOT / "README.md")
    assert "python -m pip install -e '.[test]' && python -m pytest" in commands(ROOT / "README.md")


# --- names


def resolves(name: str) -> bool:
    """Whether oclbn.module.thing is there; of oclbn.torch, without PyTorch, whether files define it."""
    parts = name.split(".")
    if parts[1] == "torch" and not importlib.util.find_spec("torch"):
        texts = [path.read_text(encoding="utf-8") for path in (ROOT / "oclbn" / "torch").glob("*.py")]
        return all(any(re.search(rf"\b{part}\b", text) for text in texts) for part in parts[2:])
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[end:])
    return False


@pytest.mark.parametrize("path", [*GUIDES, *sorted((ROOT / "oclbn").rglob("*.py"))], ids=title)
def test_names_that_are_given_exist(path: Path) -> None:
    """Of modules and what is in them: in pages, docstrings, messages and comments."""
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.\[-])oclbn(?:\.[A-Za-z_]\w*)+", text))
    assert {name for name in named if not resolves(name)} == set()


@pytest.mark.parametrize(
    "page",
    [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *EXAMPLES],
    ids=title,
)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"(?:^|[ `])((?:tests|oclbn|kernels|docs|examples|benchmarks|findings|\.ci)/[\w./-]*)(?!\*)", text
    )
    assert {name for name in named if "DATE" not in name and not (ROOT / name.rstrip(".")).exists()} == set()


# --- what the pages have to have


def test_tables_of_choices_are_ones() -> None:
    """The blocks of TOML, and what they choose."""
    known = {field.name for field in fields(Tuning)} | {"words", "kind"}
    named = set()
    for page in GUIDES:
        for block in blocks(page):
            if block.language == "toml":
                table = tomllib.loads(block.text)
                for entry in [*table.get("family", []), *(one["choices"] for one in table.get("device", []))]:
                    named |= entry.keys()
    assert {"vec", "lanes", "words"} <= named <= known


def test_the_design_shows_every_folder() -> None:
    page = (DOCS / "pages" / "develop" / "design.md").read_text(encoding="utf-8")
    (tree,) = (block.text for block in blocks(DOCS / "pages" / "develop" / "design.md") if "oclbn/" in block.text)
    folders = {path.parent.name for path in (ROOT / "oclbn").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)) == folders
    assert "pictures/way.svg" in page


def test_the_readme_is_short_and_its_files_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    named = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"`(docs/[^` ]+)`", text)
    assert any(name.endswith(".svg") for name in named)
    assert [name for name in named if "//" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", GUIDES, ids=title)
def test_guides_have_no_date_and_no_history(page: Path) -> None:
    text = re.sub(r"\]\([^)]*\)", "]", FENCED.sub("", page.read_text(encoding="utf-8")))
    assert re.findall(r"20\d\d-\d\d-\d\d", text) == []
    assert re.findall(r"\b(?:now|today|yesterday|until then it|no longer|used to be)\b", text, re.IGNORECASE) == []


PRIVATE = {  # words of the kernels' authors, none of which means anything else in a guide; what a reader knows
    r"walk(?:s|ed|ing)?": "read, traversed",
    r"sheets?": "NHWC",
    r"strips?": "tile",
    r"astray": "in another memory order",
    r"miniatures?": "a small tensor",
    r"hostile": "ill-conditioned",
    r"past the cache": "non-temporal stores",
    r"large pages": "huge pages",
    r"yardsticks?": "baseline",
    r"verdicts?": "which kernels are right",
    r"gather(?:s|ed|ing)?": "accumulate",
    r"heap kept": "malloc keeps memory",
    r"bound calls?": "prepared calls",
    r"(?:out of|beyond) (?:its|their|the) bounds?": "beyond its tolerance",
}
READ_BY_USERS = [
    *(page for page in GUIDES if page.parent.name not in ("develop", "api")),
    ROOT / "CHANGELOG.md",
    *EXAMPLES,
]


@pytest.mark.parametrize("page", READ_BY_USERS, ids=title)
def test_guides_speak_the_words_of_the_field(page: Path) -> None:
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    said = {word: better for word, better in PRIVATE.items() if re.search(rf"\b{word}\b", text, re.IGNORECASE)}
    assert said == {}


def test_the_glossary_has_the_terms_of_the_field() -> None:
    """Those that guides, messages and commands use, in a table of their own that comes first."""
    text = (DOCS / "pages" / "develop" / "glossary.md").read_text(encoding="utf-8")
    _, terms, _ = text.split("## ")
    wanted = {"work-group", "tolerance", "huge pages", "non-temporal stores", "fused", "two-kernel", "reference"}
    wanted |= {"NCHW", "NHWC", "baseline", "preallocated", "eval mode"}
    named = {word for cell in re.findall(r"^\| \*\*(.+?)\*\*", terms, re.MULTILINE) for word in cell.split(", ")}
    assert wanted - named == set()


def test_every_variable_of_the_environment_has_a_row() -> None:
    page = (DOCS / "pages" / "guide" / "environment.md").read_text(encoding="utf-8")
    read = set()
    for path in (ROOT / "oclbn").rglob("*.py"):
        read |= set(re.findall(r"\b(?:OCLBN|POCL|PYOPENCL|RUSTICL)_[A-Z_]+[A-Z]\b", path.read_text(encoding="utf-8")))
    read |= set(re.findall(r"OCLBN_[A-Z_]+", (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")))
    read -= {"PYOPENCL_CACHE_FAILURE_FATAL"}  # what an error of pyopencl's says
    assert len(read) > 10
    assert {name for name in read if f"`{name}`" not in page} == set()


def test_every_error_has_a_row() -> None:
    page = (DOCS / "pages" / "guide" / "errors.md").read_text(encoding="utf-8")
    classes = [name for name, one in vars(errors).items() if isinstance(one, type) and one.__module__ == "oclbn.errors"]
    assert len(classes) > 20
    assert [name for name in classes if f"`{name}`" not in page] == []


def test_every_function_is_on_its_page() -> None:
    """Of the modules that users import; tests of structure know what the package itself has."""
    for name in ("functional", "gpuarray"):
        page = (DOCS / "pages" / "api" / f"{name}.md").read_text(encoding="utf-8")
        public = set(importlib.import_module(f"oclbn.{name}").__all__) - {"Array"}
        assert {one for one in public if not re.search(rf"\b{one}\b", page)} == set()


def test_every_page_is_reached_from_the_navigation() -> None:
    nav = (DOCS / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    named = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", nav, re.MULTILINE)
    assert sorted(named) == sorted(title(page) for page in PAGES if page.parent != ROOT)


# --- figures


def measurement(kind: str) -> str:
    """The page of measurements that the index leads to for its figures."""
    named = re.search(rf"\((measurements/[\w-]*{kind}[\w-]*\.md)\)", (DOCS / "pages" / "index.md").read_text("utf-8"))
    assert named is not None
    return (DOCS / "pages" / named[1]).read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """The cells of all rows of tables, by the first cell; of equal ones the first row."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(first, others)
    return found


def same(shown: str, measured: list[float]) -> bool:
    """Whether a figure is the geometric mean of those that were measured, as far as it is rounded."""
    value = math.nan if shown == "NaN" else float(shown.replace(",", ""))
    mean = statistics.geometric_mean(measured) if min(measured) > 0 else measured[0]
    return value == mean or abs(value - mean) <= 0.03 * mean or (math.isnan(value) and math.isnan(mean))


def number(cell: str) -> float:
    return math.nan if cell == "lost" else float(cell)


DATA = {
    "N(0, 1)": "N(0, 1)",
    "mean = 100 standard deviations": "mean/std 100",
    "mean = 10⁴ standard deviations": "mean/std 1e4",
    "mean = 10⁶ standard deviations": "mean/std 1e6",
    "constant channels": "constant channels",
}
PEERS = {"PyTorch, as people run it": 0, "PyTorch at its best": 1, "PyTorch, channels last": 1, "oneDNN": 3}


@pytest.mark.parametrize("name", ["index.md", "guide/accuracy.md"])
def test_errors_are_those_of_the_measurement(name: str) -> None:
    text = measurement("errors")
    measured = rows(text[text.index("### y\n") :])
    shown = rows((DOCS / "pages" / name).read_text(encoding="utf-8"))
    for label, data in DATA.items():
        for figure, cell in zip(shown[label], measured[data], strict=False):  # oclbn, PyTorch, E[x²] - E[x]²
            assert same(figure, [number(cell)]), f"{label}: {figure} is shown, {cell} was measured"


def test_times_are_those_of_the_measurement() -> None:
    measured = rows(measurement("zen"))
    copies = {
        name: re.findall(r"[\d.]+", measured[row][0])
        for name, row in (
            ("POCL 3.0", "POCL wheel (for znver3)"),
            ("POCL 3.1", "Debian's POCL 3.1"),
            ("Intel's CPU runtime", "Intel's runtime"),
        )
    }
    speed = rows((DOCS / "pages" / "guide" / "speed.md").read_text(encoding="utf-8"))
    assert {name: speed[name] for name in copies} == copies
    index = rows((DOCS / "pages" / "index.md").read_text(encoding="utf-8"))
    readme = rows((ROOT / "README.md").read_text(encoding="utf-8"))
    assert index["in times of a plain copy of the tensor"] == copies["POCL 3.0"]
    for figure, ratio in zip(readme["a plain copy of the tensor"], copies["POCL 3.0"], strict=False):
        assert same(figure, [1 / float(ratio)])
    seen = 0
    for label, figures in (index | readme).items():
        column = next((column for name, column in PEERS.items() if name in label), None)
        if column is None:
            continue
        for figure, row in zip(figures, ("bound, two runs: forward", "backward", "inference"), strict=False):
            assert same(figure, [float(one) for one in measured[row][column].split(",")]), f"{label}: {figure}"
            seen += 1
    assert seen == 3 * 6


# --- pictures


def drawings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_pictures_are_what_their_script_draws() -> None:
    draw = drawings()
    for name, make in draw.ALL.items():
        assert (draw.PICTURES / f"{name}.svg").read_text(encoding="utf-8") == make().svg(), "run python docs/draw.py"
    assert {path.stem for path in draw.PICTURES.glob("*.svg")} == set(draw.ALL)


def test_pages_of_the_api_say_what_to_read_in_a_checkout() -> None:
    """Where nothing fills them, as a site does."""
    for page in (DOCS / "pages" / "api").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        named = re.search(r"In a checkout this page is empty: `python -c \"(import oclbn.*; help\(.*\))\"`", text)
        assert named is not None, page
        if importlib.util.find_spec("torch") is None and "oclbn.torch" in named[1]:
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(named[1], {})
        assert len(out.getvalue()) > 500, page
