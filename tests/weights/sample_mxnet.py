"""Sound .params files, for damaging."""

from __future__ import annotations

import json
import struct

from layer_samples import layer

from oclbn.files.formats import mxnet


def listed(arrays: dict[str, bytes]) -> bytes:
    """A file of arrays that are bytes already."""
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    count = struct.pack("<Q", len(arrays))
    return struct.pack("<QQ", 0x112, 0) + count + b"".join(arrays.values()) + count + names


def legacy(values: list[float], axes: int = 1) -> bytes:
    """An array as before version 1: sizes of 32 bits."""
    return struct.pack(f"<II2ii{len(values)}f", axes, len(values), 1, 0, 0, *values)


def first(values: list[float]) -> bytes:
    """An array of version 1."""
    return struct.pack(f"<Iiq2ii{len(values)}f", 0xF993FAC8, 1, len(values), 1, 0, 0, *values)


def rows(values: list[float]) -> bytes:
    """Sparse rows: the values' shape and the whole shape, the indices behind the values."""
    count = len(values)
    head = struct.pack("<Iiiqiq", 0xF993FAC9, 1, 1, count, 1, 100) + struct.pack("<2iiiiq", 1, 0, 0, 6, 1, count)
    return head + struct.pack(f"<{count}f", *values) + struct.pack(f"<{count}q", *range(count))


def none() -> bytes:
    """An array that was never given a shape."""
    return struct.pack("<Iii", 0xF993FAC9, 0, 0)


def samples() -> list[dict[str, bytes]]:
    layers = [layer(), layer("other", 3, "bfloat16"), layer("third", 2, "float64")]
    old = {
        "arg:fc_weight": rows([1, 2, 3]),
        "arg:later": none(),
        "arg:bn_gamma": legacy([5, 6]),
        "arg:bn_beta": first([1, 2]),
        "aux:bn_moving_mean": first([3, 4]),
        "aux:bn_moving_var": legacy([1, 2]),
    }
    inputs = [{"op": "null", "name": name[4:], "inputs": []} for name in ("arg:data", *list(old)[2:])]
    node = {"op": "BatchNorm", "name": "bn", "attrs": {"eps": "2e-05", "fix_gamma": "False", "momentum": "0.7"}}
    symbol = {"nodes": [*inputs, {**node, "inputs": [[index, 0, 0] for index in range(5)]}]}
    return [
        dict(mxnet.write(layers, "one.params", None).files),
        {"old-0012.params": listed(old), "old-symbol.json": json.dumps(symbol).encode()},
    ]
