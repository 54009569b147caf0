"""What one rank of a job does: `python ranks.py NETWORK ACTION FOLDER`, started once for each rank; it leaves files.

NETWORK: mpi, of the job that mpiexec started; torch, of the job that RANK, WORLD_SIZE and MASTER_PORT tell of.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # before a platform is looked at
    from own_cache import own_cache

    os.environ["POCL_CACHE_DIR"] = str(own_cache(os.environ.get("PMI_RANK") or os.environ.get("RANK", "")))
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyopencl as cl
import pyopencl.array as cla
from spread import cut, lengths_of, queues_on, trained

import oclbn
from oclbn import BatchNorm2D, device
from oclbn.elements import dtype_of
from oclbn.errors import GroupError, OclbnError
from oclbn.functional import statistics
from oclbn.sync import Group, SyncBatchNorm
from oclbn.truth.hostile import MAKERS, Data, Offset, make

# name -> shape, axis, dtype, data, how it is cut
COMPARISONS: dict[str, tuple[tuple[int, ...], int, str, str, str]] = {
    "even": ((13, 5, 6, 7), 1, "float32", "N(0,1)", "even"),
    "far": ((13, 5, 6, 7), 1, "float32", "mean is 1e6 std", "one each, and the rest"),
    "far float64": ((13, 5, 6, 7), 1, "float64", "mean is 1e6 std", "one each, and the rest"),
    "one value each": ((5, 7), 1, "float32", "mean is 1e6 std", "even"),
    "empty ranks": ((13, 5, 6, 7), 1, "float32", "mean is 1e4 std", "all on the last"),
    "empty between": ((13, 5, 6, 7), 1, "float32", "trend along the batch", "empty between"),
    "NaN": ((13, 5, 6, 7), 1, "float32", "one NaN", "even"),
    "inf": ((13, 5, 6, 7), 1, "float32", "one inf", "one each, and the rest"),
    "large": ((13, 5, 6, 7), 1, "float32", "squares near the largest number", "even"),
    "constant": ((13, 5, 6, 7), 1, "float32", "constant channels", "even"),
    "channels last": ((13, 6, 7, 20), -1, "float32", "mean is 1e6 std of 1e-3", "even"),
    "many channels": ((9, 4097), 1, "float32", "mean is 1e2 std", "even"),
    "one channel": ((9, 1, 31), 1, "float64", "first row is an outlier", "even"),
    "half": ((13, 5, 6, 7), 1, "float16", "near 40,000", "one each, and the rest"),
    "half with inf": ((13, 5, 6, 7), 1, "float16", "one inf", "even"),
    "bfloat16": ((13, 5, 6, 7), 1, "bfloat16", "mean is 1e2 std", "one each, and the rest"),
    "bfloat16 as columns": ((13, 20), 1, "bfloat16", "N(0,1)", "empty between"),
}
OWN_DATA = {"near 40,000": Offset(1e2, std=400.0)}  # whose squares float16 does not hold


def host_of(name: str) -> Data:
    shape, axis, dtype, data, _ = COMPARISONS[name]
    return make(shape, axis, dtype_of(dtype), (MAKERS | OWN_DATA)[data])


def places_of(size: int) -> list[int]:
    """How many queues each rank has: the first one two."""
    return [2] + [1] * (size - 1)


def lengths_for(name: str, size: int) -> list[list[int]]:
    """Of each rank, how many samples each of its queues has."""
    shape, _, _, _, how = COMPARISONS[name]
    places = places_of(size)
    lengths = lengths_of(shape[0], sum(places), how)
    return [lengths[sum(places[:rank]) : sum(places[: rank + 1])] for rank in range(size)]


class Network:
    """The job's, and the group over it."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "mpi":
            from mpi4py import MPI

            self.rank, self.size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
        else:
            import torch.distributed as dist

            dist.init_process_group("gloo")
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def group(self, queues: Any = None, timeout: float = 60.0) -> Group:
        if self.name == "mpi":
            from mpi4py import MPI

            return oclbn.sync.MPIGroup(MPI.COMM_WORLD, queues, timeout=timeout)
        return oclbn.sync.TorchGroup(None, queues, timeout=timeout)

    def all(self, well: bool) -> bool:
        """Whether it is so on all ranks."""
        if self.name == "mpi":
            from mpi4py import MPI

            return bool(MPI.COMM_WORLD.allreduce(well, MPI.LAND))
        import torch
        import torch.distributed as dist

        counted = torch.tensor([int(well)])
        dist.all_reduce(counted, dist.ReduceOp.MIN)
        return bool(counted[0])

    def leave(self) -> None:
        if self.name == "torch":
            import torch.distributed as dist

            dist.destroy_process_group()


def queues_of(network: Network) -> list[cl.CommandQueue]:
    first = device.default_queue()
    count = places_of(network.size)[network.rank]
    return [first, *queues_on(*[first.device] * (count - 1))]


def same(network: Network, folder: Path) -> None:
    """Every comparison, its results in a file of this rank's; then a module's."""
    queues = queues_of(network)
    told = {}
    with network.group(queues) as group:
        for name, (_, axis, *_) in COMPARISONS.items():
            host, lengths = host_of(name), lengths_for(name, network.size)
            start = sum(map(sum, lengths[: network.rank]))
            mine = slice(start, start + sum(lengths[network.rank]))
            own = replace(host, x=host.x[mine], dy=host.dy[mine])
            for result, arrays in trained(group, own, lengths[network.rank], axis).items():
                told |= {f"{name}|{result}|{index}": array for index, array in enumerate(arrays)}
        told |= module(network, group, folder)
    np.savez(folder / f"{network.rank}.npz", **told)


