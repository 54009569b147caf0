"""The process of one peer: reads requests, a JSON object a line, from standard input and answers in the same way.

    python child.py PEER_FILE WHAT_PIP_INSTALLS

Requests, by "do": load (a case), prepare (an operation: calls it once), check (some channels of its results, to a
file), time (seconds of so many calls), unload; "with" has their arguments. An answer has "done", or "rejected" where
the peer cannot do it or failed, and "gone" where it never will. The process ends with its standard input. Whatever else
is printed goes to standard error. oclbn.tools.child is the other side; nothing of it is imported here.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_PACKAGE = "oclbn_peers"


class Server:
    """Answers requests about the peer in one module."""

    def __init__(self, file: Path, install: str) -> None:
        contract, self.module = _load(file)
        self.contract: Any = contract
        self.install = install
        self.peer: Any = None
        self.case: Any = None
        self.calls: dict[str, Any] = {}
        self.first: dict[str, Any] = {}

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        values = np.load(request["block"])
        shape, axis = tuple(request["shape"]), request["axis"]
        names = ("axis", "epsilon", "factor", "threads", "outputs", "dtype", "device")
        self.case = self.contract.Case(
            x=self.contract.tensor(values, shape, "x"),
            dy=self.contract.tensor(values, shape, "dy"),
            **self.contract.parameters(values, shape[axis]),
            residual=self.contract.tensor(values, shape, "residual") if request.get("residual") else None,
            activation=request.get("activation", "none"),
            **{name: request[name] for name in names},
        )
        if self.case.dtype not in (known := getattr(self.module.Peer, "types", ("float32",))):
            raise self.contract.Declined(f"{self.case.dtype} is not timed with it: {', '.join(known)} is")
        fused = self.case.activation != "none" or self.case.residual is not None
        if fused and not getattr(self.module.Peer, "fuses", False):
            raise self.contract.Declined("it is timed without activation and residual only")
        self.peer = self.module.Peer(self.case)
        return {"version": self.peer.version}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["operation"]
        self.calls[operation] = call = self.peer.call(operation)
        start = time.perf_counter()
        self.first[operation] = call()
        return {"seconds": time.perf_counter() - start}

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        operation, channels = request["operation"], request["channels"]
        found = self.peer.results(operation, self.first.pop(operation))
        axes = {name: self.case.axis if name in ("y", "dx", "dresidual") else 0 for name in found}
        np.savez(request["to"], **{name: np.take(array, channels, axis=axes[name]) for name, array in found.items()})
        return {"names": sorted(found)}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        call, seconds = self.calls[request["operation"]], []
        held = call() if request["warm"] else None
        for _ in range(request["calls"]):
            start = time.perf_counter()
            held = None  # giving back what was allocated costs the user as well
            held = call()
            seconds.append(time.perf_counter() - start)
        del held
        return {"seconds": seconds}

    def unload(self, request: dict[str, Any]) -> dict[str, Any]:
        self.peer = self.case = None
        self.calls.clear()
        self.first.clear()
        gc.collect()
        return {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        does = {"load": self.load, "prepare": self.prepare, "check": self.check, "time": self.time}
        does["unload"] = self.unload
        try:
            return {"done": does[request["do"]](request["with"])}
        except self.contract.Declined as answer_no:
            return {"rejected": str(answer_no)}
        except ModuleNotFoundError as missing:
            lost = f"{missing.name} is not installed for {sys.executable}"
            return {"rejected": f"{lost}: pip install {self.install}", "gone": True}
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            return {"rejected": f"{type(error).__name__}: {text[0][:200]}"}


def _load(file: Path) -> tuple[Any, Any]:
    """contract.py and the peer, as a package of their own: oclbn need not be there, and nothing else is shadowed."""
    package = importlib.util.module_from_spec(_spec(_PACKAGE, _HERE / "__init__.py", [str(_HERE)]))
    sys.modules[_PACKAGE] = package
    spec = _spec(f"{_PACKAGE}.{file.stem}", file, None)
    module = importlib.util.module_from_spec(spec)
    contract = importlib.import_module(f"{_PACKAGE}.contract")
    spec.loader.exec_module(module)
    return contract, module


def _spec(name: str, file: Path, inside: list[str] | None) -> Any:
    return importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)


def _die_with_parent() -> None:
    """Linux: be killed when the parent is, even while stopped; elsewhere the end of standard input has to do."""
    if sys.platform == "linux":
        parent_dies_signal = 1
        ctypes.CDLL(None).prctl(parent_dies_signal, signal.SIGKILL)


def main() -> None:
    _die_with_parent()
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        server = Server(Path(sys.argv[1]), sys.argv[2])
        for line in sys.stdin:
            print(json.dumps(server.answer(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
