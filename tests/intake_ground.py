"""An intake with everything around it in a test's hands."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from zope.interface import implementer

from mta.interfaces import IPolicy
from mta.model import (
    Address,
    AddressSpace,
    Connector,
    Envelope,
    Intent,
    MessageState,
    PeerInfo,
    VirtualServer,
)
from mta.routing.least_cost import LeastCostRouting
from mta.telemetry import Telemetry
from mta.testing.clock import VirtualClock
from mta.testing.surroundings import MemoryTenure, virtual_addresses
from mta.transfer.intake import Intake, IntakeSettings
from tests.scripted_spool import ScriptedSpool

SERVER = VirtualServer("vs1.example.org", virtual_addresses("192.0.2.10", "2001:db8::10"))
POSTMASTER = Address(b"hostmaster@example.com", b"example.com")
CONNECTORS = (
    Connector(
        "hub",
        "smtp",
        (
            AddressSpace(b"example.com", accept_anyone=True),
            AddressSpace(b"secret.example.com"),
            AddressSpace(b"*.example.net"),
        ),
    ),
)
MESSAGE = b"From: <a@example.net>\r\nMessage-ID: <1@example.net>\r\n\r\nHello.\r\n"
WALL = 1_800_000_000.0
STRANGER = "198.51.100.7"
FRIEND = "192.0.2.77"


def address(text: str) -> Address:
    octets = text.encode()
    return Address(octets, octets.rpartition(b"@")[2].lower() if b"@" in octets else b"")


class Kept:
    """An association that is kept for a message, as the queue would keep it."""

    def __init__(self, intent: Intent) -> None:
        self.intent = intent
        self.is_given_back = False

    def give_back(self) -> None:
        self.is_given_back = True


class House:
    """An intake with everything around it in the test's hands."""

    def __init__(
        self, policies: tuple[Any, ...] = (), authenticator: Any = None, **keys: Any
    ) -> None:
        self.spool = ScriptedSpool()
        self.clock = VirtualClock(WALL)
        self.telemetry = Telemetry()
        self.events: list[Any] = []
        self.telemetry.attach(self.events.append)
        self.offered: list[tuple[str, Envelope, MessageState]] = []
        self.order: list[str] = []
        self.reserves = False
        self.reservations: list[Kept] = []
        self.used: list[Kept] = []
        self.tenure = MemoryTenure("vs1.example.org")
        self.intake = Intake(
            self.spool,
            LeastCostRouting(CONNECTORS),
            policies,
            self,
            self.clock,
            self.telemetry,
            IntakeSettings(**keys),
            POSTMASTER,
            SERVER,
            authenticator=authenticator,
        )
        self.intake.admit = {"smtp": (ip_network("192.0.2.0/24"), ip_network("2001:db8:1::/48"))}
        self.associations = 0

    def reserve(self, queue_id: str, envelope: Envelope, state: MessageState) -> Any:
        if not self.reserves:
            return None
        self.reservations.append(Kept(Intent(queue_id, "smtp/out/1", (0,), "192.0.2.20:25")))
        return self.reservations[-1]

    def offer(
        self, queue_id: str, envelope: Envelope, state: MessageState, reservation: Any
    ) -> None:
        self.order.append(f"offer {queue_id}")
        self.offered.append((queue_id, envelope, state))
        if reservation is not None:
            self.used.append(reservation)

    def reception(
        self, host: str = FRIEND, *, uid: int | None = None, helo: bytes = b"client.example.net"
    ) -> Any:
        self.associations += 1
        peer = PeerInfo(
            association=f"smtp/in/{self.associations}",
            host=host,
            port=40000,
            local_host="192.0.2.10",
            local_port=25,
            listener="smtp",
            uid=uid,
        )
        reception = self.intake.reception(self.tenure, peer)
        reception.connected()
        reception.helo(helo, "ESMTP")
        return reception

    def kinds(self, kind: type) -> list[Any]:
        return [event for event in self.events if type(event) is kind]


def begin(
    reception: Any,
    *recipients: str,
    sender: str = "a@example.net",
    parameters: dict[bytes, bytes | None] | None = None,
) -> list[Any]:
    """MAIL and RCPTs; their answers."""
    answers = [reception.mail(address(sender), parameters or {})]
    return answers + [reception.rcpt(address(r), {}) for r in recipients or ("b@example.com",)]


def send(reception: Any, content: bytes = MESSAGE, *recipients: str, **keys: Any) -> Any:
    """One whole message; what `end` answered, unwrapped when it fired."""
    answers = begin(reception, *recipients, **keys)
    assert set(answers) == {None}, answers
    assert reception.data() is None
    reception.chunk(content)
    answered = reception.end(None)
    return answered.result if answered.called else answered


@implementer(IPolicy)
class Recorder:
    """Answers what a test put down for a hook, and remembers what it was asked."""

    def __init__(self, *hooks: str, **answers: Any) -> None:
        self.hooks = frozenset(hooks or answers)
        self.answers = answers
        self.asked: list[str] = []
        self.seen: list[Any] = []

    def on(self, hook: str, transaction: Any) -> Any:
        self.asked.append(hook)
        self.seen.append((transaction.headers, transaction.chunk))
        answer = self.answers.get(hook)
        return answer(transaction) if callable(answer) else answer