def module_host(step: int) -> Data:
    return make((11, 5, 3, 4), 1, maker=MAKERS["mean is 1e2 std"], seed=step)


def module(network: Network, group: Group, folder: Path) -> dict[str, np.ndarray]:
    """A loop of training over ranks; what a file carries from one to all; a pass of recalibration."""
    queues = group.queues
    places = places_of(network.size)
    lengths = lengths_of(11, sum(places), "even")
    first = sum(places[: network.rank])
    mine = slice(first, first + len(queues))

    def shards(host: np.ndarray) -> list[cla.Array]:
        return [cla.to_device(q, part) for q, part in zip(queues, cut(host, lengths)[mine], strict=True)]

    bn = SyncBatchNorm(BatchNorm2D(5, seed=network.rank, queue=queues[0]), group)  # rank 0's values count
    told: dict[str, np.ndarray] = {"module|start|0": bn.module.scale.get()}
    for step in range(4):
        host = module_host(step)
        bn(shards(host.x))
        bn.backward(shards(host.dy), scale=0.5, momentum=0.9)
        bn.updateParams(-0.1)
    for index, one in enumerate(bn.modules):
        for name in ("scale", "bias", "mean", "var"):
            told[f"module|{name}|{index}"] = getattr(one, name).get()
        for name, var in one.vars.items():
            told[f"module|{name}.grad|{index}"] = var.grad.get()
    own = SyncBatchNorm(bn.module, group, parameters="own")
    own.zeroGradParams()
    host = module_host(9)
    own(shards(host.x))
    own.backward(shards(host.dy))
    gradients = np.stack([own.module.vars[name].grad.get().ravel() for name in ("scale", "bias")])
    told["module|own, summed|0"] = group.sum([gradients] + [0 * gradients] * (len(queues) - 1))[0]
    whole = SyncBatchNorm(bn.module, group)
    whole.zeroGradParams()
    whole(shards(host.x))
    whole.backward(shards(host.dy))
    told["module|whole|0"] = np.stack([whole.module.vars[name].grad.get().ravel() for name in ("scale", "bias")])
    if network.rank == 0:
        bn.save(folder / "bn.hdf")
    group.agree("saved")
    other = SyncBatchNorm(BatchNorm2D(5, seed=7, queue=queues[0]), group)
    other.load(folder / "bn.hdf")
    told |= {f"module|loaded {name}|0": getattr(other.module, name).get() for name in ("scale", "mean", "var")}
    passed = [[statistics(x) for x in shards(module_host(step).x)] for step in range(3)]
    merged = [oclbn.functional.merge(*each) for each in zip(*passed, strict=True)]
    found = group.merge(merged)
    told |= {f"module|pass {name}|0": getattr(found[0], name).get() for name in ("mean", "m2")}
    return told


def lost(network: Network, folder: Path, gone: Callable[[], None]) -> None:
    """The last rank is gone; what the others are told, and after how long."""
    group = network.group(timeout=3.0)
    x = cla.to_device(group.queues[0], np.ones((2, 3), np.float32))
    group.train(x)
    if network.rank == network.size - 1:
        gone()
    begun = time.monotonic()
    said = {}
    for attempt in ("first", "again"):
        try:
            group.train(x)
        except GroupError as error:
            said[attempt] = f"{type(error).__name__}: {error}"
    said["seconds"] = time.monotonic() - begun
    (folder / f"{network.rank}.json").write_text(json.dumps(said))
    if network.name == "torch":
        time.sleep(2)  # rank 0 has the store by which the others ask


def ends(network: Network) -> None:
    """The last rank is gone, and the others ask one after the other; none catches what it is told."""
    group = network.group(timeout=2.0)
    x = cla.to_device(group.queues[0], np.ones((2, 3), np.float32))
    group.train(x)
    if network.rank == network.size - 1:
        os._exit(3)
    time.sleep(0.4 * network.rank)
    print(f"rank {network.rank} has something to say")  # which is in no file yet
    group.train(x)


def communicators(network: Network) -> dict[str, Any]:
    """What is said of communicators that are none, on all ranks, and last on one."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    freed, kept = world.Dup(), world.Dup()
    freed.Free()
    inter = MPI.COMM_SELF.Create_intercomm(0, world, 1 - world.rank)
    said: dict[str, Any] = {}
    alone = kept if world.rank == 0 else MPI.COMM_NULL
    wrong = {"none": 5, "null": MPI.COMM_NULL, "freed": freed, "inter": inter, "alone": alone}
    for name, comm in wrong.items():
        try:
            oclbn.sync.MPIGroup(comm, timeout=1.0)
        except OclbnError as error:
            said[name] = f"{type(error).__name__}: {error}"
    with oclbn.sync.MPIGroup(world.Split(world.rank)) as group:
        said["part"] = [group.size, group.rank]
    return said


def main() -> None:
    name, action, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    network = Network(name)
    if action == "same":
        same(network, folder)
    elif action == "faults":
        from wrongs import wrongs

        (folder / f"{network.rank}.json").write_text(json.dumps(wrongs(network)))
    elif action == "communicators":
        (folder / f"{network.rank}.json").write_text(json.dumps(communicators(network)))
    elif action == "ends":
        ends(network)
    elif action == "dies":
        lost(network, folder, lambda: os._exit(3))
    else:
        assert action == "sleeps"
        lost(network, folder, lambda: time.sleep(8))
    if action not in ("dies", "sleeps", "ends"):
        network.all(True)  # none ends the job before all have written
        network.leave()


if __name__ == "__main__":
    main()
