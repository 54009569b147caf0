"""Which OpenCL loader pyopencl goes through: the library that finds the drivers and passes calls on to them."""

from __future__ import annotations

import ctypes

from pyopencl import _cl

_VERSION, _NAME, _VENDOR = 2, 3, 4  # cl_icdl_info of the extension cl_loader_info


def loader() -> str:
    """Name, version and vendor of the loader; "" where it does not tell (Windows, macOS, a driver without a loader)."""
    try:
        library = ctypes.CDLL(_cl.__file__)  # a symbol is looked for in what it is linked with, too
        find = library.clGetExtensionFunctionAddress
    except (OSError, AttributeError):
        return ""
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    address = find(b"clGetICDLoaderInfoOCLICD")
    if not address:
        return ""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    ask = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, size, pointer, pointer)(address)

    def told(what: int) -> str:
        room = ctypes.create_string_buffer(256)
        return "" if ask(what, len(room), room, None) else " ".join(room.value.decode(errors="replace").split())

    name, version, vendor = told(_NAME), told(_VERSION), told(_VENDOR)
    if version and version not in name:
        name = f"{name} {version}".strip()
    return f"{name} ({vendor})" if name and vendor else name
