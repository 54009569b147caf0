"""What ranks can do wrong, one thing after the other in one job; which rank, goes round."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pyopencl.array as cla
from spread import queues_on

from oclbn import BatchNorm, BatchNorm2D
from oclbn.errors import OclbnError
from oclbn.functional import statistics
from oclbn.sync import Group, SyncBatchNorm

Do = Callable[[Group, bool], Any]


@dataclass(frozen=True)
class Wrong:
    """do: what all ranks do, and whether it is this one that does it wrong.

    told: what ranks are told, if that is not a GroupError that names the rank; None: the others are told nothing.
    """

    name: str
    do: Do
    told: str | None = r"GroupError: .*\brank {bad}\b"


def ones(group: Group, *shape: int, dtype: Any = np.float32) -> cla.Array:
    return cla.to_device(group.queues[0], np.random.default_rng(0).standard_normal(shape).astype(dtype))


def train(**right_and_wrong: tuple[Any, Any]) -> Do:
    """Of each option what the others give, and what the one that is wrong gives."""

    def do(group: Group, bad: bool) -> None:
        given = {name: pair[bad] for name, pair in right_and_wrong.items()}
        x = ones(group, *given.pop("shape", (3, 4, 4)), dtype=given.pop("dtype", np.float32))
        if given.pop("moving", False):
            given |= {name: cla.zeros(group.queues[0], 4, np.float32) for name in ("running_mean", "running_var")}
        group.train(x, **given)

    return do


def backward(**right_and_wrong: tuple[Any, Any]) -> Do:
    def do(group: Group, bad: bool) -> None:
        x = ones(group, 3, 4, 4)
        found = group.train(x)[1]
        given = {name: pair[bad] for name, pair in right_and_wrong.items()}
        if given.pop("gathering", False):
            given["scale_grad"] = cla.zeros(group.queues[0], 4, np.float32)
        part = x[: given.pop("rows", 3)]
        dy = given.pop("dy", part)
        group.backward(part, dy, found, **given)

    return do


def without_gradient(group: Group) -> None:
    x = ones(group, 3, 4, 4)
    group.backward(x, None, group.train(x)[1])


def either(right: Callable[[Group], Any], wrong: Callable[[Group], Any]) -> Do:
    def do(group: Group, bad: bool) -> None:
        (wrong if bad else right)(group)

    return do


def layers(*names: str) -> Callable[[Group], None]:
    """Those, in one exchange."""

    def do(group: Group) -> None:
        with group.batched():
            started = [group.start_train(ones(group, 3, 4), layer=name) for name in names]
        for one in started:
            one.result()

    return do


def fails(error: BaseException) -> Callable[[Group], None]:
    def do(group: Group) -> None:
        with group.batched():
            group.start_train(ones(group, 3, 4))
            raise error

    return do


def leaves(group: Group) -> None:
    with group:
        raise ZeroDivisionError("the program is wrong")


def in_with(group: Group) -> None:
    with group:
        group.train(ones(group, 3, 4))
        group.train(ones(group, 3, 4))


def foreign(group: Group) -> cla.Array:
    return cla.to_device(queues_on(group.queues[0].device)[0], np.ones((3, 4), np.float32))


def by_a_thread(group: Group, bad: bool) -> None:
    """While this thread has the group, another asks for it: that one is told, and this one goes on."""
    said: list[BaseException] = []

    def ask() -> None:
        try:
            group.train(ones(group, 3, 4))
        except OclbnError as error:
            said.append(error)

    if bad:
        with group.working():
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
    group.train(ones(group, 3, 4))
    if bad:
        raise said[0]


def module(maker: Callable[[Group], Any], wrong: Callable[[Group], Any], **options: tuple[Any, Any]) -> Do:
    def do(group: Group, bad: bool) -> None:
        SyncBatchNorm((wrong if bad else maker)(group), group, **{name: pair[bad] for name, pair in options.items()})

    return do


def called(right: Callable[[SyncBatchNorm, Group], Any], wrong: Callable[[SyncBatchNorm, Group], Any]) -> Do:
    def do(group: Group, bad: bool) -> None:
        bn = SyncBatchNorm(BatchNorm2D(4, queue=group.queues[0]), group)
        (wrong if bad else right)(bn, group)

    return do


def step(bn: SyncBatchNorm, group: Group) -> None:
    x = ones(group, 3, 4, 2, 2)
    bn(x)
    bn.backward(x)


def first(bn: SyncBatchNorm, group: Group) -> None:
    bn(ones(group, 3, 4, 2, 2))


def saved(bn: SyncBatchNorm, _: Group) -> None:
    bn.load(bn.save())


def loads_another(bn: SyncBatchNorm, group: Group) -> None:
    bn.load(bn_of(seed=1)(group).save())


def step_of_another(bn: SyncBatchNorm, group: Group) -> None:
    bn(ones(group, 3, 4, 2, 2))
    bn.backward(ones(group, 2, 4, 2, 2))


def bn_of(maps: int = 4, kind: Any = BatchNorm2D, **options: Any) -> Callable[[Group], Any]:
    return lambda group: kind(maps, queue=group.queues[0], **options)


LONG = "\N{LATIN SMALL LETTER E WITH ACUTE}" * 100_000
MANY = tuple(f"number {index} of many layers" for index in range(400))

WRONGS = [
    Wrong("channels", train(shape=((3, 4, 4), (3, 5, 4)))),
    Wrong("type", train(dtype=(np.float32, np.float64))),
    Wrong("half beside float32", train(dtype=(np.float32, np.float16))),
    Wrong("bfloat16 beside half", train(dtype=(np.float16, ml_dtypes.bfloat16))),
    Wrong("integers", train(dtype=(np.float16, np.int16))),
    Wrong("axis", train(axis=(1, 2))),
    Wrong("axes", train(shape=((3, 4, 4), (3, 4, 4, 1)))),
    Wrong("epsilon", train(epsilon=(1e-5, 1e-3))),
    Wrong("epsilon in its last place", train(epsilon=(1e-5, float(np.nextafter(1e-5, 1))))),
    Wrong("factor", train(factor=(0.1, 0.1 + 1e-12))),
    Wrong("init_factor", train(init_factor=(1.0, 0.5))),
    Wrong("guard", train(guard=(True, False))),
    Wrong("moving statistics", train(moving=(True, False))),
    Wrong("layer", train(layer=("one", "other"))),
    Wrong("no layer", train(layer=("one", None))),
    Wrong("shards of none", train(shape=((3, 4, 4), (0, 5, 4)))),
    Wrong("order of layers", either(layers("a", "b"), layers("b", "a"))),
    Wrong("how many are batched", either(layers("a", "b"), layers("a", "b", "c"))),
    Wrong("one of many layers", either(layers(*MANY), layers(*MANY[:-1], "number 399 of some other"))),
    Wrong("train beside sum", either(lambda g: g.train(ones(g, 3, 4)), lambda g: g.sum(ones(g, 3, 4)))),
    Wrong("sum beside merge", either(lambda g: g.sum(ones(g, 4)), lambda g: g.merge(statistics(ones(g, 3, 4))))),
    Wrong("agree beside sum", either(lambda g: g.agree("what", b"1234"), lambda g: g.sum(np.ones(1, np.float32)))),
    Wrong("train beside backward", either(lambda g: layers("a")(g) or layers("b")(g), lambda g: backward()(g, False))),
    Wrong("words", either(lambda g: g.agree("one"), lambda g: g.agree("other"))),
    Wrong("length", either(lambda g: g.agree("one", b"12"), lambda g: g.agree("one", b"1" * 5000))),
    Wrong("shape of a sum", either(lambda g: g.sum(ones(g, 4, 3)), lambda g: g.sum(ones(g, 3, 4)))),
    Wrong("type of a sum", either(lambda g: g.sum(np.ones(2)), lambda g: g.sum(np.ones(4, np.float32)))),
    Wrong("channels of statistics", either(*(lambda g, c=c: g.merge(statistics(ones(g, 3, c))) for c in (4, 5)))),
    Wrong("grad_scale", backward(grad_scale=(1.0, 2.0))),
    Wrong("grad_momentum", backward(grad_momentum=(0.9, 0.9 + 1e-13))),
    Wrong("parameters", backward(parameters=("whole", "own"))),
    Wrong("gathering", backward(gathering=(True, False))),
    Wrong("backward of another batch", backward(rows=(3, 2)), "ParameterError: .* shards have .* in all"),
    # raised on one rank, before its exchange
    Wrong("no array", train(shape=((3, 4), (3, 4)), out=(None, 5))),
    Wrong("no shard", either(lambda g: g.train(ones(g, 3, 4)), lambda g: g.train(None))),
    Wrong("a NumPy array", either(lambda g: g.train(ones(g, 3, 4)), lambda g: g.train(np.ones((3, 4))))),
    Wrong("a foreign array", either(lambda g: g.train(ones(g, 3, 4)), lambda g: g.train(foreign(g)))),
    Wrong("scale of another length", train(scale=(None, np.ones(3)))),
    Wrong("no epsilon", train(epsilon=(1e-5, -1.0))),
    Wrong("no axis", train(axis=(1, 7))),
    Wrong("no layer's name", train(layer=(None, 3))),
    Wrong("no number", backward(grad_scale=(1.0, float("nan")))),
    Wrong(
        "no gradient",
        either(lambda g: backward()(g, False), without_gradient),
    ),
    Wrong("no statistics", either(lambda g: g.merge(statistics(ones(g, 3, 4))), lambda g: g.merge(7))),
    Wrong("integers to sum", either(lambda g: g.sum(np.ones(2)), lambda g: g.sum(np.ones(2, int)))),
    Wrong("a block that fails", either(layers("a", "b"), fails(ZeroDivisionError("the block is wrong")))),
    Wrong("a long story", either(layers("a"), fails(ValueError(LONG)))),
    Wrong("words that are no text", either(layers("a"), fails(ValueError("\udc80 is no text")))),
    Wrong("out of a with", either(in_with, leaves)),
    Wrong("closing too early", either(lambda g: g.train(ones(g, 3, 4)), lambda g: g.close())),
    Wrong("two threads", by_a_thread, None),
    # modules
    Wrong("no module", module(bn_of(), lambda g: 5)),
    Wrong("a module of other maps", module(bn_of(), bn_of(5))),
    Wrong("a module of another kind", module(bn_of(), bn_of(kind=BatchNorm))),
    Wrong("a module of another epsilon", module(bn_of(), bn_of(epsilon=1e-3))),
    Wrong("a module of another type", module(bn_of(), bn_of(dtype=np.float64))),
    Wrong("a module of bfloat16 beside half", module(bn_of(dtype="float16"), bn_of(dtype="bfloat16"))),
    Wrong("a module of another name", module(bn_of(name="one"), bn_of(name="other"))),
    Wrong("a module without affine", module(bn_of(), bn_of(affine=False))),
    Wrong("a module with other parameters", module(bn_of(), bn_of(), parameters=("whole", "own"))),
    Wrong("a module with no parameters", module(bn_of(), bn_of(), parameters=("whole", "some"))),
    Wrong("data of another shape", called(step, lambda bn, g: bn(ones(g, 3, 5, 2, 2)))),
    Wrong("a gradient of another shape", called(step, step_of_another)),
    Wrong(
        "a gradient before data",
        called(first, lambda bn, g: bn.backward(ones(g, 3, 4))),
    ),
    Wrong("a file that is missing", called(saved, lambda bn, g: bn.load("nowhere.hdf"))),
    Wrong(
        "another file", called(saved, lambda bn, g: bn.load(bn_of(seed=1)(g).save())), r"ranks \[{bad}\] have loaded"
    ),
]


def made(network: Any, **wrong: Any) -> Do:
    """A group, which one rank makes wrong."""

    def do(group: Group, bad: bool) -> None:
        queue = group.queues[0]
        given = {name: value(queue) if callable(value) else value for name, value in wrong.items()} if bad else {}
        network.group(**{"queues": queue, "timeout": 20.0} | given).close()

    return do


def making(network: Any) -> list[Wrong]:
    return [
        Wrong("a queue twice", made(network, queues=lambda queue: [queue, queue])),
        Wrong("no queues", made(network, queues=lambda queue: [])),
        Wrong("no queue", made(network, queues=lambda queue: 7)),
        Wrong("no timeout", made(network, timeout=-1.0)),
    ]


def wrongs(network: Any) -> list[dict[str, Any]]:
    """What this rank was told in each case, by which rank it was, how long it took, and whether the group went on."""
    told = []
    group = network.group(timeout=20.0)
    for number, wrong in enumerate([*WRONGS, *making(network)]):
        bad = number % network.size
        begun, said, trace = time.monotonic(), "", ""
        try:
            wrong.do(group, network.rank == bad)
        except Exception as error:
            notes = getattr(error, "__notes__", [])
            said, trace = f"{type(error).__name__}: {error}", traceback.format_exc(limit=-3) + "".join(notes)
        seconds = time.monotonic() - begun
        network.all(True)
        goes_on = False
        try:
            goes_on = float(group.sum(np.ones(1, np.float32))[0]) == network.size
        except OclbnError as error:
            trace += f"\nthen: {error}"
        if not network.all(goes_on):
            group = network.group(timeout=20.0)
        wanted = wrong.told and wrong.told.replace("{bad}", str(bad))
        told.append(
            {"name": wrong.name, "bad": bad, "wanted": wanted, "said": said[:3000], "seconds": seconds}
            | {"goes on": goes_on, "trace": trace[-1500:]}
        )
    group.close()
    return told
