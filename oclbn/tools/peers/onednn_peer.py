"""oneDNN 3 through its C API, loaded with ctypes: no compiler is needed.

The library is the one that OCLBN_ONEDNN names, else that of an installed package onednn*, else what the system's loader
finds. The tensor lies as it is given (channels first or last). Fresh outputs: memory from NumPy for each result.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oclbn.tools.peers.contract import Case, Declined, Floats

_TRAINING, _INFERENCE, _BACKWARD = 64, 96, 128  # dnnl_prop_kind_t
_GIVEN_STATISTICS, _SCALE, _SHIFT, _RELU = 1, 2, 4, 8  # dnnl_normalization_flags_t
_WORKSPACE = 135  # dnnl_query_workspace_md
_FLOAT, _CPU, _IN_ORDER = 3, 1, 1  # of dnnl_data_type_t, dnnl_engine_kind_t, dnnl_stream_flags_t
_ARGUMENTS = {  # DNNL_ARG_*
    "x": 1,
    "y": 17,
    "mean": 49,
    "var": 50,
    "scale": 51,
    "bias": 52,
    "workspace": 64,
    "dx": 129,
    "dy": 145,
    "dscale": 255,
    "dbias": 256,
}
_AVX512 = 0x20  # the bit of dnnl_cpu_isa_t that all sets from AVX-512 on have
_LAST_TAG = 2000  # beyond oneDNN's last format tag


class _Argument(ctypes.Structure):
    _fields_ = (("index", ctypes.c_int), ("memory", ctypes.c_void_p))


class _Version(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("major", "minor", "patch"))


class _Library:
    """The C API: functions that make a handle return it; every status but success is a RuntimeError."""

    def __init__(self) -> None:
        self.dll = _load()
        self.dll.dnnl_version.restype = ctypes.POINTER(_Version)
        version = self.dll.dnnl_version().contents
        if version.major != 3:
            raise Declined(f"oneDNN 3 is wanted; the library found is {version.major}.{version.minor}")
        self.version = f"{version.major}.{version.minor}.{version.patch}"
        self.dll.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.dll.dnnl_fmt_tag2str.restype = ctypes.c_char_p

    def do(self, name: str, *arguments: Any) -> None:
        status = getattr(self.dll, f"dnnl_{name}")(*arguments)
        if status:
            raise RuntimeError(f"oneDNN's {name} returned status {status}")

    def make(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.do(name, ctypes.byref(handle), *arguments)
        return handle

    def tag(self, name: str) -> int:
        """A layout's number, by its name: numbers differ between versions."""
        wanted = name.encode()
        return next(number for number in range(_LAST_TAG) if self.dll.dnnl_fmt_tag2str(number) == wanted)


