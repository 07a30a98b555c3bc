"""The built-in policy `milter`: asks a mail filter (opendkim, rspamd, ...) about every message.

Law: the filter's word is final, and its silence is not: what it does not answer in time, or answers
wrongly, `on-failure` decides, and the next message asks it anew. One connection an association, and
none longer than it. The outage of a filter is one line in the log, and so is its end.

Sendmail's mail filter protocol, version 6 (mta/wire/milter). RFC 5321 4.2, RFC 8601 (what filters
say about a message: Authentication-Results).
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field
from zope.interface import implementer

from mta.interfaces import IContentEditor, ISurroundings, ITransaction
from mta.policy.milter_consultation import Answer, Consultation
from mta.policy.milter_outage import Outage
from mta.settings import Duration, Settings, WaitingSettings, parse_port

_LONGEST_PATH: Final = 107
"""Octets of a UNIX socket's path."""


def parse_filter_socket(value: Any) -> str:
    """`unix:/path` or `inet:ADDRESS:PORT`, as the service door wants it: `tcp:` for `inet:`."""
    text = str(value)
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest.startswith("/") and len(rest.encode()) <= _LONGEST_PATH:
        return text
    if kind in ("inet", "tcp"):
        host, _, port = rest.rpartition(":")
        try:
            address = ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
            where = f"[{address}]" if address.version == 6 else f"{address}"
            return f"tcp:{where}:{parse_port(port)}"
        except ValueError:
            pass
    raise ValueError(
        f"{text!r} is no filter's socket: write unix:/run/opendkim/opendkim.sock,"
        " inet:127.0.0.1:8891 or inet:[::1]:8891"
    )


class MilterTimeouts(Settings):
    """The `timeouts:` of a filter. A connection is opened for a command, never at the end."""

    connect: Duration = Field(
        default=10.0, gt=0.0, le=10.0, description="For the connection, and for what is agreed."
    )
    command: Duration = Field(
        default=30.0,
        gt=0.0,
        description="For all that the filter has to say to one command of the client, to the"
        " header, or to a piece of the body.",
    )
    end: Duration = Field(
        default=50.0,
        gt=0.0,
        description="For its word about the whole message. A filter that asks for more time gets"
        " it anew, until intake.policy-timeout (60s) has passed. That must be longer than this, and"
        " than connect and command together: behind it clients hear 451 whatever on-failure says.",
    )


class MilterSettings(WaitingSettings):
    """The keys of a `milter` policy."""

    socket: Annotated[str, BeforeValidator(parse_filter_socket)] = Field(
        description="Where the filter listens: unix:/run/opendkim/opendkim.sock, or"
        " inet:127.0.0.1:8891. Whole messages go there, unencrypted: elsewhere than on this node"
        " it belongs into a closed network.",
    )
    on_failure: Literal["tempfail", "accept", "reject"] = Field(
        default="tempfail",
        description="What becomes of a message that the filter does not answer: tempfail (451, it"
        " comes again), accept (it passes unfiltered), or reject (550).",
    )
    timeouts: MilterTimeouts = Field(
        default_factory=MilterTimeouts, description="How long the filter may take."
    )

    def longest_waits(self) -> dict[tuple[str, ...], float]:
        times = self.timeouts
        return {
            ("timeouts", "command"): times.connect + times.command,
            ("timeouts", "end"): times.end,
        }


@implementer(IContentEditor)
class Milter:
    """Keeps nothing of any one association: that is its Consultation's."""

    name = "milter"
    hooks = frozenset({
        *("connect", "helo", "unknown", "mail", "rcpt", "refused", "data"),
        *("headers", "body", "end", "abort", "disconnect"),
    })  # fmt: skip

    def __init__(self, settings: MilterSettings, surroundings: ISurroundings) -> None:
        self._settings = settings
        self._surroundings = surroundings
        self._outage = Outage(settings.socket, settings.on_failure, surroundings.telemetry)
        self._note = f"milter {settings.socket} {id(self):x}"
        """Each filter has one of its own, should one stand in the list twice."""

    def on(self, hook: str, transaction: ITransaction) -> Answer:
        notes = transaction.association_notes
        consultation: Consultation | None = notes.get(self._note)
        if consultation is None:
            if hook in ("abort", "disconnect"):
                return None
            consultation = notes[self._note] = Consultation(
                self._settings, self._surroundings, self._outage
            )
        if hook == "disconnect":
            del notes[self._note]
            consultation.leave()
        elif hook == "abort":
            consultation.abort()
        else:
            return consultation.ask(hook, transaction)
        return None
