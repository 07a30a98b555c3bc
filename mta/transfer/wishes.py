"""What the parameters of MAIL and RCPT come to in an envelope.

Law: what a client declares counts only where its content bears it out: 8BITMIME for plain ASCII, or
SMTPUTF8 for a plain header, would only close ways that are open.

RFC 6152, RFC 3030 (BODY), RFC 3461 4 (NOTIFY, ORCPT, RET, ENVID), RFC 6531 (SMTPUTF8), RFC 4865
(HOLDFOR, HOLDUNTIL), RFC 8689 (REQUIRETLS), RFC 2852 (BY).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mta.model import Address, BodyType, Notify, Recipient, Reply, Requires
from mta.wire.dsn import original_recipient

TOO_LATE: Final = Reply(501, "5.5.4", (b"Its time (BY) would be over before it may go (HOLD...)",))
_NOTIFY: Final = {f.name.encode(): f for f in Notify if f.name}
_BODY_TYPES: Final = {b.value.encode(): b for b in BodyType}


class Wishes(NamedTuple):
    """See Envelope."""

    body_type: BodyType = BodyType.SEVEN_BIT
    envelope_id: bytes = b""
    ret_full: bool | None = None
    requires: Requires = Requires.NOTHING
    deferred_until: float | None = None


NO_WISHES: Final = Wishes()


def read_wishes(
    parameters: dict[bytes, bytes | None], wall: float, *, eight_bits: bool, plain_header: bool
) -> Wishes:
    """`eight_bits`: the content has some; `plain_header`: its header is ASCII."""
    body_type = _BODY_TYPES.get((parameters.get(b"BODY") or b"").upper(), BodyType.SEVEN_BIT)
    if not eight_bits and body_type is not BodyType.BINARY_MIME:
        body_type = BodyType.SEVEN_BIT
    ret = parameters.get(b"RET")
    requires = Requires.TLS if b"REQUIRETLS" in parameters else Requires.NOTHING
    if b"BY" in parameters:
        requires |= _time(parameters)[1]
    if b"SMTPUTF8" in parameters and not plain_header:
        requires |= Requires.UTF8  # addresses speak for themselves
    return Wishes(
        body_type,
        parameters.get(b"ENVID") or b"",
        None if ret is None else ret.upper() == b"FULL",
        requires,
        _deferred_until(parameters, wall),
    )


def read_time(parameters: dict[bytes, bytes | None], wall: float) -> float | Reply:
    """When the time that BY gives from MAIL on is over; or why it cannot be kept: the message is to
    wait until it would have to be returned.
    """
    seconds, mode = _time(parameters)
    over = wall + seconds
    if mode & Requires.IN_TIME and over <= (_deferred_until(parameters, wall) or 0.0):
        return TOO_LATE
    return over


def _time(parameters: dict[bytes, bytes | None]) -> tuple[int, Requires]:
    """BY has been checked: seconds, a semicolon, N or R, and T or nothing."""
    seconds, _, mode = (parameters[b"BY"] or b"").partition(b";")
    requires = Requires.IN_TIME if mode[:1] == b"R" else Requires.NOTHING
    return int(seconds), requires | Requires.TRACE if mode[1:] == b"T" else requires


def _deferred_until(parameters: dict[bytes, bytes | None], wall: float) -> float | None:
    """None too for what is over."""
    seconds, until = parameters.get(b"HOLDFOR"), parameters.get(b"HOLDUNTIL")
    moment = wall + int(seconds) if seconds else float(int(until)) if until else 0.0
    return moment if moment > wall else None


def candidate(named: Address, decided: Address, parameters: dict[bytes, bytes | None]) -> Recipient:
    """A recipient that a client has `named`, and who it is to us."""
    notify, original = Notify.UNSET, b""
    if parameters:
        original = parameters.get(b"ORCPT") or b""
        for word in (parameters.get(b"NOTIFY") or b"").upper().split(b","):
            notify |= _NOTIFY.get(word, Notify.UNSET)
    if decided is not named and not original:
        original = original_recipient(named.text)
    return Recipient(decided, notify, original)