class Peer:
    """Threads: OpenMP's, as the parent sets OMP_NUM_THREADS."""

    blocked = False
    fuses = True

    def __init__(self, case: Case) -> None:
        if case.activation not in ("none", "relu") or case.residual is not None:
            raise Declined("oneDNN fuses relu alone, without a residual, on processors")
        self.library = library = _Library()
        self.version, self.case = library.version, case
        self.engine = library.make("engine_create", _CPU, ctypes.c_size_t(0))
        self.stream = library.make("stream_create", self.engine, _IN_ORDER)
        self.plain = self._strided(case.x)
        self.used = self._blocked() if self.blocked else self.plain
        self.size = library.dll.dnnl_memory_desc_get_size(self.used) // 4
        per_channel = (ctypes.c_int64 * 1)(case.scale.size)
        self.vector = library.make("memory_desc_create_with_strides", 1, per_channel, _FLOAT, (ctypes.c_int64 * 1)(1))
        self.arrays: dict[str, Floats] = {}
        self.memories: dict[str, ctypes.c_void_p] = {}
        for name in ("x", "dy"):
            self._put(name, self.used, self._ordered(getattr(case, name)))
        for name in ("scale", "bias", "dscale", "dbias"):
            self._put(name, self.vector, np.array(getattr(case, name, case.scale)))
        self.given = [self._memory(self.vector, array) for array in (case.mean, case.var)]
        self.saved = [np.zeros_like(case.mean), np.zeros_like(case.var)]
        self.saved_memory = [self._memory(self.vector, array) for array in self.saved]
        self.running = [case.mean.copy(), case.var.copy()]
        self.primitives = self._primitives()
        for name in ("y", "dx"):
            self._put(name, self.used, np.empty(self.size, np.float32))

    def _strided(self, like: Floats) -> ctypes.c_void_p:
        """Channels come second for oneDNN, wherever they lie."""
        front = np.moveaxis(like, self.case.axis, 1)
        strides = (ctypes.c_int64 * front.ndim)(*(stride // 4 for stride in front.strides))
        dims = (ctypes.c_int64 * front.ndim)(*front.shape)
        return self.library.make("memory_desc_create_with_strides", front.ndim, dims, _FLOAT, strides)

    def _blocked(self) -> ctypes.c_void_p:
        """As many channels side by side as the processor's vectors hold; the library pads their number.

        Other blocks than those of its vectors oneDNN walks element by element.
        """
        front = np.moveaxis(self.case.x, self.case.axis, 1)
        if not 3 <= front.ndim <= 5:
            raise Declined("oneDNN blocks tensors of 3 to 5 dimensions")
        width = 16 if self.library.dll.dnnl_get_effective_cpu_isa() & _AVX512 else 8
        tag = self.library.tag({3: "aBc", 4: "aBcd", 5: "aBcde"}[front.ndim] + f"{width}b")
        dims = (ctypes.c_int64 * front.ndim)(*front.shape)
        return self.library.make("memory_desc_create_with_tag", front.ndim, dims, _FLOAT, tag)

    def _primitives(self) -> dict[str, ctypes.c_void_p]:
        make, epsilon = self.library.make, ctypes.c_float(self.case.epsilon)
        affine, kind, pair = _SCALE | _SHIFT, "batch_normalization", (self.used, self.used)
        if self.case.activation == "relu":
            affine |= _RELU
        forward = make(f"{kind}_forward_primitive_desc_create", self.engine, _TRAINING, *pair, epsilon, affine, None)
        given = affine | _GIVEN_STATISTICS
        inference = make(f"{kind}_forward_primitive_desc_create", self.engine, _INFERENCE, *pair, epsilon, given, None)
        three = (*pair, self.used, epsilon, affine, forward, None)
        backward = make(f"{kind}_backward_primitive_desc_create", self.engine, _BACKWARD, *three)
        described = {"forward": forward, "inference": inference, "backward": backward}
        self.noted: dict[str, ctypes.c_void_p] = {}
        if self.case.activation == "relu":  # which elements it has cut off
            query = self.library.dll.dnnl_primitive_desc_query_md
            query.restype = ctypes.c_void_p
            workspace = ctypes.c_void_p(query(forward, _WORKSPACE, 0))
            size = self.library.dll.dnnl_memory_desc_get_size(workspace)
            self._notes = np.zeros(max(1, size // 4 + 1), np.float32)
            self.noted = {"workspace": self._memory(workspace, self._notes)}
        return {name: make("primitive_create", description) for name, description in described.items()}

    def call(self, operation: str) -> Callable[[], Any]:
        if operation == "backward":
            self.forward()
        steps = {"forward": (self.forward,), "backward": (self.backward,), "inference": (self.inference,)}
        chosen = {**steps, "both": (self.forward, self.backward)}[operation]
        return lambda: [step() for step in chosen]

    def forward(self) -> Floats:
        y = self._result("y")
        mean, var = self.saved_memory
        self._execute("forward", {"mean": mean, "var": var, **self.noted}, "x", "y", "scale", "bias")
        count, factor = self.case.count, np.float32(self.case.factor)
        batch = (self.saved[0], self.saved[1] * np.float32(count / max(count - 1, 1)))
        for running, new in zip(self.running, batch, strict=True):
            running += factor * (new - running)
        return y

    def inference(self) -> Floats:
        y = self._result("y")
        mean, var = self.given
        self._execute("inference", {"mean": mean, "var": var}, "x", "y", "scale", "bias")
        return y

    def backward(self) -> Floats:
        dx = self._result("dx")
        mean, var = self.saved_memory
        others = {"mean": mean, "var": var, **self.noted}
        self._execute("backward", others, "x", "dy", "dx", "scale", "dscale", "dbias")
        return dx

    def results(self, operation: str, returned: Any) -> dict[str, NDArray[Any]]:
        if operation in ("forward", "inference"):
            return {"y": self._plain_copy("y")}
        return {"dx": self._plain_copy("dx"), "dscale": self.arrays["dscale"], "dbias": self.arrays["dbias"]}

    def _result(self, name: str) -> Floats:
        """The array that a result goes into; it replaces the last one where outputs are fresh."""
        if self.case.outputs == "fresh":
            self.arrays[name] = array = np.empty(self.size, np.float32)
            self.library.do("memory_set_data_handle", self.memories[name], ctypes.c_void_p(array.ctypes.data))
        return self.arrays[name]

    def _execute(self, primitive: str, others: dict[str, ctypes.c_void_p], *names: str) -> None:
        memories = {**others, **{name: self.memories[name] for name in names}}
        self._run(self.primitives[primitive], {_ARGUMENTS[name]: memory for name, memory in memories.items()})

    def _run(self, primitive: ctypes.c_void_p, memories: dict[int, ctypes.c_void_p]) -> None:
        arguments = (_Argument * len(memories))(*(_Argument(index, memory) for index, memory in memories.items()))
        self.library.do("primitive_execute", primitive, self.stream, len(memories), arguments)
        self.library.do("stream_wait", self.stream)

    def _memory(self, description: ctypes.c_void_p, array: Floats) -> ctypes.c_void_p:
        return self.library.make("memory_create", description, self.engine, ctypes.c_void_p(array.ctypes.data))

    def _put(self, name: str, description: ctypes.c_void_p, array: Floats) -> None:
        self.arrays[name], self.memories[name] = array, self._memory(description, array)

    def _ordered(self, array: Floats) -> Floats:
        """A tensor's elements in the layout that is used."""
        if not self.blocked:
            return array
        made = np.empty(self.size, np.float32)
        self._reorder(self.plain, array, self.used, made)
        return made

    def _plain_copy(self, name: str) -> Floats:
        made = np.empty_like(self.case.x)
        self._reorder(self.used, self.arrays[name], self.plain, made)
        return made

    def _reorder(self, source: ctypes.c_void_p, read: Floats, target: ctypes.c_void_p, written: Floats) -> None:
        sides = (source, self.engine, target, self.engine)
        reorder = self.library.make(
            "primitive_create", self.library.make("reorder_primitive_desc_create", *sides, None)
        )
        memories = {_ARGUMENTS["x"]: self._memory(source, read), _ARGUMENTS["y"]: self._memory(target, written)}
        self._run(reorder, memories)


def _load() -> Any:
    named = os.environ.get("OCLBN_ONEDNN")
    found = [named] if named else [*_packaged(), ctypes.util.find_library("dnnl")]
    for path in filter(None, found):
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            raise Declined(f"oneDNN's library does not load: {error}") from error
    raise ModuleNotFoundError(name="onednn")


def _packaged() -> list[str]:
    """Libraries of installed packages whose name begins with onednn."""
    found = []
    for package in metadata.distributions():
        if (package.metadata["Name"] or "").lower().startswith("onednn"):
            files = [file for file in package.files or () if file.name.startswith("libdnnl.so")]
            found += [os.path.realpath(str(file.locate())) for file in files]
    return found
