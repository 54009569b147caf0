"""Jobs of several processes, started and ended by a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("ranks.py")


@dataclass(frozen=True)
class Ended:
    """status: None, if the job had to be ended."""

    status: int | None
    printed: str


def environment(spec: str) -> dict[str, str]:
    """Four ranks on two cores: each computes with one."""
    one = ("OMP_NUM_THREADS", "POCL_MAX_PTHREAD_COUNT", "POCL_CPU_MAX_CU_COUNT", "CL_CONFIG_CPU_TBB_NUM_WORKERS")
    return (
        os.environ
        | dict.fromkeys(one, "1")
        | {
            "LP_NUM_THREADS": "1",
            "OCLBN_DEVICE": spec,
            "OCLBN_PROVE": os.environ.get("OCLBN_PROVE", "0"),
            "OCLBN_TUNING": "",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
    )


def mpiexec() -> str | None:
    """That of the wheel beside this Python, or else any."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("mpiexec", path=beside)


def run_mpi(size: int, action: str, folder: Path, spec: str, seconds: float = 240.0) -> Ended:
    """On this machine alone, by fork: no shell that reaches others is asked for, nor this one's name.

    Where a rank dies, mpiexec is to leave it to the others to notice.
    """
    command = [str(mpiexec()), "-launcher", "fork", "-disable-auto-cleanup", "-hosts", "localhost", "-n", str(size)]
    return _run([[*command, sys.executable, str(SCRIPT), "mpi", action, str(folder)]], [environment(spec)], seconds)


def run_torch(size: int, action: str, folder: Path, spec: str, seconds: float = 240.0) -> Ended:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(size)}
    command = [sys.executable, str(SCRIPT), "torch", action, str(folder)]
    return _run([command] * size, [environment(spec) | where | {"RANK": str(rank)} for rank in range(size)], seconds)


def _run(commands: list[list[str]], environments: list[dict[str, str]], seconds: float) -> Ended:
    """All of them at once; whatever is left of them after the time is ended, with all that they started."""
    jobs = [
        subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command, env in zip(commands, environments, strict=True)
    ]
    status: int | None = 0
    printed = ""
    try:
        for job in jobs:
            printed += job.communicate(timeout=seconds)[0]
            status = status or job.returncode
    except subprocess.TimeoutExpired:
        status = None
    finally:
        for job in jobs:
            _end(job)
            if status is None:
                printed += job.communicate()[0]
    return Ended(status, printed[-20_000:])


def _end(job: subprocess.Popen[str]) -> None:
    """mpiexec ends its ranks when it is asked to; what it leaves is of its session."""
    with contextlib.suppress(ProcessLookupError):
        if job.poll() is None:
            job.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(10)
        os.killpg(job.pid, signal.SIGKILL)
