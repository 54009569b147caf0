"""What ranks say to each other: each message with a fingerprint, so that they agree or all learn that they do not.

A collective wants equally long messages, also of ranks that are about to disagree. So the length of a message is never
its sender's own: all ranks take it from what they exchanged before, which they know alike. The message that followed
last time after the same ones is thought to follow again. What does not fit goes in a second gathering, as long as the
headers of the first say. So a network that repeats its layers has one gathering for each exchange, from its second
pass on, and ranks that differ still gather equally many bytes, and read in the headers that they differ.

Header: 4 bytes "oclb", 1 byte state, 3 of nothing, length of the words as uint32, of the payload as uint64, 16 bytes of
digest of the words; little-endian. The words say what the payload is, or what went wrong; they are told only where
ranks differ, the first 64 KiB of them.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from oclbn.errors import GroupError, GroupTimeoutError
from oclbn.sync.exchange import Bytes, Exchange, Gathering

_HEADER = struct.Struct("<4sB3xIQ16s")
_MAGIC = b"oclb"
_AGREED, _FAILED, _LEFT, _FLED = range(4)  # _FLED: failed, and left
_FIRST = 1024  # bytes of payload in a message of which nothing is known
_CONTEXTS = (16, 4, 1)  # how many messages before are looked at to foresee the next, the longest memory first
_MOST_CONTEXTS = 1 << 16
_MOST_WORDS = 1 << 16  # bytes
_MOST_TOLD = 1000  # characters of one rank's words in an error
BETWEEN = "; "  # of the words for several things in one message
_ROLL_CALL = 2.0  # seconds to answer in, after an exchange that timed out


class Agreement:
    """The exchanges of a group, one after the other, each of them begun and ended."""

    def __init__(self, exchange: Exchange, timeout: float) -> None:
        self._exchange, self._timeout = exchange, timeout
        self._recent: deque[bytes] = deque(maxlen=max(_CONTEXTS))
        self._foreseen: dict[bytes, int] = {}
        self._under_way: tuple[Gathering, bytes, bytes, int] | None = None
        self.broken = ""  # why there will be no exchange again
        self.lost = False  # whether a gathering may still be under way that nobody waits for

    @property
    def pending(self) -> bool:
        """Whether an exchange was begun and not ended."""
        return self._under_way is not None

    def begin(self, words: str, payload: bytes) -> None:
        """Send everybody a payload, which is what the words say."""
        self._begin(_AGREED, words, payload)

    def end(self) -> list[Bytes]:
        """The payloads of all ranks. GroupError, the same on all of them, where not all sent the same kind of thing."""
        assert self._under_way is not None
        gathering, payload, words, room = self._under_way
        frames = self._wait(gathering)
        self._under_way = None
        headers = [_HEADER.unpack(frame[: _HEADER.size].tobytes()) for frame in frames]
        if any(header[0] != _MAGIC for header in headers):
            self.broken = "another program's messages came, or another version's of oclbn"
            raise GroupError(self.broken)
        if any(header != headers[0] for header in headers) or headers[0][1] != _AGREED:
            self._recent.clear()
            raise GroupError(self._disagreement(headers, words))
        rest = payload[room:]
        after = list(self._gather(np.frombuffer(rest, np.uint8))) if rest else [np.empty(0, np.uint8)] * len(frames)
        self._learn(headers[0][4], len(payload))
        first = min(len(payload), room)
        return [
            np.concatenate([frame[_HEADER.size : _HEADER.size + first], more])
            for frame, more in zip(frames, after, strict=True)
        ]

    def fail(self, words: str, *, leaving: bool = False) -> None:
        """Tell the others, who are about to exchange or will be, that this rank cannot; it hears what they say.

        leaving: and that it will never again: the group is of no more use to them.
        """
        self._last(_FLED if leaving else _FAILED, words)

    def leave(self) -> None:
        """Tell the others, who are leaving too, that this rank has no more to exchange; GroupError if they are not."""
        self._last(_LEFT, "left the group")

    def _last(self, state: int, words: str) -> None:
        if self._exchange.size == 1 or self.broken:
            return
        self._begin(state, words, b"")
        assert self._under_way is not None
        gathering, _, told, _ = self._under_way
        frames = self._wait(gathering)
        self._under_way = None
        self._recent.clear()
        headers = [_HEADER.unpack(frame[: _HEADER.size].tobytes()) for frame in frames]
        if state == _LEFT and all(header[1] == _LEFT for header in headers):
            return
        message = self._disagreement(headers, told)
        if state == _LEFT:
            raise GroupError(message)

    def _begin(self, state: int, words: str, payload: bytes) -> None:
        if self.broken:
            raise GroupError(f"this group exchanges no more: {self.broken}")
        own = words.encode(errors="backslashreplace")
        digest = hashlib.blake2b(own, digest_size=16).digest()
        own = own[:_MOST_WORDS]
        room = self._room()
        frame = np.zeros(_HEADER.size + room, np.uint8)
        header = _HEADER.pack(_MAGIC, state, len(own), len(payload), digest)
        frame[: _HEADER.size] = np.frombuffer(header, np.uint8)
        fitting = payload[:room]
        frame[_HEADER.size : _HEADER.size + len(fitting)] = np.frombuffer(fitting, np.uint8)
        self._under_way = self._exchange.gather(frame), payload, own, room

    def _room(self) -> int:
        """Bytes of payload that the next message has room for, alike on all ranks."""
        if self._exchange.size > 1:
            for length in _CONTEXTS:
                found = self._foreseen.get(self._context(length))
                if found is not None:
                    return found
        return _FIRST

    def _context(self, length: int) -> bytes:
        return b"".join(list(self._recent)[-length:]) + bytes([length])

    def _learn(self, digest: bytes, length: int) -> None:
        if self._exchange.size == 1:
            return
        if len(self._foreseen) > _MOST_CONTEXTS:
            self._foreseen.clear()
        for context in _CONTEXTS:
            self._foreseen[self._context(context)] = length
        self._recent.append(digest)

    def _gather(self, message: Bytes) -> Bytes:
        return self._wait(self._exchange.gather(message))

    def _wait(self, gathering: Gathering) -> Bytes:
        try:
            return gathering.wait(self._timeout)
        except TimeoutError:
            silent = self._exchange.silent(min(_ROLL_CALL, self._timeout))
            who = f"{_ranks(silent)} not heard from since" if silent else "which rank is missing cannot be told"
            self.broken = f"no answer from all of {self._exchange.size} ranks within {self._timeout:g} s; {who}"
            self._under_way, self.lost = None, True
            raise GroupTimeoutError(f"rank {self._exchange.rank}: {self.broken}") from None
        except Exception as error:
            self.broken = f"the network fails: {error}"
            self._under_way, self.lost = None, True
            raise GroupError(f"rank {self._exchange.rank}: {self.broken}") from error

    def _disagreement(self, headers: Sequence[tuple[bytes, int, int, int, bytes]], own: bytes) -> str:
        """What everybody said, from everybody; where one has left, there will be no exchange again."""
        longest = max(header[2] for header in headers)
        message = np.zeros(longest, np.uint8)
        message[: len(own)] = np.frombuffer(own, np.uint8)
        said = [
            told[: header[2]].tobytes().decode(errors="replace")
            for told, header in zip(self._gather(message), headers, strict=True)
        ]
        states = [header[1] for header in headers]
        if left := [rank for rank, state in enumerate(states) if state in (_LEFT, _FLED)]:
            self.broken = f"{_ranks(left)} left it"
        failed = {rank: _short(said[rank]) for rank, state in enumerate(states) if state in (_FAILED, _FLED)}
        if failed:
            return "; ".join(f"{who} failed before the exchange: {one}" for who, one in _by_words(failed))
        lengths = [f" ({header[3]} bytes)" if header[3] else "" for header in headers]
        all_said = {rank: f"{one}{length}" for rank, (one, length) in enumerate(zip(_from(said), lengths, strict=True))}
        told = "; ".join(f"{who}: {one}" for who, one in _by_words(all_said))
        return f"the ranks do not exchange the same: {told}"


def _from(said: Sequence[str]) -> list[str]:
    """What ranks say, each a list of things, from the first thing on that differs."""
    things = [words.split(BETWEEN) for words in said]
    same = 0
    while all(len(own) > same + 1 for own in things) and len({own[same] for own in things}) == 1:
        same += 1
    before = f"after {same} alike, " if same else ""
    return [before + _short(BETWEEN.join(own[same:])) for own in things]


def _short(words: str) -> str:
    return words if len(words) <= _MOST_TOLD else f"{words[:_MOST_TOLD]}..."


def _by_words(said: Mapping[int, str]) -> list[tuple[str, str]]:
    """Of what ranks say, who says it, and what."""
    ranks: dict[str, list[int]] = {}
    for rank, words in said.items():
        ranks.setdefault(words, []).append(rank)
    return [(_ranks(own), words) for words, own in ranks.items()]


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
