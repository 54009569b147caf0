"""Which device is meant: ranking and matching, pure over a listing of devices.

A selection comes from the first of these that is given: the argument, the environment variable OCLBN_DEVICE,
the environment variable PYOPENCL_CTX, the ranking. What is given must fit exactly one device: there is never
a prompt, and never another device than the one asked for. An empty variable counts as not given.

An argument or OCLBN_DEVICE is one of

    "1:0"        the index P:D: platform 1, device 0, in the order in which pyopencl lists them
    "1"          platform 1, which must have exactly one device
    "gpu"        the best ranked device of a type: "gpu", "cpu" or "accelerator"; simulators are no type
    "radeon"     a part of the name of a device or a platform, of a platform's version or of a runtime (a name and
                 its version, as `DeviceInfo.runtime` has it); any case. A whole name goes before a part of others.
    "1:0 gfx1030 (rusticl 24.0)"    a title as `DeviceInfo.title` has it, or its beginning: index and name must fit

PYOPENCL_CTX is read as pyopencl reads it: "P", "P:D", where P and D are indices or parts of a name, and
an empty part before or after the colon stands for 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oclbn.device.advice import ELSEWHERE
from oclbn.errors import DeviceNotFoundError
from oclbn.plan.words import DeviceLimits

if TYPE_CHECKING:
    import pyopencl as cl

_TYPE_BITS = {"gpu": 4, "accelerator": 8, "cpu": 2}  # CL_DEVICE_TYPE_*; best first
KINDS = tuple(_TYPE_BITS)
_POCL = "pip install 'oclbn[pocl]'"
WITH_POCL = f"For the processor: {_POCL}"
NO_DEVICE = f"no OpenCL device found: install the OpenCL driver of your GPU, or use the CPU with: {_POCL}"
SILENT_DRIVERS = "no OpenCL device found. Likely causes:"
WITHOUT_DEVICES = "Installed, but without a device"
# Intel's FPGA emulation calls itself an accelerator and runs on the CPU.
_SIMULATORS = ("oclgrind", "simulator", "emulation")
# Graphics in software, which some drivers announce as a GPU with more compute units than the CPU has.
_RASTERISERS = ("llvmpipe", "softpipe", "lavapipe", "swrast", "swiftshader", "microsoft basic render")


@dataclass(frozen=True)
class DeviceInfo:
    """One device: where it stands in the listing, what it is called, what it can do."""

    platform_index: int
    device_index: int
    name: str
    platform: str
    platform_version: str
    driver: str
    kind: str  # "cpu", "gpu" or "accelerator"
    simulator: bool
    limits: DeviceLimits
    device: cl.Device = field(repr=False, compare=False)

    @property
    def spec(self) -> str:
        """The index "P:D", which selects exactly this device."""
        return f"{self.platform_index}:{self.device_index}"

    @property
    def runtime(self) -> str:
        """What the device is driven by, a name and its version: "PoCL 3.1+debian", "rusticl 22.3.6"."""
        # POCL and Oclgrind have their own name in the platform's version, behind OpenCL's, and POCL is best known by
        # it; others have none there, or that of something else (CUDA's, Mesa's).
        own = re.sub(r"^OpenCL [0-9.]+ ?", "", self.platform_version).strip("() ")
        word, _, number = self.driver.rpartition(" ")
        named = re.match(rf"({re.escape(word) or r'[A-Za-z]+'} {re.escape(number)})(?![^\s,])", own)
        return named[1] if named else f"{self.platform} {self.driver}".strip()

    @property
    def title(self) -> str:
        """Index, name and runtime, as oclbn prints a device; it selects exactly this one, and so does its index."""
        return f"{self.spec} {self.name} ({self.runtime})"


def classify(type_bits: int, name: str, platform: str) -> tuple[str, bool]:
    """The kind of a device ("cpu", "gpu" or "accelerator") and whether it is a simulator of devices.

    A real device sets one bit of CL_DEVICE_TYPE; Oclgrind sets all three. A simulator counts as a "gpu", so that
    plans for it have work-groups of many work-items: races between these are what a simulator is there to find.
    """
    found = [kind for kind, bit in _TYPE_BITS.items() if type_bits & bit]
    simulator = len(found) > 1 or _has_word(_SIMULATORS, f"{name} {platform}")
    if not simulator and _has_word(_RASTERISERS, name):
        return "cpu", False
    return (found[0] if found else "accelerator"), simulator


def _has_word(words: Sequence[str], text: str) -> bool:
    return any(word in text.lower() for word in words)


def rank(listed: Sequence[DeviceInfo]) -> tuple[DeviceInfo, ...]:
    """Best first: GPU, accelerator, CPU, software rasterisers, simulators; of equals the one with more compute units.

    What is still equal keeps the order of the listing.
    """

    def key(info: DeviceInfo) -> tuple[bool, int, bool, int]:
        rasteriser = _has_word(_RASTERISERS, info.name)
        return info.simulator, KINDS.index(info.kind), rasteriser, -info.limits.compute_units

    return tuple(sorted(listed, key=key))


def choose(
    listed: Sequence[DeviceInfo], spec: str, origin: str, lacking: Callable[[], Sequence[str]] = tuple
) -> DeviceInfo:
    """The one device that `spec` (see the module's text) names; `origin` opens the message of the error if none is.

    lacking: gives a line for each thing that is installed and offers no device, which may be what is meant.
    """
    text = " ".join(spec.split()).lower()
    if text in KINDS:
        found = [info for info in rank(listed) if info.kind == text and not info.simulator][:1]
    elif re.fullmatch(r"[0-9]+:[0-9]+", text):
        index = tuple(int(part) for part in text.split(":"))
        found = [info for info in listed if (info.platform_index, info.device_index) == index]
    elif re.match(r"[0-9]+:[0-9]+ ", text):
        found = [info for info in listed if info.title.lower().startswith(text)]
    else:
        found = [info for info in listed if _fits_either(text, info, info.runtime)]
        found = [info for info in found if text in _whole_names(info)] or found
    return _only(found, listed, origin, lacking)


def choose_pyopencl(
    listed: Sequence[DeviceInfo], spec: str, origin: str, lacking: Callable[[], Sequence[str]] = tuple
) -> DeviceInfo:
    """The one device that `spec`, in the form of PYOPENCL_CTX, names; the rest as in `choose`."""
    platform, colon, device = spec.strip().lower().partition(":")
    if not colon:
        return _only([info for info in listed if _fits_either(platform, info)], listed, origin, lacking)
    found = [
        info
        for info in listed
        if _fits(platform or "0", info.platform_index, info.platform, info.platform_version)
        and _fits(device or "0", info.device_index, info.name)
    ]
    return _only(found, listed, origin, lacking)


def resolve(
    listed: Sequence[DeviceInfo],
    spec: str | None,
    environment: Mapping[str, str],
    lacking: Callable[[], Sequence[str]] = tuple,
) -> tuple[DeviceInfo, str]:
    """The selected device and what selected it: the argument, a variable of the environment, or the ranking."""
    if not listed:
        told = list(lacking())
        if told and not any("pocl" in line.lower() or ELSEWHERE in line for line in told):
            told.append(WITH_POCL)
        raise DeviceNotFoundError("\n".join([SILENT_DRIVERS if told else NO_DEVICE, *told]))
    if spec is not None:
        origin = f"argument device={spec!r}"
        return choose(listed, spec, origin, lacking), origin
    for variable, read in (("OCLBN_DEVICE", choose), ("PYOPENCL_CTX", choose_pyopencl)):
        if value := environment.get(variable, "").strip():
            origin = f"environment variable {variable}={value!r}"
            return read(listed, value, origin, lacking), origin
    return rank(listed)[0], "ranking"


def _fits(part: str, index: int, *names: str) -> bool:
    # Digits are always an index: as a part of a name, "7" would find some device when there is no platform 7.
    if re.fullmatch(r"[0-9]+", part):
        return int(part) == index
    return part != "" and any(part in name.lower() for name in names)


def _fits_either(part: str, info: DeviceInfo, *more: str) -> bool:
    return _fits(part, info.platform_index, info.name, info.platform, info.platform_version, *more)


def _whole_names(info: DeviceInfo) -> tuple[str, ...]:
    return info.name.lower(), info.platform.lower(), info.runtime.lower()


def _only(
    found: Sequence[DeviceInfo], listed: Sequence[DeviceInfo], origin: str, lacking: Callable[[], Sequence[str]]
) -> DeviceInfo:
    if len(found) == 1:
        return found[0]
    fault, mark = (f"fits {len(found)} devices", " (* marks what fits)") if found else ("fits no device", "")
    rows = [
        (
            "*" if info in found else "",
            info.spec,
            "simulator" if info.simulator else info.kind,
            info.name,
            info.runtime,
        )
        for info in listed
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    hint = f"Select one of these by its index P:D or by a part of its name or runtime{mark}:"
    told = lacking() if not found else ()
    if told:
        lines += [f"{WITHOUT_DEVICES}:", *told]
    raise DeviceNotFoundError("\n".join([f"{origin} {fault}", hint, *lines]))
