"""Ranks as hosts of their own, with a network of a given latency between them: MPI jobs in Linux network namespaces.

    python benchmarks/network.py --ranks 2 --delay 1000 -- python benchmarks/parallel.py --exchange

Needs root, Linux and the extras `mpi` and `cli`; MPICH's wheel, whose messages go over TCP. Each rank has a namespace
with a device (/dev/net/tun) and an address of its own, and sees nothing of the others but packets, which this process
hands on `delay` microseconds after they came. What that makes of a round trip is measured first and printed: the
router is a program, and on few cores waits for one as the ranks do.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_SET_DEVICE, _TUN_OF_PACKETS = 0x400454CA, 0x1001  # TUNSETIFF; IFF_TUN | IFF_NO_PI
_MOST = 65536
_DEVICE = "oclbn0"
_SOON = 2e-4  # seconds: what is due sooner is waited for without sleeping


def run(*command: str) -> None:
    subprocess.run(command, check=True)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread in a namespace, for the block."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as own, Path(f"/run/netns/{name}").open() as other:
        for namespace in (other, own):
            if library.setns(namespace.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")
            if namespace is other:
                yield


def device(name: str, address: str) -> int:
    """A file whose packets are those of a new device in this namespace."""
    with inside(name):
        packets = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(packets, _SET_DEVICE, struct.pack("16sH22x", _DEVICE.encode(), _TUN_OF_PACKETS))
    run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", _DEVICE)
    run("ip", "-n", name, "link", "set", _DEVICE, "up", "mtu", "9000")
    run("ip", "-n", name, "link", "set", "lo", "up")
    return packets


def route(devices: dict[bytes, int], delay: float, stop: threading.Event) -> None:
    """Hand on packets, each `delay` seconds after it came, in the order that they came in."""
    waiting: list[tuple[float, int, bytes]] = []
    poll = select.poll()
    for packets in devices.values():
        poll.register(packets, select.POLLIN)
    number = 0
    while not stop.is_set():
        left = waiting[0][0] - time.perf_counter() if waiting else 0.1
        for packets, _ in poll.poll(0 if left < _SOON else (left - _SOON) * 1e3):
            packet = os.read(packets, _MOST)
            number += 1
            heapq.heappush(waiting, (time.perf_counter() + delay, number, packet))
        while waiting and waiting[0][0] <= time.perf_counter():
            _, _, packet = heapq.heappop(waiting)
            target = devices.get(packet[16:20])  # of IPv4: where it goes
            if packet[0] >> 4 == 4 and target is not None:
                os.write(target, packet)


def round_trip(first: str, second: str, address: str) -> float:
    """Seconds that a byte takes there and back over TCP: the median."""
    with inside(second):
        listening = socket.create_server((address, 0))
    with inside(first):
        asking = socket.socket()
    asking.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    asking.connect(listening.getsockname())
    answering, _ = listening.accept()
    answering.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found = []
    for _ in range(200):
        begun = time.perf_counter()
        asking.send(b"x")
        answering.recv(1)
        answering.send(b"y")
        asking.recv(1)
        found.append(time.perf_counter() - begun)
    for one in (asking, answering, listening):
        one.close()
    return statistics.median(found)


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--ranks", default=2, show_default=True)
@click.option("--delay", default=0.0, show_default=True, help="Microseconds on a packet's way.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(ranks: int, delay: float, command: tuple[str, ...]) -> None:
    names = [f"oclbn{os.getpid()}-{rank}" for rank in range(ranks)]
    addresses = [f"10.77.0.{rank + 1}" for rank in range(ranks)]
    stop = threading.Event()
    try:
        for name in names:
            run("ip", "netns", "add", name)
        devices = {
            socket.inet_aton(address): device(name, address) for name, address in zip(names, addresses, strict=True)
        }
        router = threading.Thread(target=route, args=(devices, delay * 1e-6, stop))
        router.start()
        if ranks > 1:
            taken = round_trip(names[0], names[1], addresses[1])
            click.echo(f"a byte there and back over TCP: {taken * 1e6:.0f} us")
        settings = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": _DEVICE}
        settings["MPIR_CVAR_NOLOCAL"] = "1"  # no shared memory
        enter = f'exec ip netns exec oclbn{os.getpid()}-$PMI_RANK "$@"'
        job = ["mpiexec", "-launcher", "fork", "-n", str(ranks), "sh", "-c", enter, "rank", *command]
        sys.stdout.flush()
        status = subprocess.run(job, env=os.environ | settings, check=False).returncode
    finally:
        stop.set()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
