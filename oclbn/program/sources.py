"""Kernel sources: where they lie, and one file with everything it includes as a single text.

Nothing here touches a device. Includes are expanded here rather than by the driver, so that no driver needs an include
path; ``#line`` directives keep every message pointing at the file and line that a person can open. Files are named by
their path below the folder: a compiler that is to take one by itself gets that folder as its include path.

A file `*.inc` is a pattern: it is put in at each place that includes it, where the names that its head speaks of are
defined, and undefines them at its end. Any other file is put in once.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from oclbn.errors import OclbnError

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"\s*$')
_KERNEL = re.compile(r"__kernel\b[^(]*(?:\(\([^)]*(?:\([^)]*\)[^)]*)*\)\)\s*)?\bvoid\s+(\w+)\s*\(([^{]*)\)\s*\{")
_MARK = "numbers/types.clh"  # the file that tells a folder of kernels from another
_PATTERN = ".inc"  # of files that are included again and again
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_LIST = re.compile(r"#define +(\w+_ARGUMENTS)(?:\((\w+)\))? +(.+)")  # a macro that stands for several arguments
_QUALIFIERS = {"const", "restrict", "UNSHARED", "volatile"}


class SourceError(OclbnError, FileNotFoundError):
    """A kernel file that belongs to the package is not there."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its name, and "buffer" or the OpenCL name of its scalar type."""

    name: str
    type: str


@dataclass(frozen=True)
class Source:
    """A kernel file with its includes expanded, and where each line of the text came from."""

    name: str
    text: str
    origins: tuple[tuple[str, int], ...]  # per line of text: file name, line number


@functools.cache
def kernel_directory() -> Path:
    """The folder of the kernel files: inside an installed package, or beside it in a checkout.

    Raises SourceError where there is neither.
    """
    here = Path(__file__).resolve().parent.parent
    for folder in (here / "kernels", here.parent / "kernels"):
        if (folder / _MARK).is_file():
            return folder
    raise SourceError(f"no kernels/ folder in {here} or beside it: the installation of oclbn is incomplete")


@functools.cache
def load(name: str) -> Source:
    """The kernel file `name` ("forward.cl", "walks/rows.clh") with every include in place."""
    lines: list[str] = []
    origins: list[tuple[str, int]] = []
    _expand(name, lines, origins, set(), ())
    return Source(name, "\n".join(lines) + "\n", tuple(origins))


def _expand(
    name: str, lines: list[str], origins: list[tuple[str, int]], seen: set[str], within: tuple[str, ...]
) -> None:
    path = kernel_directory() / name
    if not path.is_file():
        raise SourceError(f"kernel file {name} is not in {kernel_directory()}")
    if name in within:
        raise SourceError(f"kernel file {name} includes itself, by way of {within[-1]}")
    seen.add(name)

    def put(line: str, number: int) -> None:
        lines.append(line)
        origins.append((name, number))

    put(f'#line 1 "{name}"', 0)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        included = _INCLUDE.match(line)
        if included is None:
            put(line, number)
        elif included[1] not in seen or included[1].endswith(_PATTERN):
            _expand(included[1], lines, origins, seen, (*within, name))
            put(f'#line {number + 1} "{name}"', number)
        else:
            put("", number)


@functools.cache
def with_one(source: Source, kernel: str) -> Source:
    """The source without its other kernels, each line where it was.

    Compilers take all that a program has through their later stages, wanted or not: on some that is most of a build.
    A kernel ends at the first brace that stands in the first column. Raises SourceError where there is no such kernel.
    """
    lines = source.text.splitlines()
    found = False
    for match in _KERNEL.finditer(source.text):
        if match[1] == kernel:
            found = True
            continue
        first = source.text.count("\n", 0, match.start())
        last = lines.index("}", source.text.count("\n", 0, match.end()))
        lines[first : last + 1] = [""] * (last + 1 - first)
    if not found:
        raise SourceError(f"kernel file {source.name} has no kernel {kernel}")
    return Source(source.name, "\n".join(lines) + "\n", source.origins)


@functools.cache
def parameters(name: str, kernel: str) -> tuple[Parameter, ...]:
    """What kernel `kernel` of file `name` takes, in order, read off the source itself."""
    found = _heads(name).get(kernel)
    if found is None:
        raise SourceError(f"kernel file {name} has no kernel {kernel}")
    return found


@functools.cache
def _heads(name: str) -> dict[str, tuple[Parameter, ...]]:
    """The kernels of a file and what they take."""
    text = _COMMENT.sub("", load(name).text).replace("\\\n", " ")
    lists = {match[1]: (match[2], match[3]) for match in _LIST.finditer(text)}
    heads = {match[1]: _written_out(match[2], lists) for match in _KERNEL.finditer(text)}
    return {kernel: tuple(map(_parameter, head.split(","))) for kernel, head in heads.items()}


def _written_out(text: str, lists: dict[str, tuple[str | None, str]]) -> str:
    """The text with, for each macro of `lists`, what it stands for: of each its own parameter, if any, and that."""
    for name, (own, body) in lists.items():
        for use in re.finditer(rf"\b{name}\b" + (r"\((\w+)\)" if own else ""), text):
            meaning = re.sub(rf"\b{own}\b", use[1], body).replace("##", "") if own else body
            text = text.replace(use[0], _written_out(meaning, lists))
    return text


def _parameter(text: str) -> Parameter:
    words = [word for word in text.replace("*", " * ").split() if word not in _QUALIFIERS]
    return Parameter(words[-1], "buffer" if "*" in words else " ".join(words[:-1]))
