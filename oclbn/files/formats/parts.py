"""Batch normalizations among named arrays: which names belong to one layer, and what each of them is.

For formats that are a dictionary of arrays: a state_dict of PyTorch, .npz, .params of MXNet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

_BETWEEN = "./"


@dataclass(frozen=True)
class Names:
    """What a framework calls the arrays of a layer; batches: its counter."""

    convention: str
    scale: str
    bias: str
    mean: str
    var: str
    batches: str = ""

    def roles(self) -> dict[str, str]:
        """The name of each role that there is one of."""
        roles = {"scale": self.scale, "bias": self.bias, "mean": self.mean, "var": self.var, "batches": self.batches}
        return {role: name for role, name in roles.items() if name}


KNOWN = (
    Names("pytorch", "weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    Names("mxnet", "gamma", "beta", "running_mean", "running_var"),
    Names("mxnet", "gamma", "beta", "moving_mean", "moving_var"),
    Names("keras", "gamma", "beta", "moving_mean", "moving_variance"),
    Names("chainer", "gamma", "beta", "avg_mean", "avg_var"),  # its N counts batches of fine-tuning alone
    Names("paddle", "weight", "bias", "_mean", "_variance"),
)


@dataclass(frozen=True)
class Group:
    """The arrays of one layer: its name, what it is called after, and the whole name of each role that is there."""

    name: str
    names: Names
    arrays: Mapping[str, str]


def grouped(
    names: Iterable[str], known: Collection[Names] = KNOWN, between: str = _BETWEEN, joined: str = ""
) -> list[Group]:
    """The layers among these names, in the order of their first array: those that have a mean and a variance.

    Without running statistics a batch normalization cannot be told from other layers with a weight and a bias.
    between: letters that may part a layer's name from an array's. joined: a letter that may do so before the known
    names alone, as "_" in batchnorm0_running_mean, where it is part of names as well.
    """
    listed = list(names)
    prefixes: dict[str, dict[str, str]] = {}
    roles = sorted({role for one in known for role in one.roles().values()}, key=len, reverse=True)
    for name in listed:
        cut = max(map(name.rfind, between)) + 1
        if joined and name[cut:] not in roles:
            end = next((joined + role for role in roles if name.endswith(joined + role)), "")
            cut = len(name) - len(end) + len(joined) if end else cut
        prefixes.setdefault(name[:cut], {})[name[cut:]] = name
    found = []
    for prefix, there in prefixes.items():
        fitting = [one for one in known if one.mean in there and one.var in there]
        if fitting:  # the one with most of its names, as some share two
            best = max(fitting, key=lambda one: sum(name in there for name in one.roles().values()))
            arrays = {role: there[name] for role, name in best.roles().items() if name in there}
            found.append(Group(prefix.rstrip(between + joined), best, arrays))
    return found
