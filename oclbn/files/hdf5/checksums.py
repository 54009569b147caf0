"""The checksums of HDF5: Bob Jenkins' lookup3 over descriptions, and Fletcher's over elements."""

from __future__ import annotations

import struct

import numpy as np

_MASK = 0xFFFFFFFF


def lookup3(content: bytes) -> int:
    """hashlittle() of lookup3.c, from 0."""
    length = len(content)
    a: int
    b: int
    c: int
    a = b = c = (0xDEADBEEF + length) & _MASK
    if not length:
        return c
    whole = (length - 1) // 12  # the last one to twelve bytes are mixed in otherwise
    words = struct.unpack(f"<{3 * whole}I", content[: 12 * whole])
    for at in range(0, 3 * whole, 3):
        a, b, c = a + words[at] & _MASK, b + words[at + 1] & _MASK, c + words[at + 2] & _MASK
        a = (a - c & _MASK) ^ ((c << 4 | c >> 28) & _MASK)
        c = c + b & _MASK
        b = (b - a & _MASK) ^ ((a << 6 | a >> 26) & _MASK)
        a = a + c & _MASK
        c = (c - b & _MASK) ^ ((b << 8 | b >> 24) & _MASK)
        b = b + a & _MASK
        a = (a - c & _MASK) ^ ((c << 16 | c >> 16) & _MASK)
        c = c + b & _MASK
        b = (b - a & _MASK) ^ ((a << 19 | a >> 13) & _MASK)
        a = a + c & _MASK
        c = (c - b & _MASK) ^ ((b << 4 | b >> 28) & _MASK)
        b = b + a & _MASK
    last = struct.unpack("<3I", content[12 * whole :].ljust(12, b"\0"))
    a, b, c = a + last[0] & _MASK, b + last[1] & _MASK, c + last[2] & _MASK
    state = [a, b, c]
    for one, other, turn in ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24)):
        by = state[other]
        state[one] = ((state[one] ^ by) - ((by << turn | by >> 32 - turn) & _MASK)) & _MASK
    return state[2]


def fletcher32(content: bytes) -> int:
    """HDF5's: of big-endian words of two bytes, sums folded to 16 bits, never a true remainder."""
    words = np.frombuffer(content[: len(content) // 2 * 2], ">u2").astype(np.uint64)
    if len(content) % 2:
        words = np.append(words, np.uint64(content[-1] << 8))
    first, second = _residue(int(words.sum())), 0
    count = len(words)
    weights = np.arange(count, 0, -1, dtype=np.uint64)
    for start in range(0, count, 1 << 16):  # a part at a time, as products of many words leave 64 bits
        part = slice(start, start + (1 << 16))
        second += int((words[part] * weights[part]).sum())
    return _residue(second) << 16 | first


def _residue(total: int) -> int:
    """Folding 16 bits at a time never gives 0 where there was a number."""
    return (total - 1) % 0xFFFF + 1 if total else 0
