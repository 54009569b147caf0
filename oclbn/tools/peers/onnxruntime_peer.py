"""ONNX Runtime's CPU provider: inference of a graph of one node.

Preallocated outputs: the result is bound to memory that is there; fresh: the runtime allocates it in each run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from oclbn.tools.peers.contract import Case, Declined


class Peer:
    """Inference, with channels on axis 1: what the operator defines."""

    def __init__(self, case: Case) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        self.version = str(runtime.__version__)
        if case.axis != 1:
            raise Declined("ONNX has channels on axis 1 only")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
        options.log_severity_level = 3
        session = runtime.InferenceSession(_model(case), options, providers=["CPUExecutionProvider"])
        self.binding = session.io_binding()
        self.x = runtime.OrtValue.ortvalue_from_numpy(case.x)
        self.binding.bind_ortvalue_input("x", self.x)
        if case.outputs == "preallocated":
            self.y = runtime.OrtValue.ortvalue_from_shape_and_type(case.x.shape, case.x.dtype.type)
            self.binding.bind_ortvalue_output("y", self.y)
        self.session, self.fresh = session, case.outputs == "fresh"

    def call(self, operation: str) -> Callable[[], Any]:
        if operation != "inference":
            raise Declined("ONNX Runtime is timed for inference only")
        return self.run

    def run(self) -> Any:
        if self.fresh:
            self.binding.clear_binding_outputs()  # which holds the last run's
            self.binding.bind_output("y", "cpu")
        self.session.run_with_iobinding(self.binding)

    def results(self, operation: str, returned: Any) -> dict[str, NDArray[Any]]:
        return {"y": self.binding.get_outputs()[0].numpy()}


def _model(case: Case) -> bytes:
    onnx: Any = importlib.import_module("onnx")
    names = ("scale", "bias", "mean", "var")
    tensors = [onnx.numpy_helper.from_array(getattr(case, name), name) for name in names]
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, case.x.shape) for name in ("x", "y")]
    node = onnx.helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=case.epsilon)
    graph = onnx.helper.make_graph([node], "normalise", sides[:1], sides[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized
