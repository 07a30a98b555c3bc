"""A filter on Debian's pymilter, run by the system's python3: `rewriter.py SOCKET [data]`.

It does to each message what the message's field X-Do says, in words divided by blanks:

    upper        its own body again, in capitals
    new=N        a new body of about N octets
    lf           with lines that end in LF
    nul          with a NUL in it
    tempfail     451 at the end, whatever came before
    die          the process ends in the middle of the new body
    rcpt         a recipient is added who wants no report, and another sender put in, with RET and ENVID

It wants to hear of recipients that are not taken; X-Refused has what it heard of the last one. To a
command that the MTA does not know it says 502 with that command, to XQUIET nothing. With `data` it wants
to hear DATA too.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import Milter  # type: ignore[import-not-found]

_PIECE = 60_000


class Rewriter(Milter.Base):  # type: ignore[misc]
    def __init__(self) -> None:
        self._words: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._refused = ""

    def envfrom(self, sender: str, *parameters: str) -> Any:
        self._words, self._pieces, self._refused = {}, [], ""
        return Milter.CONTINUE

    def envrcpt(self, recipient: str, *parameters: str) -> Any:
        if self.getsymval("{rcpt_mailer}") == "error":
            symbols = (self.getsymval("{rcpt_host}"), self.getsymval("{rcpt_addr}"))
            self._refused = " ".join([recipient, *symbols])
        return Milter.CONTINUE

    def unknown(self, command: str) -> Any:
        if command == "XQUIET":
            return Milter.CONTINUE
        self.setreply("502", "5.5.1", f"The filter does not know {command} either")
        return Milter.REJECT

    @Milter.noreply  # type: ignore[untyped-decorator]
    def header(self, name: str, value: str) -> Any:
        if name.lower() == "x-do":
            pairs = [word.partition("=") for word in value.split()]
            self._words = {key: argument for key, _, argument in pairs}
        return Milter.CONTINUE

    def body(self, piece: bytes) -> Any:
        if "upper" in self._words:
            self._pieces.append(piece)
        return Milter.CONTINUE

    def eom(self) -> Any:
        words = self._words
        if "new" in words:
            line = b"." + b"n" * 69 + (b"\n" if "lf" in words else b"\r\n")
            for _ in range(max(1, int(words["new"]) // _PIECE)):
                self.replacebody(line * (_PIECE // len(line)))
                if "die" in words:
                    os._exit(1)
        for piece in self._pieces:
            self.replacebody(piece.upper())
        if "nul" in words:
            self.replacebody(b"a\0b")
        if "rcpt" in words:
            self.addrcpt("<added@example.com>", "NOTIFY=NEVER")
            self.chgfrom("<other@example.net>", "RET=HDRS ENVID=rewritten")
        if self._refused:
            self.addheader("X-Refused", self._refused)
        if words:
            self.addheader("X-Done", " ".join(words))
            self.chgheader("Subject", 1, "rewritten")
        return Milter.TEMPFAIL if "tempfail" in words else Milter.CONTINUE


class Attentive(Rewriter):
    def data(self) -> Any:
        return Milter.CONTINUE


# pymilter keeps what a class wants to hear with the class, subclasses included: it is asked last.
Milter.factory = Milter.rejected_recipients(Attentive if sys.argv[2:] else Rewriter)
Milter.set_flags(
    Milter.CHGBODY | Milter.CHGHDRS | Milter.ADDHDRS | Milter.ADDRCPT | Milter.CHGFROM
    | Milter.ADDRCPT_PAR
)  # fmt: skip
Milter.runmilter("rewriter", sys.argv[1], 240)
