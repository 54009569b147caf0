"""Names of other libraries: errors say what they are here, and the guide's page has what the errors say."""

from __future__ import annotations

import copy
import inspect
import io
import os
import pickle
import pydoc
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
import pytest
from click.testing import CliRunner

import oclbn
import oclbn.sync
from oclbn import (
    BatchNorm,
    BatchNorm1D,
    BatchNorm2D,
    BatchNorm3D,
    BatchNormND,
    functional,
    gpuarray,
    names,
)
from oclbn.cli.group import oclbn as command
from oclbn.errors import ArrayTypeError, ModuleNameError, ParameterError
from oclbn.names import ARGUMENTS, ATTRIBUTES, CONTENTS, OPTIONS, Name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "pages" / "guide" / "names.md"
TABLES = {
    "Options of constructors": OPTIONS,
    "Attributes and methods": ATTRIBUTES,
    "Arguments of functions": ARGUMENTS,
    "Functions and classes": CONTENTS,
}
CLASSES = [BatchNorm, BatchNorm1D, BatchNorm2D, BatchNorm3D, BatchNormND]


def row(name: Name) -> str:
    """As the page has it."""
    cells = [f"`{name.here}`" if name.here else "none"]
    cells += [", ".join(f"`{word}`" for word in column.split()) for column in name[1:4]]
    return f"| {' | '.join([*cells, name.note])} |".replace("  ", " ")


def table(title: str) -> list[str]:
    """The rows below a heading of the page, without the table's own heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize("title", TABLES)
def test_the_page_has_what_errors_say(title: str) -> None:
    assert table(title) == [row(name) for name in TABLES[title]]


def test_names_here_are_there() -> None:
    """Each name that an error leads to is one of ours."""
    options = {one for cls in CLASSES for one in inspect.signature(cls).parameters}
    assert {name.here for name in OPTIONS} - {""} <= options
    functions = [getattr(functional, one) for one in functional.__all__ if one[0].islower()]
    functions += [getattr(gpuarray, one) for one in gpuarray.__all__ if one != "Array"]
    functions += [BatchNorm2D.updateParams]
    arguments = {one for call in functions for one in inspect.signature(call).parameters}
    assert {name.here for name in ARGUMENTS} - {""} <= arguments
    for name in CONTENTS:
        found: object = oclbn
        for part in name.here.split("."):
            found = getattr(found, part)


# --- constructors


def refused(cls: type[BatchNormND], foreign: str) -> str:
    sizes = (2, 4) if cls is BatchNormND else (4,)
    if foreign in ("num_features", "maps", "size", "channels", "num_channels"):
        sizes = ()
    with pytest.raises(TypeError) as caught:
        cls(*sizes, **{foreign: 1})
    assert type(caught.value) is TypeError
    return str(caught.value)


@pytest.mark.parametrize("cls", CLASSES)
def test_foreign_options_are_told(cls: type[BatchNormND]) -> None:
    takes = inspect.signature(cls).parameters
    seen = 0
    for name in OPTIONS:
        for foreign in name.foreign - takes.keys():
            if name.here in ("", *takes):
                message = refused(cls, foreign)
                assert message.startswith(f"{cls.__name__}() takes no {foreign!r}; ")
                assert (name.here or "there is none here.") in message
                assert name.note.replace("`", "") in message
                seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BatchNorm2D(4, data_format="channels_last"),
            "BatchNorm2D() takes no 'data_format'; did you mean axis?",
        ),
        (lambda: BatchNorm2D(4, channels_last=True), "BatchNorm2D() takes no 'channels_last'; did you mean axis? Of "),
        (lambda: BatchNorm2D(), "BatchNorm2D(): missing a required argument: 'maps'"),
        (lambda: BatchNorm(), "BatchNorm(): missing a required argument: 'size'"),
        (lambda: BatchNorm2D(4, epsilom=1), "BatchNorm2D() takes no 'epsilom'; did you mean epsilon?"),
        (
            lambda: BatchNorm2D(4, epsilon=1, momentun=1),
            "BatchNorm2D() takes no 'momentun'; did you mean minFactor?",
        ),
        (
            lambda: BatchNorm2D(*range(11)),
            "BatchNorm2D() takes by position maps, epsilon, initFactor, minFactor, sscale, affine, name, empty, inpla",
        ),
        (lambda: BatchNorm2D(size=4), "BatchNorm2D() takes no 'size'; did you mean maps?"),
        (lambda: BatchNorm(maps=4), "BatchNorm() takes no 'maps'; did you mean size?"),
        (lambda: BatchNormND(2, 4, zzz=4), "BatchNormND() takes no 'zzz'; it takes nd, maps, epsilon, initFactor, "),
    ],
)
def test_wrong_constructions_name_the_class(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        make()


def test_momentum_is_what_the_hint_says(queue: cl.CommandQueue) -> None:
    """PyTorch's running variance of this batch is 4.5 at its momentum of 0.1, from mean 0 and variance 1."""
    data = cla.to_device(queue, np.arange(18, dtype=np.float32).reshape(3, 6))
    bn = BatchNorm(6, initFactor=0, minFactor=0.1, queue=queue)
    for mean in (0.6, 0.9 * 0.6 + 0.6):
        bn(data)
        assert bn.mean is not None
        np.testing.assert_allclose(bn.mean.get().ravel()[0], mean, rtol=1e-6)
    bn = BatchNorm(6, initFactor=0, minFactor=0.1, queue=queue)
    bn(data)
    assert bn.var is not None
    np.testing.assert_allclose(bn.var.get().ravel()[0], 4.5, rtol=1e-6)
    bn = BatchNorm(6, initFactor=1, minFactor=0, queue=queue)  # None: all batches alike
    for _ in range(3):
        bn(data)
    assert bn.mean is not None
    np.testing.assert_allclose(bn.mean.get().ravel(), np.arange(6, 12), rtol=1e-6)


