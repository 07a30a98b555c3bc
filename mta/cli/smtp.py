"""Hands a message to the MTA by SMTP: over submit.sock, or from a standby node over TCP.

Law: a message counts as taken only after the 250 to the final dot. A refusal for now of any
recipient refuses all of them (exit 75 and nothing was sent, so whoever tries again sends no
doubles); a refusal for good is told, and the other recipients get the message.

This is a client program of the virtual server, not an association of it: on a standby node it runs
from the node's own address, and the virtual server admits it by `relay-from` or not.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mta.cli.message import Message
from mta.cli.output import CommandFailed, neutral

GREETING_SECONDS = 60.0
ANSWER_SECONDS = 300.0
"""RFC 5321 4.5.3.2: 5 minutes for most commands."""
FINAL_SECONDS = 600.0
"""RFC 5321 4.5.3.2.6: 10 minutes for the reply to the final dot."""
LONGEST_LINE = 8192
_RELAY_TO = re.compile(r"relay-to=(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15})):(\d{1,5})")
_QUEUED = re.compile(r"queued as ([0-9A-Za-z]{4,64})")
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: |$)")

Dial = Callable[[str, int], socket.socket]


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply of the server."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.code} {' '.join(self.lines)}"

    @property
    def enhanced(self) -> str:
        found = _ENHANCED.match(self.lines[0]) if self.lines else None
        return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be sent, to whom, and how its sender wants to be told (RFC 3461)."""

    message: Message
    sender: bytes | None
    """None: the user's own address at the network name."""
    user: str
    full_name: str
    recipients: Sequence[bytes]
    notify: str = ""
    ret: str = ""
    envelope_id: str = ""


@dataclass(slots=True)
class Receipt:
    """The server's word."""

    queue_id: str
    text: str
    refused: list[tuple[bytes, Answer]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.refused[0][1]) if self.refused else os.EX_OK


class Elsewhere(Exception):
    """This node is standby; `places` are the addresses of the virtual server."""

    def __init__(self, places: list[tuple[str, int]], text: str) -> None:
        super().__init__(text)
        self.places = places


def exit_code_of(answer: Answer) -> int:
    """sysexits.h for a refusal, by its enhanced code (RFC 3463)."""
    if 400 <= answer.code < 500:
        return os.EX_TEMPFAIL
    status = answer.enhanced
    if status.startswith("5.1."):
        return os.EX_NOHOST if status in {"5.1.2", "5.1.10"} else os.EX_NOUSER
    if status.startswith("5.7."):
        return os.EX_NOPERM
    if status.startswith(("5.6.", "5.3.4", "5.2.3")):
        return os.EX_DATAERR
    return os.EX_UNAVAILABLE


def hand_over(order: Order, connected: socket.socket, dial: Dial) -> Receipt:
    """Send `order` over `connected`; when that node is standby, over one that `dial` opens to the
    virtual server. @raise CommandFailed: not taken, with the reason and its exit code.
    """
    try:
        return _Dialogue(connected).send(order)
    except Elsewhere as standby:
        reasons = []
        for host, port in standby.places:
            try:
                there = dial(host, port)
            except OSError as error:
                reasons.append(f"{host}:{port}: {error.strerror or error}")
                continue
            try:
                return _Dialogue(there).send(order)
            except Elsewhere as also:
                reasons.append(f"{host}:{port}: {also}")
        why = "; ".join(reasons) or "it did not say where the virtual server is"
        raise CommandFailed(os.EX_TEMPFAIL, f"this node is standby, and {why}") from None


def dial_tcp(host: str, port: int) -> socket.socket:
    """@raise OSError."""
    return socket.create_connection((host, port), GREETING_SECONDS)


