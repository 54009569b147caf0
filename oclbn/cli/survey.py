"""What OpenCL there is, asked in a child process: a driver that aborts or hangs takes nothing else with it.

`asked` is the command's side. The child is this module, as a program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oclbn.tools.child import ChildProcess, Rejected, requests

TIMEOUT = 60.0  # seconds: some drivers build something when they are first listed


@dataclass(frozen=True)
class Survey:
    """devices: as records.of_device has them. without_devices: lines. loader: OpenCL's. fault: why nothing is known."""

    devices: tuple[dict[str, Any], ...] = ()
    without_devices: tuple[str, ...] = ()
    loader: str = ""
    fault: str = ""


def asked(timeout: float = TIMEOUT) -> Survey:
    """The survey, or why there is none within so many seconds."""
    with ChildProcess("oclbn.cli.survey", timeout=timeout) as child:
        try:
            told = child.ask("survey")
        except Rejected as rejected:
            return Survey(fault=str(rejected))
    return Survey(tuple(told["devices"]), tuple(told["without_devices"]), told["loader"])


def serve() -> None:
    """The child's side."""
    from oclbn import device
    from oclbn.cli import records
    from oclbn.device.loader import loader

    for _, answer in requests():
        found = {
            "devices": [records.of_device(info) for info in device.devices()],
            "without_devices": device.without_devices(),
            "loader": loader(),
        }
        answer({"done": found})


if __name__ == "__main__":
    serve()