# --- attributes

FOREIGN = sorted(set().union(*(name.foreign for name in ATTRIBUTES)) - set().union(*(name.own for name in ATTRIBUTES)))


def told(foreign: str) -> list[str]:
    return [name.here for name in ATTRIBUTES if foreign in name.foreign]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_attributes_are_told(queue: cl.CommandQueue, foreign: str) -> None:
    """Whoever reads one or assigns to it; hasattr, and getattr with a default, say that there is none."""
    bn = BatchNorm2D(3, queue=queue)
    for use in (lambda: getattr(bn, foreign), lambda: setattr(bn, foreign, 1)):
        with pytest.raises(AttributeError, match=f"^'BatchNorm2D' object has no attribute '{foreign}'") as caught:
            use()
        assert type(caught.value) is AttributeError
        assert caught.value.name == foreign
        for here in told(foreign):
            assert here in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value)).lower()
        assert shown.count("did you mean") == 1
    with pytest.raises(AttributeError, match=f"^type object 'BatchNorm2D' has no attribute '{foreign}'"):
        getattr(BatchNorm2D, foreign)
    assert not hasattr(bn, foreign)
    assert getattr(bn, foreign, 7) == 7
    assert foreign not in dir(bn)
    assert foreign not in dir(BatchNorm2D)


def test_modes_say_what_they_switch_to(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(3, queue=queue)
    with pytest.raises(AttributeError, match=r"did you mean evalMode\(\)\? Switches to evaluation"):
        bn.eval()  # type: ignore[attr-defined]


def test_what_is_asked_for_first() -> None:
    """The names that everybody tries, of attributes and methods."""
    tried = "weight running_mean running_var eps momentum training eval num_batches_tracked state_dict gamma beta"
    assert set(f"{tried} moving_mean moving_variance trainable load_state_dict parameters cuda to".split()) <= {
        *FOREIGN
    }


def test_other_names_are_python_s_affair(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(3, queue=queue)
    with pytest.raises(AttributeError, match=r"^'BatchNorm2D' object has no attribute 'epsilom'$"):
        bn.epsilom  # type: ignore[attr-defined]  # noqa: B018
    bn.mine = 3  # type: ignore[attr-defined]  # users may keep their own
    assert bn.mine == 3
    assert "mine" in dir(bn)


@pytest.mark.once("Python's words, not a device's")
@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("oclbn.BatchNorm2D(3).epsilom", "no attribute 'epsilom'. Did you mean: 'epsilon'?"),
        ("oclbn.BatchNorm2D(3).evalmode()", "no attribute 'evalmode'. Did you mean: 'evalMode'?"),
        ("oclbn.BatchNorm2D(3).eps", "no attribute 'eps'; did you mean epsilon?"),
        ("oclbn.BatchNorm2D(3).num_props", "no attribute 'num_props'. Did you mean: 'numOfProps'?"),
        ("oclbn.BatchNorm2d(3)", "no attribute 'BatchNorm2d'; did you mean BatchNorm2D? For (N, C, H, W)."),
        ("from oclbn import BatchNorm2d", "'BatchNorm2d' from 'oclbn'; did you mean BatchNorm2D? For (N, C, H, W)."),
    ],
)
def test_what_a_user_sees(spec: str, use: str, words: str) -> None:
    """One hint: where ours says nothing, Python looks for names that are alike; to ours it adds none."""
    command = [sys.executable, "-c", f"import oclbn; {use}"]
    environment = os.environ | {"OCLBN_DEVICE": spec}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert words in done.stderr
    assert done.stderr.lower().count("did you mean") == 1


