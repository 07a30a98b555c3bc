"""XCLIENT: who speaks in the place of whom, what is believed of it, and what begins anew."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mta.admin.lines import PostfixLines
from mta.association.smtp_settings import LmtpListenerSettings, SubmissionListenerSettings
from mta.errors import TenureRevoked
from mta.interfaces import IAuthenticatingReception, IPresentedReception
from mta.model import UNKNOWN_HOST, FourTuple, PeerInfo, Reply
from mta.policy.milter_words import Words
from mta.policy.transaction import Association, Transaction
from mta.telemetry import Accepted, Connected, Disconnected, Notice, Rejected
from mta.testing.network import MemoryPeer
from mta.wire.smtp.grammar import DOMAIN_LIMIT, Refused, encode_xtext
from mta.wire.smtp.xclient import ANNOUNCEMENT, Attributes, parse_xclient
from tests.intake_ground import FRIEND, STRANGER, House, Recorder, begin, send
from tests.test_smtp_in import VIP, ResponderTestCase, ScriptedHost, ScriptedReception

LIGHT = settings(max_examples=300, deadline=None, derandomize=True)
PROXY = "203.0.113.5"
CLIENT = "198.51.100.77"
NOT_YOU = Reply(554, "5.7.1", (b"Not you",))

hosts = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
ports = st.integers(0, 0xFFFF)
labels = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
logins = st.text(min_size=1, max_size=60).filter(
    lambda text: text.isprintable() and text.upper() != "[UNAVAILABLE]"
)


def literal(host: IPv4Address | IPv6Address) -> bytes:
    return (f"IPV6:{host}" if host.version == 6 else str(host)).encode()


class ParserTests(SynchronousTestCase):
    @LIGHT
    @given(st.data())
    def test_what_is_said_is_read(self, data: Any) -> None:
        """Attributes in any order and any case, in xtext, are read as they were meant."""
        host, far = data.draw(hosts), data.draw(hosts)
        port, far_port = data.draw(ports), data.draw(ports)
        name, login = data.draw(names), data.draw(logins)
        helo = data.draw(st.from_regex(r"[A-Za-z0-9.-]{1,100}", fullmatch=True)).encode()
        protocol = data.draw(st.sampled_from(["SMTP", "ESMTP"]))
        words = {
            b"NAME": (name.encode(), ("name", name)),
            b"ADDR": (literal(host), ("host", plain(host))),
            b"PORT": (b"%d" % port, ("port", port)),
            b"PROTO": (protocol.encode(), ("protocol", protocol)),
            b"HELO": (helo, ("helo", helo)),
            b"LOGIN": (login.encode(), ("login", login)),
            b"DESTADDR": (literal(far), ("destination_host", plain(far))),
            b"DESTPORT": (b"%d" % far_port, ("destination_port", far_port)),
        }
        chosen = data.draw(st.lists(st.sampled_from(sorted(words)), unique=True, min_size=1))
        lower = data.draw(st.booleans())
        argument = b" ".join(
            (key.lower() if lower else key) + b"=" + encode_xtext(words[key][0]) for key in chosen
        )
        expected = Attributes(**dict(words[key][1] for key in chosen))
        self.assertEqual(parse_xclient(argument), expected)

    @LIGHT
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.text("NAMEADRPOTHLGISV6:=[]+0123456789. abf", max_size=120).map(str.encode),
            st.tuples(st.sampled_from(ANNOUNCEMENT.split()[1:]), st.binary(max_size=80)).map(
                lambda said: said[0] + b"=" + encode_xtext(said[1])
            ),
        )
    )
    def test_whatever_is_said(self, argument: bytes) -> None:
        """It is refused with 501, or nothing of it can break a line, a log or a header; an address
        is one.
        """
        try:
            said = parse_xclient(argument)
        except Refused as refused:
            self.assertEqual((refused.reply.code, refused.reply.enhanced), (501, "5.5.4"))
            return
        for text in (said.name, said.host, said.login, said.destination_host):
            self.assertTrue((text or "").isprintable(), text)
        for host in (said.host, said.destination_host):
            if host not in (None, UNKNOWN_HOST):
                self.assertEqual(host, plain(hosts_of(host)))
        for port in (said.port, said.destination_port):
            self.assertIn(port or 0, range(0x10000))
        self.assertTrue(said.helo.isascii() and said.helo.decode().isprintable())
        self.assertNotIn(b" ", said.helo)
        self.assertLessEqual(len(said.helo), DOMAIN_LIMIT)

    def test_unencoded(self) -> None:
        """What is no xtext is taken as it stands, as Postfix does: nginx encodes nothing."""
        for said, login in (
            (b"anna+b@example.net", "anna+b@example.net"),
            (b"anna+2Bb@example.net", "anna+b@example.net"),
            (b"anna=b", "anna=b"),
            (b"anna+", "anna+"),
        ):
            self.assertEqual(parse_xclient(b"LOGIN=" + said).login, login)

    def test_announced(self) -> None:
        """EHLO names what is understood, as Postfix does."""
        expected = b"XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
        self.assertEqual(ANNOUNCEMENT, expected)


def hosts_of(text: str) -> IPv4Address | IPv6Address:
    return IPv6Address(text) if ":" in text else IPv4Address(text)


def plain(host: IPv4Address | IPv6Address) -> str:
    return str(getattr(host, "ipv4_mapped", None) or host)


@implementer(IPresentedReception, IAuthenticatingReception)
class PresentedReception(ScriptedReception):
    mechanisms = ()

    def __init__(self) -> None:
        super().__init__()
        self.admitted = False
        self.presented_peers: list[PeerInfo] = []

    def presented(self, peer: PeerInfo, helo: bytes, protocol: str, user: str) -> Any:
        self.presented_peers.append(peer)
        self.admitted = peer.host == FRIEND or bool(user)
        self.heard.append(f"presented {peer.label} {helo.decode()} {protocol} {user}".rstrip())
        return self._next("presented")

    def auth(self, mechanism: str, initial: bytes | None) -> None:
        self.heard.append("auth")

    def auth_response(self, response: bytes | None) -> None:
        self.heard.append("auth_response")


class PresentingHost(ScriptedHost):
    def reception(self, tenure: Any, peer: PeerInfo) -> ScriptedReception:
        self.peers.append(peer)
        reception = PresentedReception()
        reception.answers = self.answers
        self.receptions.append(reception)
        return reception


class ListenerTests(ResponderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.host = PresentingHost()
        self.surroundings.telemetry.attach(self.line)
        self.lines: list[str] = []

    def line(self, event: Any) -> None:
        if isinstance(event, Notice):
            self.lines.append(event.text)

    def proxied(self, port: int = 25, **keys: Any) -> MemoryPeer:
        self.listener = self.listen(port=port, xclient_from=[f"{PROXY}/32"], **keys)
        peer = self.dial(PROXY, port)
        peer.take()
        return peer

    def test_named(self) -> None:
        """The reception hears of the client; the socket's ends stay known, whatever was named."""
        peer = self.proxied()
        self.assertIn(b"250-XCLIENT NAME ADDR", self.say(peer, b"EHLO proxy\r\n"))
        said = self.say(
            peer,
            b"XCLIENT NAME=spike.example.net ADDR=198.51.100.77 PORT=40001"
            b" DESTADDR=203.0.113.99 DESTPORT=2525 HELO=spike LOGIN=alice PROTO=ESMTP\r\n",
        )
        self.assertEqual(said, b"220 bridgehead.example.org ESMTP\r\n")
        reception = self.host.receptions[0]
        (met,) = reception.presented_peers
        self.assertEqual((met.host, met.port, met.name), (CLIENT, 40001, "spike.example.net"))
        self.assertEqual((met.local_host, met.local_port, met.listener), (VIP, 25, "smtp:25"))
        there = peer.transport.getHost()  # type: ignore[union-attr]
        self.assertEqual(met.ends, FourTuple(VIP, 25, PROXY, there.port))
        self.assertEqual(
            reception.heard[2:], ["presented spike.example.net[198.51.100.77] spike ESMTPA alice"]
        )
        self.assertIn("smtp/in/", self.lines[-1])
        self.assertTrue(
            self.lines[-1].endswith(
                f"XCLIENT from unknown[{PROXY}]: client=spike.example.net[{CLIENT}]:40001,"
                " proto=ESMTP, helo=<spike>, sasl_username=alice, destination=203.0.113.99,"
                " destination_port=2525"
            ),
            self.lines,
        )
        # It named itself: mail may follow at once, and it may hold its messages as users may.
        self.assertTrue(self.say(peer, b"MAIL FROM:<a@x.org>\r\n").startswith(b"250 "))

    def test_the_client_is_no_proxy(self) -> None:
        """Who was named is asked again for each: a client outside xclient-from is offered none."""
        peer = self.proxied()
        self.say(peer, b"XCLIENT ADDR=198.51.100.77\r\n")
        self.assertNotIn(b"XCLIENT", self.say(peer, b"EHLO spike\r\n"))
        self.assertTrue(self.say(peer, b"XCLIENT ADDR=127.0.0.1\r\n").startswith(b"550 5.7.0 "))
        self.assertEqual(len(self.host.receptions[0].presented_peers), 1)

    def test_several(self) -> None:
        """Several commands add up, until one names an address."""
        peer = self.proxied()
        for said in (
            b"PORT=40001",
            b"NAME=spike.example.net",
            b"HELO=spike",
            b"ADDR=198.51.100.77",
        ):
            self.assertTrue(self.say(peer, b"XCLIENT %b\r\n" % said).startswith(b"220 "))
        met = self.host.receptions[0].presented_peers[-1]
        self.assertEqual((met.label, met.port), (f"spike.example.net[{CLIENT}]", 40001))
        self.assertEqual(met.ends.peer_host, PROXY)
        self.assertTrue(self.say(peer, b"MAIL FROM:<a@x.org>\r\n").startswith(b"503 "))

    def test_nobody_else(self) -> None:
        """From anywhere else it is refused, and so it is where nothing is configured."""
        self.proxied()
        for source, port in (("198.51.100.7", 25), (PROXY, 26)):
            if port == 26:
                self.listen(port=26)
            peer = self.dial(source, port)
            peer.take()
            self.assertNotIn(b"XCLIENT", self.say(peer, b"EHLO x\r\n"))
            answer = self.say(peer, b"XCLIENT ADDR=127.0.0.1\r\n")
            self.assertEqual(answer, b"550 5.7.0 Not for you to say who your client is\r\n")
            self.assertEqual(self.host.receptions[-1].presented_peers, [])

    def test_behind_a_balancer(self) -> None:
        """It is the client that a balancer named who may say XCLIENT, not the balancer."""
        self.listen(proxy_from=["203.0.113.6/32"], xclient_from=[f"{PROXY}/32"])
        for client, code in ((PROXY, b"220 "), (CLIENT, b"550 ")):
            peer = self.dial("203.0.113.6")
            self.say(peer, b"PROXY TCP4 %b 192.0.2.10 40001 25\r\n" % client.encode())
            self.assertTrue(self.say(peer, b"XCLIENT PORT=1\r\n").startswith(code))
        met = self.host.receptions[0].presented_peers[0]
        self.assertEqual((met.host, met.port, met.ends.peer_host), (PROXY, 1, "203.0.113.6"))

    def test_offers(self) -> None:
        """CHECKPOINT and FUTURERELEASE are offered to whom they are for, by the client's address."""
        peer = self.proxied(checkpoint_from=[f"{CLIENT}/32"])
        first = self.say(peer, b"EHLO proxy\r\n")
        self.say(peer, b"XCLIENT ADDR=198.51.100.77 LOGIN=alice\r\n")
        named = self.say(peer, b"EHLO spike\r\n")
        for word in (b"CHECKPOINT", b"FUTURERELEASE"):
            self.assertEqual((word in first, word in named), (False, True), word)

    def test_limits(self) -> None:
        """The client is counted, not the proxy; one that has his share is told 421 and let go."""
        limits = {"connections": 10, "connections-per-client": 2}
        peers = [self.proxied(limits=limits)]
        for _ in range(2):
            self.say(peers[-1], b"XCLIENT ADDR=198.51.100.77\r\n")
            peers.append(self.dial(PROXY))
            peers[-1].take()
        said = self.say(peers[-1], b"XCLIENT ADDR=198.51.100.77\r\n")
        self.assertTrue(said.startswith(b"421 4.7.0 Too many connections"), said)
        self.assertFalse(peers[-1].is_open)
        self.assertIn(f"2 connections from {CLIENT} are open", self.lines[-1])
        other = self.dial(PROXY)
        self.assertIn(b"220 ", self.say(other, b"XCLIENT ADDR=198.51.100.78\r\n"))
        for peer in (*peers, other):
            peer.close()
        self.clock.advance(0)
        self.assertEqual((self.listener.open_associations, self.listener._clients), (0, {}))

    def test_same_client(self) -> None:
        """Who names nobody new has no second share to pay."""
        peer = self.proxied(limits={"connections": 10, "connections-per-client": 1})
        self.assertTrue(self.say(peer, b"XCLIENT HELO=x\r\n").startswith(b"220 "))

    def test_pipelined(self) -> None:
        """Nothing behind it is looked at before the new greeting; a policy may take its time."""
        peer = self.proxied()
        greeting = self.deferred("presented")
        said = self.say(peer, b"XCLIENT ADDR=198.51.100.77\r\nEHLO spike\r\nNOOP\r\n")
        self.assertEqual((said, self.heard[-1][:9]), (b"", "presented"))
        greeting.callback(None)
        said = self.say(peer, b"")
        self.assertTrue(said.startswith(b"220 ") and said.endswith(b"250 2.0.0 Ok\r\n"), said)

    def test_early_talker(self) -> None:
        """Where early talkers are refused, so is who talks behind it before the new greeting."""
        for port, rest, code in ((25, b"", b"220 "), (26, b"EHLO spike\r\n", b"554 ")):
            peer = self.proxied(port, early_talkers="refuse")
            self.say(peer, b"EHLO proxy\r\n")
            said = self.say(peer, b"XCLIENT ADDR=198.51.100.77\r\n" + rest)
            self.assertTrue(said.startswith(code), said)

    def test_refused(self) -> None:
        """A client that is not wanted hears so in the place of the greeting, and all is over."""
        for port, answer in ((25, NOT_YOU), (26, RuntimeError("broken"))):
            peer = self.proxied(port)
            self.host.answers["presented"] = [answer]
            said = self.say(peer, b"XCLIENT ADDR=198.51.100.77\r\nNOOP\r\n")
            code = b"554 5.7.1 Not you\r\n" if answer is NOT_YOU else b"421 4.3.0 "
            self.assertTrue(said.startswith(code), said)
            self.assertEqual((said.count(b"\r\n"), peer.is_open), (1, False))

    def test_revoked(self) -> None:
        """When the tenure has ended nothing is said, and the connection is reset."""
        peer = self.proxied()
        self.host.answers["presented"] = [TenureRevoked("presented", "gone")]
        self.assertEqual(self.say(peer, b"XCLIENT ADDR=198.51.100.77\r\n"), b"")
        self.assertFalse(peer.is_open)

    def test_gone_meanwhile(self) -> None:
        """A client that goes while a policy thinks is not waited for."""
        peer = self.proxied()
        cancelled: list[Any] = []
        self.host.answers["presented"] = [Deferred(cancelled.append)]
        self.say(peer, b"XCLIENT ADDR=198.51.100.77\r\n")
        peer.close()
        self.clock.advance(0)
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.heard[-1], "closed XCLIENT: xclient=1 commands=1")

    def test_reception_without(self) -> None:
        """Where the inner house cannot begin anew it is not offered."""
        self.host = ScriptedHost()
        peer = self.proxied()
        self.assertNotIn(b"XCLIENT", self.say(peer, b"EHLO x\r\n"))

    def test_settings(self) -> None:
        """Everybody is no proxy, at any kind of listener."""
        for kind in (LmtpListenerSettings, SubmissionListenerSettings):
            got = kind.model_validate({"xclient-from": ["192.0.2.5/32"]})
            self.assertEqual(len(got.xclient_from), 1)
            for wrong in ("0.0.0.0/0", "::/0"):
                error = self.assertRaises(
                    ValueError, kind.model_validate, {"xclient-from": [wrong]}
                )
                self.assertIn("is everybody", str(error))


