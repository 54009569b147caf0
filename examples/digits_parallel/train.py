"""Train the network on scikit-learn's handwritten digits, each batch cut into shards of very different sizes.

    python train.py                                one device, whole batches
    python train.py --device 0:0 --device 1:0      one process, a shard for each device
    mpiexec -n 4 python train.py --mpi             a shard for each rank

However a batch is cut, it is normalised by the statistics of all of it, and the losses are the same.
"""

import argparse
import sys
from itertools import pairwise

import numpy as np
import pyopencl as cl
from network import Network
from sklearn.datasets import load_digits

import oclbn.device
from oclbn.sync import DeviceGroup, MPIGroup

EPOCHS, BATCH, RATE = 3, 64, 0.1
_kept = []  # contexts, which not every driver's queues keep alive


def queues_on(specs):
    """A queue for each device, in a context of its own: so one device given twice counts as two."""
    contexts = [cl.Context([oclbn.device.select(spec).device]) for spec in specs]
    _kept.extend(contexts)
    return [cl.CommandQueue(context) for context in contexts]


def own_shards(indices, group):
    """Those of this process, one for each queue: 64 in 4 are cut into 1, 7, 19 and 37, 29 into 0, 3, 9 and 17."""
    here, parts = len(group.queues), group.size * len(group.queues)
    ends = len(indices) * np.arange(parts + 1) ** 3 // parts**3
    return [indices[begin:end] for begin, end in pairwise(ends[group.rank * here :][: here + 1])]


def train(group, norms):
    """The loss of each step, and the accuracy on images that the network has not seen; the same on all ranks."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    net, rng, losses = Network(group, norms), np.random.default_rng(1), []
    test = np.arange(len(images)) % 5 == 0
    for _ in range(EPOCHS):
        order = rng.permutation(np.flatnonzero(~test))  # the same on all ranks
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            shards = own_shards(batch, group)
            losses.append(net.step([images[one] for one in shards], [labels[one] for one in shards], len(batch), RATE))

    for layer in net.norms:
        layer.bn.evalMode()
    shards = own_shards(np.flatnonzero(test), group)
    scores = net.forward([images[one] for one in shards])
    right = [np.float32([np.sum(one.argmax(1) == labels[shard])]) for one, shard in zip(scores, shards, strict=True)]
    return np.array(losses), group.sum(right)[0].item() / test.sum()


def summary(losses, accuracy):
    last = losses[-len(losses) // EPOCHS :].mean()
    return f"loss {losses[0]:.2f}, in the last epoch {last:.2f}, accuracy {accuracy:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="append", help="P:D or a name; again for a further one, or for it once more")
    parser.add_argument("--mpi", action="store_true", help="this is one of the ranks that mpiexec has started")
    parser.add_argument(
        "--alone", action="store_true", help="then once more, each process normalising by its own shards"
    )
    parser.add_argument("--save", metavar="FILE.npz", help="for the losses and the accuracy")
    given = parser.parse_args()

    queues = queues_on(given.device or [None])
    if given.mpi:
        from mpi4py import MPI

        group = MPIGroup(MPI.COMM_WORLD, queues, timeout=60)
    else:
        group = DeviceGroup(queues)
    if group.rank == 0:
        print(group, file=sys.stderr)  # which devices they are
    with group:  # the other ranks hear of it if this one fails
        runs = {"together": train(group, group)}
        if given.alone:
            runs["alone"] = train(group, DeviceGroup(queues))
    if group.rank == 0:
        for name, run in runs.items():
            print(f"{name}: {summary(*run)}")
        if given.save:
            np.savez(given.save, **{name: [*losses, accuracy] for name, (losses, accuracy) in runs.items()})


if __name__ == "__main__":
    main()