class _Dialogue:
    """One SMTP connection that sends one message and ends."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(GREETING_SECONDS)
        self._socket = connected
        self._file = connected.makefile("rb")
        self._taken = False

    def send(self, order: Order) -> Receipt:
        try:
            return self._send(order)
        except (TimeoutError, OSError) as error:
            raise CommandFailed(os.EX_TEMPFAIL, f"the MTA did not answer: {error}") from None
        finally:
            self._file.close()
            self._socket.close()

    def _send(self, order: Order) -> Receipt:
        greeting = self._reply()
        if greeting.code != 220:
            places = [
                (found[1] or found[2], int(found[3]))
                for line in greeting.lines
                for found in _RELAY_TO.finditer(line)
            ]
            if greeting.code == 421 and places:
                raise Elsewhere(places, greeting.text)
            raise self._refused("the connection", greeting)
        self._socket.settimeout(ANSWER_SECONDS)
        hello = self._command(f"EHLO {_own_name()}".encode(), "EHLO")
        network_name = neutral(hello.lines[0].split(" ")[0]) if hello.lines else "localhost"
        offered = {line.split(" ")[0].upper() for line in hello.lines[1:]}
        sender, recipients = self._addresses(order, network_name, offered)
        mail = b"MAIL FROM:<" + sender + b">" + _mail_parameters(order, offered)
        self._command(mail, f"sender <{sender.decode('utf-8', 'backslashreplace')}>")
        refused = self._recipients(order, recipients, offered)
        if len(refused) == len(recipients):
            address, answer = refused[0]
            self._command(b"QUIT", "", expect=0)
            raise self._refused(f"<{address.decode('utf-8', 'backslashreplace')}>", answer)
        self._command(b"DATA", "DATA", expect=3)
        for piece in order.message.wire(sender, order.full_name, network_name):
            self._socket.sendall(piece)
        self._socket.settimeout(FINAL_SECONDS)
        self._socket.sendall(b".\r\n")
        answer = self._reply("the reply to the message did not come; it may have been taken")
        if answer.code != 250:
            raise self._refused("the message", answer)
        queued = _QUEUED.search(answer.text)
        try:
            self._command(b"QUIT", "", expect=0)
        except (CommandFailed, OSError):
            pass  # the message is theirs; a hasty end changes nothing
        return Receipt(queued[1] if queued else "", answer.text, refused)

    def _addresses(
        self, order: Order, network_name: str, offered: set[str]
    ) -> tuple[bytes, list[bytes]]:
        """Sender and recipients, qualified by the network name, fit for the wire."""
        here = b"@" + network_name.encode("ascii", "backslashreplace")

        def qualified(address: bytes) -> bytes:
            return address + here if address and b"@" not in address else address

        sender = order.user.encode() if order.sender is None else order.sender
        addresses = [qualified(a) for a in [sender, *order.recipients]]
        for address in addresses:
            shown = address.decode("utf-8", "backslashreplace")
            if any(octet < 0x20 or octet == 0x7F for octet in address):
                raise CommandFailed(os.EX_USAGE, f"{shown!r} holds a control character")
            if not address.isascii() and "SMTPUTF8" not in offered:
                raise CommandFailed(
                    os.EX_DATAERR, f"{shown}: the MTA takes no internationalised addresses"
                )
        return addresses[0], list(dict.fromkeys(addresses[1:]))

    def _recipients(
        self, order: Order, recipients: Sequence[bytes], offered: set[str]
    ) -> list[tuple[bytes, Answer]]:
        parameters = b""
        if order.notify and "DSN" in offered:
            parameters = b" NOTIFY=" + order.notify.encode("ascii")
        refused = []
        for recipient in recipients:
            line = b"RCPT TO:<" + recipient + b">" + parameters
            answer = self._command(line, "", expect=0)
            if 400 <= answer.code < 500:
                shown = recipient.decode("utf-8", "backslashreplace")
                raise self._refused(f"<{shown}> (and nothing was sent)", answer)
            if answer.code not in {250, 251}:
                refused.append((recipient, answer))
        return refused

    def _command(self, line: bytes, what: str, expect: int = 2) -> Answer:
        """`expect`: the first digit of the reply, 0 for any. @raise CommandFailed."""
        self._socket.sendall(line + b"\r\n")
        answer = self._reply()
        if expect and answer.code // 100 != expect:
            raise self._refused(what, answer)
        return answer

    def _refused(self, what: str, answer: Answer) -> CommandFailed:
        return CommandFailed(exit_code_of(answer), f"{what} was refused: {answer.text}")

    def _reply(self, when_gone: str = "the MTA hung up") -> Answer:
        lines = []
        while True:
            line = self._file.readline(LONGEST_LINE)
            if not line:
                raise CommandFailed(os.EX_TEMPFAIL, when_gone)
            if not line[:3].isdigit() or line[3:4] not in {b" ", b"-", b"\r", b"\n"}:
                raise CommandFailed(os.EX_PROTOCOL, f"this is no SMTP reply: {neutral(line[:80])}")
            lines.append(neutral(line[4:].rstrip(b"\r\n")))
            if line[3:4] != b"-":
                return Answer(int(line[:3]), tuple(lines))
            if len(lines) > _MOST_LINES:
                raise CommandFailed(os.EX_PROTOCOL, "a reply has no end")


_MOST_LINES = 200


def _mail_parameters(order: Order, offered: set[str]) -> bytes:
    parameters = b""
    if "SIZE" in offered:
        parameters += b" SIZE=%d" % order.message.size_octets
    if not order.message.is_seven_bit and "8BITMIME" in offered:
        parameters += b" BODY=8BITMIME"
    addresses = [order.sender or b"", *order.recipients]
    if "SMTPUTF8" in offered and not all(a.isascii() for a in addresses):
        parameters += b" SMTPUTF8"
    if "DSN" in offered:
        if order.ret:
            parameters += b" RET=" + order.ret.encode("ascii")
        if order.envelope_id:
            parameters += b" ENVID=" + xtext(order.envelope_id)
    return parameters


def xtext(text: str) -> bytes:
    """RFC 3461 4."""
    octets = text.encode()
    return b"".join(
        bytes((o,)) if 0x21 <= o <= 0x7E and o not in b"+=" else b"+%02X" % o for o in octets
    )


def _own_name() -> str:
    """What a local program says in EHLO: the node's name, fit for the grammar."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip("-.")
    return name or "localhost"


LAST_REPLIES_SECONDS = 30.0


def pump(connected: socket.socket, source: int, target: int) -> None:
    """`sendmail -bs`: everything from descriptor `source` to the MTA, and back to `target`.

    After the end of `source` the replies that are still to come are waited for; half-closing would
    cost them, for the MTA takes it for the end of the connection.
    """
    import select

    inputs = [source, connected.fileno()]
    while True:
        ready, _, _ = select.select(
            inputs, [], [], None if source in inputs else LAST_REPLIES_SECONDS
        )
        if not ready:
            return
        if source in ready:
            octets = os.read(source, LONGEST_LINE)
            if octets:
                connected.sendall(octets)
            else:
                inputs.remove(source)
        if connected.fileno() in ready:
            octets = connected.recv(LONGEST_LINE)
            if not octets:
                return
            while octets:
                octets = octets[os.write(target, octets) :]
