"""Train with whole batches, with shards on two devices and with shards on four ranks of MPI, and compare the losses.

    python compare.py --plot losses.png

The exit status is 1 where losses of cut batches are not those of whole ones, or where the network does not learn.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from shutil import which

import numpy as np
from train import EPOCHS, queues_on, summary, train

import oclbn.device
from oclbn.sync import DeviceGroup

RANKS, TOLERANCE = 4, 1e-5
# One thread for each rank, not bound to a core: the ranks share the cores of one machine.
ONE_THREAD = {"POCL_MAX_PTHREAD_COUNT": "1", "OPENBLAS_NUM_THREADS": "1"}


def two_devices():
    """The default one and another, or the same once more."""
    first = oclbn.device.select()
    others = [one for one in oclbn.device.devices() if one.spec != first.spec and not one.simulator]
    return [first.spec, (others or [first])[0].spec]


def train_on_ranks(spec):
    """By train.py in processes of their own: the losses, the accuracy, and those of ranks that do not synchronise."""
    mpiexec = which("mpiexec", path=sysconfig.get_path("scripts")) or which("mpiexec")
    if mpiexec is None:
        sys.exit("there is no mpiexec: pip install 'oclbn[mpi]' brings one")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "runs.npz"
        command = [mpiexec, "-n", str(RANKS), sys.executable, Path(__file__).with_name("train.py")]
        command += ["--mpi", "--alone", "--device", spec, "--save", file]
        subprocess.run(command, env=os.environ | ONE_THREAD, check=True, stdout=sys.stderr)
        with np.load(file) as runs:
            return [(runs[name][:-1], runs[name][-1]) for name in ("together", "alone")]


def plot(runs, file):
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 7), height_ratios=(3, 2), layout="constrained")
    (whole, _), *cut = runs.values()
    steps = np.arange(1, len(whole) + 1)
    looks = [{"lw": 7, "color": "0.8"}, {"lw": 3.5, "color": "tab:orange"}, {"lw": 1.2, "color": "tab:blue"}]
    looks.append({"lw": 1.2, "color": "tab:red", "ls": ":"})
    for (name, (losses, _)), look in zip(runs.items(), looks, strict=True):
        above.plot(steps, losses, label=name, **look)
    for (losses, _), look in zip(cut, looks[1:], strict=True):
        # what does not differ at all is drawn at the lower edge
        below.plot(steps, np.maximum(np.abs(losses - whole), 1e-9), **look | {"marker": ".", "ls": ""})
    above.set(yscale="log", ylabel="loss", title="Batches of 64 digits, whole, as 8 + 56 and as 1 + 7 + 19 + 37")
    above.legend()
    below.axhline(np.finfo(np.float32).eps, color="0.5", lw=0.8, ls="--")
    below.set(yscale="log", ylim=(8e-10, 1), xlabel="step", ylabel="difference from whole batches\n(none: 1e-9)")
    below.text(1, 1.3e-7, "float32's last digit of 1", color="0.4", va="bottom")
    for epoch in range(1, EPOCHS):
        for axes in above, below:
            axes.axvline(epoch * len(whole) / EPOCHS + 0.5, color="0.9", zorder=0)
    figure.savefig(file, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", action="append", help="P:D or a name; twice; by default the first two that are there"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="a picture of the losses and of their differences")
    given = parser.parse_args()
    specs = given.device or two_devices()

    runs = {}
    for name, own in ("whole batches", specs[:1]), ("two devices", specs):
        group = DeviceGroup(queues_on(own))
        print(group, file=sys.stderr)
        runs[name] = train(group, group)
    runs[f"{RANKS} ranks"], runs[f"{RANKS} ranks, each alone"] = train_on_ranks(specs[0])

    (whole, accuracy), *cut = runs.values()
    differences = [np.abs(losses - whole).max() for losses, _ in cut]
    for name, run in runs.items():
        print(f"{name + ':':20} {summary(*run)}")
    off = max(differences[:-1])
    same = off < TOLERANCE
    print(f"losses as with whole batches, to {TOLERANCE:g}: {'yes' if same else f'no, off by {off:.2g}'}")
    print(f"without synchronisation they are off by {differences[-1]:.2f}")
    if given.plot:
        plot(runs, given.plot)
    return 0 if same and accuracy > 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
