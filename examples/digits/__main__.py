"""Train a small residual network on scikit-learn's handwritten digits, forward and backward on an OpenCL device.

    python examples/digits --compare --plot curves.png

Exit status 1: the accuracy on images that it has not seen is less than --least.
"""

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from train import Digits, train

import oclbn.device
from kernels import Kernels, pyclblast
from oclbn.errors import OclbnError


def options():
    parser = argparse.ArgumentParser(
        prog="python examples/digits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", metavar="SPEC", help="one that `oclbn devices` lists: an index, a name or a type")
    parser.add_argument("--epochs", type=int, default=15, help="how often each image is trained on (15)")
    parser.add_argument("--rate", type=float, default=0.1, help="of the first step; it falls to 0 (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts of the images (0)")
    parser.add_argument("--least", type=float, default=0.98, metavar="ACCURACY", help="that is wanted (0.98)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of losses and accuracies by epoch")
    parser.add_argument("--own-matmul", action="store_true", help="kernels.cl's products though pyclblast is there")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--without-batch-norm", action="store_true", help="the same network and no normalization")
    which.add_argument("--compare", action="store_true", help="with batch norm, then without")
    given = parser.parse_args()
    if given.epochs < 1:
        parser.error(f"--epochs is {given.epochs}; 1 or more are wanted")
    if given.plot and (given.plot.suffix != ".png" or not given.plot.absolute().parent.is_dir()):
        parser.error(f"--plot is {given.plot}; a .png file in a folder that is there is wanted")
    return given


def run(name, digits, given, console):
    """A list of Epochs, by the seconds that they took; meanwhile a bar on a terminal, elsewhere a line for each."""
    steps = TextColumn("{task.fields[told]}")
    bar = Progress(TextColumn(name), BarColumn(), steps, TimeElapsedColumn(), console=console, transient=True)
    epochs, begin = [], time.perf_counter()
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task(name, total=given.epochs, told="")
        for epoch in train(digits, given.epochs, given.rate, given.seed, name == "with batch norm"):
            epochs.append(epoch)
            told = f"epoch {len(epochs)} of {given.epochs}: loss {epoch.loss:.2f}, accuracy {epoch.accuracy:.3f}"
            if console.is_terminal:
                bar.update(task, advance=1, told=told)
            else:
                print(f"{name}, {told}", flush=True)
    return epochs, time.perf_counter() - begin


def main():
    given = options()
    try:
        queue = oclbn.device.queue_for(given.device)
    except OclbnError as error:  # there is no such device; which there are is in the message
        sys.exit(str(error))
    kernels = Kernels(queue, clblast=pyclblast is not None and not given.own_matmul)
    device = queue.device.name.strip()
    print(f"{device}, matrix products by {'CLBlast' if kernels.clblast else 'kernels.cl'}", file=sys.stderr)

    names = ["without batch norm"] if given.without_batch_norm else ["with batch norm"]
    names += ["without batch norm"] * given.compare
    digits, console, runs = Digits(kernels), Console(highlight=False), {}
    for name in names:
        runs[name], seconds = run(name, digits, given, console)
        last, unseen = runs[name][-1], len(digits.test_labels)
        told = f"loss {last.loss:.2f}, accuracy {last.accuracy:.3f} on {unseen} images that it has not seen"
        console.print(f"{name}: {told}, {seconds:.0f} s", soft_wrap=True)
    if given.plot:
        from curves import draw

        draw(runs, f"Digits, rate {given.rate:g}, seed {given.seed}, on {device}", given.plot)
    return 0 if runs[names[0]][-1].accuracy >= given.least else 1


if __name__ == "__main__":
    sys.exit(main())