class ReceptionTests(SynchronousTestCase):
    """What the inner house makes of it."""

    def house(self, *policies: Any) -> House:
        made = House(policies)
        self.socket = FourTuple("192.0.2.10", 25, PROXY, 50001)
        return made

    def present(self, house: House, reception: Any, host: str = CLIENT, **keys: Any) -> Any:
        said = {"helo": b"", "protocol": "SMTP", "user": "", **keys}
        name = f"smtp/in/{house.associations}"
        peer = PeerInfo(
            name, host, 40001, "192.0.2.10", 25, "smtp", via=self.socket, name=said.pop("name", "")
        )
        return reception.presented(peer, *said.values())

    def test_contract(self) -> None:
        verifyObject(IPresentedReception, self.house().reception())

    def test_relay(self) -> None:
        """Who may relay is judged by the client: the proxy neither lends its rights nor takes them;
        and a user is one by the proxy's word.
        """
        for host, user, code in ((CLIENT, "", 554), (FRIEND, "", None), (CLIENT, "alice", None)):
            house = self.house()
            reception = house.reception(STRANGER if host == FRIEND else FRIEND)
            self.assertIsNone(self.present(house, reception, host, user=user))
            reception.helo(b"spike", "ESMTP")
            answer = begin(reception, "b@secret.example.com")[1]
            self.assertEqual(None if answer is None else answer.code, code, (host, user))

    def test_anew(self) -> None:
        """A transaction, a user and a name of the proxy's are the client's no more."""
        house = self.house()
        reception = house.reception(STRANGER)
        self.present(house, reception, user="alice", helo=b"spike")
        self.present(house, reception)
        self.assertFalse(reception.admitted)
        association = reception._association
        self.assertEqual((association.helo, association.user), (b"", ""))

    def test_log_and_received(self) -> None:
        """Log, Received and envelope name the client as Postfix does, and who it is by XCLIENT."""
        house = self.house()
        reception = house.reception(FRIEND)
        self.present(
            house, reception, name="spike.example.net", helo=b"spike", protocol="ESMTPA", user="al"
        )
        send(reception)
        reception.closed("", "commands=1")
        (accepted,) = house.kinds(Accepted)
        named = f"spike.example.net[{CLIENT}]"
        self.assertEqual(
            (accepted.client, accepted.sasl_method, accepted.sasl_username, accepted.protocol),
            (named, "XCLIENT", "al", "ESMTPA"),
        )
        lines = [line for event in house.events for line in text_of(event)]
        self.assertTrue(any(f": client={named}, vip=192.0.2.10" in line for line in lines), lines)
        self.assertTrue(any(f"disconnect from {named} " in line for line in lines), lines)
        self.assertEqual(len(house.kinds(Connected)), 1)  # one connection was made, and one ended
        self.assertEqual(len(house.kinds(Disconnected)), 1)
        stored = house.spool.stagings[-1].stored
        self.assertIn(
            b"Received: from spike (spike.example.net [%b])\r\n\tby vs1.example.org with ESMTPA\r\n"
            % CLIENT.encode(),
            stored,
        )

    def test_nameless(self) -> None:
        """A client of which nothing is known is `unknown`, in Postfix's words, and may not relay."""
        house = self.house()
        reception = house.reception(FRIEND)
        self.present(house, reception, UNKNOWN_HOST, helo=b"spike", protocol="ESMTP")
        self.assertEqual(begin(reception, "b@secret.example.com")[1].code, 554)
        reception.reset()
        send(reception)
        self.assertIn(b"from spike ([unknown])\r\n", house.spool.stagings[-1].stored)
        lines = [line for event in house.kinds(Accepted) for line in text_of(event)]
        self.assertIn("client=unknown[unknown],", lines[0])

    def test_journal(self) -> None:
        """One association it stays: the journal has the socket, once, and its end."""
        house = self.house()
        reception = house.reception(FRIEND)
        self.present(house, reception)
        opened, *rest = house.spool.journal_lines
        self.assertEqual((opened.split()[0], rest), ("open", []))
        reception.closed("", "commands=1")
        self.assertTrue(house.spool.journal_lines[1].startswith("close"))

    def test_policies(self) -> None:
        """Policies lose the proxy and meet the client: connect, auth and helo are asked of it."""
        recorder = Recorder("connect", "auth", "helo", "disconnect")
        house = self.house(recorder)
        reception = house.reception(FRIEND)
        for user, helo, expected in (
            ("", b"", ["disconnect", "connect"]),
            ("alice", b"spike", ["disconnect", "connect", "auth", "helo"]),
        ):
            recorder.asked.clear()
            self.assertIsNone(self.present(house, reception, user=user, helo=helo))
            self.assertEqual(recorder.asked, expected)
        recorder.asked.clear()
        reception.closed("", "")
        self.assertEqual(recorder.asked, ["disconnect"])

    def test_policies_refuse(self) -> None:
        """The first that refuses decides, at once or late, and the log says whom it was."""
        for hook in ("connect", "auth", "helo"):
            for is_late in (False, True):
                waiting: Deferred[Reply | None] = Deferred()
                answers: dict[str, Any] = {hook: waiting if is_late else NOT_YOU}
                house = self.house(Recorder(**answers), Recorder("helo"))
                reception = house.intake.reception(house.tenure, PeerInfo(
                    "smtp/in/0", FRIEND, 1, "192.0.2.10", 25, "smtp"))  # fmt: skip
                answer = self.present(house, reception, user="alice", helo=b"spike")
                if is_late:
                    self.assertNoResult(answer)
                    waiting.callback(NOT_YOU)
                    answer = self.successResultOf(answer)
                self.assertEqual(answer, NOT_YOU)
                (rejected,) = house.kinds(Rejected)
                self.assertEqual((rejected.client, rejected.stage), (CLIENT, "CONNECT"))

    def test_late_policies_agree(self) -> None:
        """A policy that takes its time for each question is asked the next one after it."""
        waiting: list[Deferred[Reply | None]] = []

        def ask(_: Any) -> Deferred[Reply | None]:
            waiting.append(Deferred())
            return waiting[-1]

        house = self.house(Recorder(auth=ask, helo=ask))
        answer = self.present(house, house.intake.reception(house.tenure, PeerInfo(
            "smtp/in/0", FRIEND, 1, "192.0.2.10", 25, "smtp")), user="alice", helo=b"x")  # fmt: skip
        for number in (1, 2):
            self.assertEqual(len(waiting), number)
            self.assertNoResult(answer)
            waiting[-1].callback(None)
        self.assertIsNone(self.successResultOf(answer))

    def test_milter(self) -> None:
        """A filter is told the client's name, and of one without an address that it has none."""
        words = Words("vs1.example.org")
        for host, name, expected in (
            (CLIENT, "spike.example.net", (b"spike.example.net", CLIENT, 40001)),
            (CLIENT, "", (b"[198.51.100.77]", CLIENT, 40001)),
            (UNKNOWN_HOST, "", (b"unknown", "", 0)),
        ):
            peer = PeerInfo("smtp/in/1", host, 40001, VIP, 25, "smtp", name=name)
            told = words.of(Transaction(Association(peer, False)))
            self.assertEqual(told.client, expected)
            self.assertEqual(told.connect[b"{client_name}"], name.encode() or b"unknown")


def text_of(event: Any) -> list[str]:
    return PostfixLines("mta", "node", 42).lines(1_800_000_000.0, 1, event)