def test_copies_and_subclasses(queue: cl.CommandQueue) -> None:
    class Torch(BatchNorm2D):
        """Which has one of the names for itself."""

        training = True

        @property
        def weight(self) -> Any:
            return self.scale

    bn = Torch(3, queue=queue, axis=-1)
    bn.training = False
    assert bn.weight is bn.scale
    assert {"weight", "training"} <= {*dir(bn)}
    assert "weight" in dir(Torch)
    for other in (copy.copy(bn), copy.deepcopy(bn), pickle.loads(pickle.dumps(BatchNorm2D(3, queue=queue, axis=-1)))):
        assert other.axis == 3
        assert not hasattr(other, "eps")


def test_tensors_by_foreign_names(queue: cl.CommandQueue) -> None:
    bn = BatchNorm2D(3, queue=queue)
    for read in (lambda: bn.vars["weight"], lambda: bn.getVar("weight")):
        with pytest.raises(ModuleNameError, match=r"'weight'; there is scale, bias; did you mean scale\?"):
            read()
    with pytest.raises(KeyError, match=r"'running_var'; there is mean, var; did you mean var\?"):
        bn.attrs["running_var"]
    assert bn.vars.get("weight") is None
    assert "weight" not in bn.vars


# --- functions


@pytest.fixture
def x(queue: cl.CommandQueue) -> cla.Array:
    return cla.to_device(queue, np.arange(12, dtype=np.float32).reshape(4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("batch_norm_train(x, weight=1)", "batch_norm_train() takes no 'weight'; did you mean scale?"),
        ("batch_norm_train(x, eps=1)", "batch_norm_train() takes no 'eps'; did you mean epsilon?"),
        ("batch_norm_train(x, momentum=1)", "batch_norm_train() takes no 'momentum'; did you mean factor? PyTorch's"),
        ("batch_norm_train(x, moving_mean=1)", "batch_norm_train() takes no 'moving_mean'; did you mean running_mean?"),
        ("batch_norm_infer(x, running_mean=1)", "batch_norm_infer() takes no 'running_mean'; did you mean mean? Of "),
        ("batch_norm_infer(x, running_var=1)", "batch_norm_infer() takes no 'running_var'; did you mean var? Of "),
        ("batch_norm_infer(x, momentum=1)", "batch_norm_infer() takes no 'momentum'; it takes scale, bias, mean, var"),
        ("batch_norm_infer(x, training=1)", "batch_norm_infer() takes no 'training'; there is none here. batch_norm_"),
        ("batch_norm_infer(input=x)", "batch_norm_infer() takes no 'input'; did you mean x? By position."),
        ("batch_norm_infer(x=x)", "batch_norm_infer() takes x by position"),
        ("batch_norm_infer()", "batch_norm_infer(): missing a required"),
        ("batch_norm_backward(x, x, saveMean=x)", "batch_norm_backward() takes no 'saveMean'; did you mean save_mean?"),
        ("bind(batch_norm_train, x, eps=1)", "batch_norm_train() takes no 'eps'; did you mean epsilon?"),
        ("moments(x, axes=0)", "moments() takes no 'axes'; did you mean axis?"),
        ("accumulate(x, x, scal=0)", "accumulate() takes no 'scal'; did you mean scale?"),
        ("batch_norm_backward(x, x, grad_input=x)", "batch_norm_backward() takes no 'grad_input'; did you mean out?"),
        (
            "batch_norm_infer(x, x, x, x, x, 1e-5)",
            "batch_norm_infer() takes by position x, scale, bias, mean, var, and was given 6 values; by keyword: eps",
        ),
        (
            "explain(x, 'train')",
            "explain() takes by position x, and was given 2 values; by keyword: axis, operation",
        ),
        ("bind(moments, x)(x)", "bound moments() takes no arguments"),
        ("[*map(bind(moments, x), [x, x])]", "bound moments() takes no arguments"),
        ("bind(moments, x[:0])(y=x)", "bound moments() takes no arguments"),
        ("bn.updateParams(lr=1)", "BatchNorm.updateParams() takes no 'lr'; did you mean learnRate?"),
        (
            "bn.backward(x, 1, 1, 1, 1, 1)",
            "BatchNorm.backward() takes by position grad, updParamGrads, updGrad, scale",
        ),
        ("explain(x, op='train')", "explain() takes no 'op'; it takes axis, operation, why"),
        ("prepare([(2, 3)], device='gpu')", "prepare() takes no 'device'; did you mean queue?"),
        ("zeros(3, device='gpu')", "zeros() takes no 'device'; did you mean queue?"),
        ("ones_like(x, device='gpu')", "ones_like() takes no 'device'; did you mean queue?"),
        ("to_gpu([1], dtype='f')", "to_gpu() takes no 'dtype'; there is none here. gpuarray.to_gpu keeps the type"),
        (
            "bn(x, training=True)",
            "a call of a BatchNorm takes no 'training'; there is none here. batch_norm_train uses",
        ),
        (
            "bn.backward(x, scal=1)",
            "BatchNorm.backward() takes no 'scal'; did you mean scale?",
        ),
    ],
)
def test_foreign_arguments_are_told(x: cla.Array, call: str, message: str) -> None:
    known = {**vars(functional), **vars(gpuarray), "bn": BatchNorm(3, queue=x.queue), "x": x}
    with pytest.raises(TypeError, match="^" + re.escape(message)) as caught:
        eval(call, known)
    assert type(caught.value) is TypeError
    assert caught.value.__cause__ is None


