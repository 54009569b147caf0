"""The peers by name: what each is, how its process is set up, and what to install."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# glibc keeps what is freed instead of giving it back to the system, so that results find memory that was there before.
_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}


@dataclass(frozen=True)
class Kind:
    """A peer that can be timed."""

    name: str
    file: Path  # with the class Peer of contract.py
    install: str  # what pip is to install
    about: str = ""
    preallocated: dict[str, str] = field(default_factory=dict)  # environment of the process for such outputs
    one_platform: bool = False  # sees the OpenCL platform of the device alone


def _kind(name: str, install: str, about: str, *, kept: dict[str, str] | None = None, one: bool = False) -> Kind:
    return Kind(name, _HERE / f"{name.replace('-', '_')}_peer.py", install, about, kept or {}, one)


PEERS = {
    kind.name: kind
    for kind in (
        _kind("torch", "torch", "PyTorch's CPU kernels; preallocated: malloc keeps its memory", kept=_KEEP_MEMORY),
        _kind(
            "torch-compiled", "torch", "PyTorch's, through torch.compile; it wants a C++ compiler", kept=_KEEP_MEMORY
        ),
        _kind("numpy", "numpy", "on one thread"),
        _kind("pyopencl", "pyopencl mako", "reduction and elementwise kernels composed, on the same device"),
        _kind("tinygrad", "tinygrad", "its OpenCL backend, on the same device; preallocated outputs only", one=True),
        _kind("onnxruntime", "onnxruntime onnx", "its CPU provider; inference only"),
        _kind("onednn", "onednn-cpu-gomp", "in the tensor's own layout"),
        _kind("onednn-blocked", "onednn-cpu-gomp", "with 16 channels side by side"),
    )
}
