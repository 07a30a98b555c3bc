"""A mail filter of memory. It speaks libmilter's protocol in octets of its own and shares no line with
the machine that it tests."""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.protocol import Factory, Protocol

EVERYTHING = 0x1FF
"""Every action that Sendmail has."""


def said(letter: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", 1 + len(payload)) + letter + payload


CONTINUE = said(b"c")


class FilterEnd(Protocol):
    """One connection. `heard` has letters with payloads; macros, and the negotiation, apart."""

    def __init__(self, memory: MemoryFilter) -> None:
        self.memory = memory
        self.heard: list[tuple[bytes, bytes]] = []
        self.macros: dict[bytes, dict[bytes, bytes]] = {}
        self.offer = (0, 0, 0)
        self.is_open = False
        self._octets = b""

    def connectionMade(self) -> None:
        self.is_open = True

    def connectionLost(self, reason: Any = None) -> None:
        self.is_open = False

    def dataReceived(self, data: bytes) -> None:
        self._octets += data
        while len(self._octets) >= 4:
            (length,) = struct.unpack(">I", self._octets[:4])
            if len(self._octets) < 4 + length:
                return
            letter, payload = self._octets[4:5], self._octets[5 : 4 + length]
            self._octets = self._octets[4 + length :]
            self._hear(letter, payload)

    def _hear(self, letter: bytes, payload: bytes) -> None:
        memory, transport = self.memory, self.transport
        assert transport is not None
        if letter == b"O":
            self.offer = struct.unpack(">3I", payload)
            if memory.negotiation is None:
                version, actions, steps = memory.version, memory.actions, memory.steps
                answer = struct.pack(">3I", version, actions & self.offer[1], steps & self.offer[2])
                transport.write(said(b"O", answer + memory.symbols))
            else:
                transport.write(memory.negotiation)
            if memory.is_hanging_up:
                transport.loseConnection()
            return
        if letter == b"D":
            words = payload[1:].split(b"\0")[:-1]
            self.macros[payload[:1]] = dict(zip(words[::2], words[1::2], strict=True))
            return
        self.heard.append((letter, payload))
        if letter == b"Q":
            transport.loseConnection()
        elif letter != b"A" and letter not in memory.mute:
            answers = memory.answers.get(letter, CONTINUE)
            if isinstance(answers, list):
                answers = answers.pop(0) if answers else CONTINUE
            if answers is None:
                transport.abortConnection()
            elif answers:
                transport.write(answers)

    def letters(self) -> bytes:
        return b"".join(letter for letter, _ in self.heard)

    def all(self, letter: bytes) -> list[bytes]:
        return [payload for which, payload in self.heard if which == letter]


class MemoryFilter(Factory):
    """`answers`: for a letter, what is written when it comes: octets (b"": silence), None (the
    connection is reset), or a list of these, one each time; CONTINUE when nothing is given.
    """

    noisy = False

    def __init__(self, **answers: Any) -> None:
        self.answers = {letter.encode(): answer for letter, answer in answers.items()}
        self.version = 6
        self.actions = EVERYTHING
        self.steps = 0
        self.symbols = b""
        self.mute = b""
        """The letters that steps say are not answered."""
        self.negotiation: bytes | None = None
        self.is_hanging_up = False
        """In answer to the negotiation, as libmilter does when it needs more than it is granted."""
        self.ends: list[FilterEnd] = []

    def buildProtocol(self, addr: Any) -> FilterEnd:
        end = FilterEnd(self)
        self.ends.append(end)
        return end

    @property
    def open_ends(self) -> int:
        return sum(end.is_open for end in self.ends)