def test_a_type_error_of_another_kind_stays(x: cla.Array) -> None:
    """What is raised inside of a call that fits the signature."""
    with pytest.raises(ArrayTypeError, match=r"^scale is a builtins\.str; a pyopencl\.array\.Array is wanted$"):
        functional.batch_norm_train(x, scale="1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^unsupported operand"):
        gpuarray.zeros(None)  # type: ignore[arg-type]


# --- the package

MODULES = [(oclbn, "oclbn"), (functional, "oclbn.functional"), (gpuarray, "oclbn.gpuarray")]


@pytest.mark.parametrize(("module", "label"), MODULES)
def test_foreign_contents_are_told(module: Any, label: str) -> None:
    for name in CONTENTS:
        for foreign in name.foreign:
            if foreign not in dir(module):
                with pytest.raises(AttributeError, match=f"^module '{label}' has no attribute '{foreign}'") as caught:
                    getattr(module, foreign)
                assert name.here in str(caught.value)
                assert not hasattr(module, foreign)


def test_what_lies_in_a_module_of_the_package() -> None:
    with pytest.raises(AttributeError, match=r"; did you mean oclbn\.functional\.batch_norm_train\?$"):
        oclbn.batch_norm_train  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"^module 'oclbn' has no attribute 'BatchNorm4D'$"):
        oclbn.BatchNorm4D  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("from oclbn import BatchNorm2d", "'BatchNorm2d' from 'oclbn'; did you mean BatchNorm2D? For (N, C, H, W)."),
        ("from oclbn import BatchNorm, SyncBatchNorm as S", "'SyncBatchNorm' from 'oclbn'; did you mean sync.SyncBatc"),
        ("from oclbn import Batchnorm2D", "'Batchnorm2D' from 'oclbn'; did you mean BatchNorm2D?"),
        (
            "from oclbn.functional import batchnorm_train",
            "'batchnorm_train' from 'oclbn.functional'; did you mean batch_norm",
        ),
        ("from oclbn import moments", "'moments' from 'oclbn'; did you mean functional.moments?"),
        ("from oclbn import bind", "'bind' from 'oclbn'; did you mean oclbn.functional.bind?"),
        ("from oclbn.functional import batch_norm", "'batch_norm' from 'oclbn.functional'; did you mean functional."),
        ("from oclbn.gpuarray import tensor", "'tensor' from 'oclbn.gpuarray'; did you mean gpuarray.to_gpu?"),
        ("from oclbn import zzz", "'zzz' from 'oclbn' ("),  # Python's own words
        ("from oclbn import functional, nowhere", "'nowhere' from 'oclbn' ("),
    ],
)
def test_what_cannot_be_imported_is_told(statement: str, words: str) -> None:
    """Also deep in a function of many names, where instructions have longer arguments; hasattr says no as before."""
    many = "; ".join(f"v{number} = {number}" for number in range(300))
    for program in (statement, f"def f():\n {many}\n {statement}\nf()", f"{many}; {statement}"):
        with pytest.raises(ImportError, match="^cannot import name " + re.escape(words)) as caught:
            exec(program, {})
        assert type(caught.value) is ImportError
    assert not hasattr(oclbn, "BatchNorm2d")


