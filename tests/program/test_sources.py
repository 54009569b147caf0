"""Kernel files: found, expanded, and their kernels' parameters read off them."""

from __future__ import annotations

import pytest

from oclbn.plan.operations import OPERATIONS
from oclbn.program import sources
from oclbn.program.sources import Parameter, SourceError, kernel_directory, load, parameters

FILES = sorted(path.name for path in kernel_directory().glob("*.cl"))


@pytest.mark.parametrize("name", FILES)
def test_includes_are_expanded_once(name: str) -> None:
    source = load(name)
    assert '#include "' not in source.text
    assert source.text.count("#ifndef TYPES_CLH") == 1
    assert len(source.origins) == len(source.text.splitlines())


@pytest.mark.parametrize("name", FILES)
def test_every_line_knows_where_it_came_from(name: str) -> None:
    source = load(name)
    folder = kernel_directory()
    files = {str(path.relative_to(folder)): path.read_text().splitlines() for path in folder.rglob("*.cl*")}
    for line, (file, number) in zip(source.text.splitlines(), source.origins, strict=True):
        if number and not line.startswith("#line") and "#include" not in files[file][number - 1]:
            assert line == files[file][number - 1]


def test_line_directives_lead_back_to_the_file() -> None:
    lines = load("forward.cl").text.splitlines()
    back = max(index for index, line in enumerate(lines) if line.startswith("#line") and "forward.cl" in line)
    number = int(lines[back].split()[1])
    original = (kernel_directory() / "forward.cl").read_text().splitlines()
    assert lines[back + 1 : back + 20] == original[number - 1 : number + 18]


def test_parameters_come_in_order_with_their_types() -> None:
    found = parameters("accumulate.cl", "accumulate")
    assert found == (
        Parameter("into", "buffer"),
        Parameter("into_start", "long"),
        Parameter("added", "buffer"),
        Parameter("added_start", "long"),
        Parameter("count", "long"),
        Parameter("scale", "ACC"),
        Parameter("momentum", "ACC"),
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_planned_kernel_exists(operation: str) -> None:
    wanted = OPERATIONS[operation]
    for kernel in filter(None, (wanted.resident, *wanted.split)):
        source = "moments.cl" if kernel.startswith("moments") else wanted.source
        names = [parameter.name for parameter in parameters(source, kernel)]
        assert len(names) == len(set(names)) > 5
        assert {parameter.type for parameter in parameters(source, kernel)} <= {"buffer", "int", "long", "ACC"}


def test_a_missing_file_and_a_missing_kernel_are_named() -> None:
    with pytest.raises(SourceError, match=r"kernel file backwards\.cl is not in "):
        load("backwards.cl")
    with pytest.raises(SourceError, match=r"forward\.cl has no kernel trane"):
        sources.parameters("forward.cl", "trane")
