"""Batch normalizations of an ONNX model, folded: into the convolution before them, or to a product and a sum."""

from collections import Counter

import onnx
from onnx import helper, numpy_helper


def fold(model, nodes, modules, spatial):
    """A copy of the model without these nodes, and how many of them went into a convolution.

    modules: what each node is in oclbn. spatial: how many axes its tensor has after (N, C).
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    held |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input) + Counter(end.name for end in graph.output)
    merged = 0

    def constant(name, array):
        graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    for number, (old, bn, axes) in enumerate(zip(nodes, modules, spatial, strict=True)):
        node, x = makers[old.output[0]], old.input[0]
        before = makers.get(x)
        if before is not None and before.op_type == "Conv" and uses[x] == 1 and before.input[1] in held:
            bias = numpy_helper.to_array(held[before.input[2]]) if len(before.input) > 2 else None
            arrays = bn.fold_into(numpy_helper.to_array(held[before.input[1]]), bias)
            del before.input[1:]
            before.input.extend(constant(f"folded{number}.{end}", one) for end, one in zip("wb", arrays, strict=True))
            before.output[0] = node.output[0]
            merged += 1
        else:
            arrays = (one.reshape(-1, *[1] * axes) for one in bn.fold())
            a, b = (constant(f"folded{number}.{end}", one) for end, one in zip("ab", arrays, strict=True))
            place = list(graph.node).index(node)
            graph.node.insert(place, helper.make_node("Mul", [x, a], [f"folded{number}"]))
            graph.node.insert(place + 1, helper.make_node("Add", [f"folded{number}", b], [node.output[0]]))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for node in [one for one in graph.node if one.op_type == "Constant" and one.output[0] not in read]:
        graph.node.remove(node)
    for tensor in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(tensor)
    return folded, merged