def test_what_can_be_imported_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submodules, everything that is public, and a module that is still being imported, which only sys.modules has."""
    known: dict[str, Any] = {}
    exec("from oclbn import *; from oclbn import device, errors, names, sync", known)
    assert {*oclbn.__all__, "device", "errors", "sync"} <= known.keys()
    monkeypatch.setitem(sys.modules, "oclbn.tensor", names)
    exec("from oclbn import tensor", known)
    assert known["tensor"] is names


# --- help


def help_of(thing: Any) -> str:
    out = io.StringIO()
    pydoc.Helper(output=out).help(thing)
    return re.sub(r".\x08", "", out.getvalue())


@pytest.mark.parametrize("cls", CLASSES)
def test_help_shows_every_option_and_no_private_name(cls: type[BatchNormND]) -> None:
    """In the signature and with its meaning; the names of other libraries, which are refused, do not stand there."""
    shown = help_of(cls)
    head = re.split(r"^ \| *$", shown[shown.index("\nclass ") :], maxsplit=1, flags=re.MULTILINE)[0]
    described = inspect.getdoc(cls.__init__)
    assert described is not None
    for option in inspect.signature(cls).parameters:
        assert re.search(rf"\b{option}\b", head), option
        assert re.search(rf"\b{option}\b[^:.]*: ", described), option
    first = described.splitlines()[-1]
    assert first in shown
    assert not re.search(r"(?<![\w.])_[A-Za-z]\w*[(.,]", head)
    assert "**options" not in head
    assert not re.search(r"^ \|  (momentum|weight|training)\b", shown, re.MULTILINE)


def test_constructors_take_the_same_options() -> None:
    """Each spells them out, for tools that read them off the source."""
    wanted = [*inspect.signature(BatchNormND).parameters.values()][2:]
    for cls in CLASSES[:-1]:
        assert [*inspect.signature(cls).parameters.values()][1:] == wanted


@pytest.mark.parametrize("module", [functional, gpuarray])
def test_signatures_show_no_private_names(module: Any) -> None:
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isfunction(found):
            assert not re.search(r"(?<![\w.])_\w+", str(inspect.signature(found))), name


def test_every_function_of_the_page_is_public() -> None:
    page = (PAGE.parent.parent / "api" / "functional.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^        - (\w+)$", page, re.MULTILINE)} == {*functional.__all__}


def test_near_misses_only() -> None:
    assert names.hints(OPTIONS, "qwertz", ["epsilon"]) == ""
    assert names.hints(OPTIONS, "epslon", ["epsilon"]) == "; did you mean epsilon?"


# --- slips in attributes that are assigned


SLIPS = [
    ("minfactor", "minFactor"),
    ("min_factor", "minFactor"),
    ("epsilom", "epsilon"),
    ("frozenStatistics", "frozen_statistics"),
    ("inPlace", "inplace"),
    ("Scale", "scale"),
    ("bais", "bias"),
    ("Train", "train"),
    ("numofprops", "numOfProps"),
]


@pytest.mark.parametrize(("slip", "meant"), SLIPS)
def test_slips_in_what_is_assigned_are_told(queue: cl.CommandQueue, slip: str, meant: str) -> None:
    bn = BatchNorm2D(3, queue=queue)
    before = dict(vars(bn))
    wanted = f"^'BatchNorm2D' object has no attribute '{slip}'; did you mean {meant}\\?$"
    with pytest.raises(AttributeError, match=wanted) as caught:
        setattr(bn, slip, 1)
    assert type(caught.value) is AttributeError
    assert "".join(traceback.format_exception(caught.value)).count("id you mean") == 1
    assert vars(bn) == before


@pytest.mark.parametrize("option", ["sscale", "seed", "empty"])
def test_options_that_are_no_attributes_are_the_constructors_alone(queue: cl.CommandQueue, option: str) -> None:
    bn = BatchNorm2D(3, queue=queue)
    with pytest.raises(AttributeError, match=f"no attribute '{option}'; it is an option of the constructor alone$"):
        setattr(bn, option, 1)


def test_what_is_hung_on_a_module_is_free(queue: cl.CommandQueue) -> None:
    """Private names, names that are like none of its own, and what a subclass has for itself."""

    class Mine(BatchNorm2D):
        biases: Any = None

        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            self.shape, self.state, self.mask, self.note, self._bais = (1,), {}, 3, "mine", 1
            self.biases = [1]

    bn = Mine(3, queue=queue)
    assert (bn.shape, bn.state, bn.mask, bn.note, bn._bais, bn.biases) == ((1,), {}, 3, "mine", 1, [1])
    for other in (copy.deepcopy(bn), copy.copy(bn)):
        assert (other.note, other.biases) == ("mine", [1])
        other.note = "another"
    with pytest.raises(AttributeError, match=r"did you mean bias\?"):
        bn.bais = 1


@pytest.mark.parametrize("cls", CLASSES)
def test_own_names_can_be_assigned(queue: cl.CommandQueue, cls: type[BatchNormND]) -> None:
    """All that a call and its gradient leave, too: some are like others ("grad" and "guard")."""
    bn = cls(2, 3, queue=queue) if cls is BatchNormND else cls(3, queue=queue)
    for name in ("inData", "data", "grad", "savemean", "saveinvvar", "scalegrad", "biasgrad"):
        setattr(bn, name, None)
        delattr(bn, name)
        setattr(bn, name, None)
    bn.blueprint = dict(bn.blueprint)


@pytest.mark.once("words, not a device's")
def test_a_slip_of_pytorchs_is_told_what_matters_to_its_user() -> None:
    with pytest.raises(TypeError, match=r"did you mean epsilon\? 1e-5 if not given, as in PyTorch; 1e-3 in Keras\.$"):
        BatchNorm2D(3, eps=1e-3)  # type: ignore[call-arg]


# --- operations, which commands and functions call otherwise


@pytest.mark.parametrize(("elsewhere", "here"), [("forward", "train"), ("inference", "infer"), ("eval", "infer")])
def test_operations_by_the_names_of_commands_are_told(x: cla.Array, elsewhere: str, here: str) -> None:
    with pytest.raises(ParameterError, match=rf" are wanted; did you mean {here}\?$"):
        functional.prepare([(4, 3)], operations=("train", elsewhere), queue=x.queue)
    with pytest.raises(ParameterError, match=rf" is wanted; did you mean {here}\?$"):
        functional.explain(x, operation=elsewhere)
    with pytest.raises(ParameterError, match=r"operation is 3; one of [\w, ]+ is wanted$"):
        functional.explain(x, operation=3)  # type: ignore[arg-type]


@pytest.mark.once("words, not a device's")
@pytest.mark.parametrize(("elsewhere", "here"), [("train", "forward"), ("infer", "inference"), ("bakward", "backward")])
def test_operations_by_the_names_of_functions_are_told_on_the_command_line(elsewhere: str, here: str) -> None:
    done = CliRunner().invoke(command, ["bench", "--operations", f"both,{elsewhere}"])
    assert done.exit_code == 2
    said = f"'{elsewhere}' is not one of forward, backward, inference, both; did you mean {here}?"
    assert said in " ".join(done.stderr.split())
