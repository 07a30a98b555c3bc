"""LIMITS (RFC 9422): what servers announce is heeded, and what we take is announced."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import Address, OutcomeKind
from mta.telemetry import Transferred
from mta.testing.lab import HUB, Lab
from mta.wire.smtp.client import Initiator
from mta.wire.smtp.client_limits import PeerLimits, peer_limits
from mta.wire.smtp.client_states import Prepared
from mta.wire.smtp.limits import Limits

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
ONE_BY_ONE = f"""
connectors:
  - name: hub
    kind: smtp
    bridgeheads: ["{HUB}:25"]
    concurrency: 1
    address-spaces:
      - {{domain: example.com, accept: anyone}}
queue: {{jitter: 0, backoff: [5m, 10m]}}
"""
CROWD = [f"u{n}@example.com" for n in range(250)]
PIPELINED = (b"PIPELINING", b"8BITMIME")
SENDER = Address(b"a@example.net", b"example.net")


class ParserTests(SynchronousTestCase):
    @LIGHT
    @given(st.binary(max_size=200))
    def test_whatever_is_said(self, parameters: bytes) -> None:
        """Any octets are limits or none, within 1 to 999999, and never an error."""
        found = peer_limits(parameters)
        for number in (found.transactions, found.recipients):
            self.assertIn(number, range(1_000_000))

    @LIGHT
    @given(
        st.integers(1, 999_999),
        st.integers(1, 999_999),
        st.lists(st.from_regex(rb"[A-LN-QS-Z][A-Z0-9_-]{0,9}(=[!-:<-~]{1,9})?", fullmatch=True)),
        st.randoms(use_true_random=False),
    )
    def test_among_others(self, mails: int, rcpts: int, others: list[bytes], chance) -> None:  # type: ignore[no-untyped-def]
        """Both are found in any order and case, whatever else stands beside them."""
        words = [b"MAILMAX=%d" % mails, b"rcptMAX=%d" % rcpts, *others]
        chance.shuffle(words)
        self.assertEqual(peer_limits(b" ".join(words)), PeerLimits(mails, rcpts))

    @LIGHT
    @given(
        st.sampled_from([b"RCPTMAX", b"MAILMAX"]),
        st.one_of(
            st.from_regex(rb"0[0-9]{0,5}", fullmatch=True),
            st.from_regex(rb"[1-9][0-9]{6,20}", fullmatch=True),
            st.from_regex(rb"[0-9]{0,3}[!-/:-~\x80-\xff][0-9]{0,2}", fullmatch=True),
            st.just(b""),
        ),
    )
    def test_malformed(self, name: bytes, value: bytes) -> None:
        """Zero, a leading zero, seven digits or anything but digits is as good as not said."""
        self.assertEqual(peer_limits(b"%b=%b" % (name, value)), PeerLimits())
        self.assertEqual(peer_limits(name), PeerLimits())

    @LIGHT
    @given(st.integers(1, 999_999))
    def test_ours(self, most: int) -> None:
        """What we announce is what we read in others' words."""
        (word,) = Limits(recipients=most).words
        keyword, _, parameters = word.partition(b" ")
        self.assertEqual(keyword, b"LIMITS")
        self.assertEqual(peer_limits(parameters), PeerLimits(0, most))

    def test_none_to_announce(self) -> None:
        """A number that has no place in RFC 9422 is not announced."""
        self.assertEqual((Limits(recipients=1_000_000).words, Limits(recipients=0).words), ((), ()))


class MachineTests(SynchronousTestCase):
    @LIGHT
    @given(
        st.integers(1, 8),
        st.lists(st.sampled_from([b"250", b"450", b"452", b"550"]), min_size=1, max_size=20),
        st.sampled_from([b"250", b"450", b"550"]),
        st.booleans(),
    )
    def test_each_recipient_once(
        self, most: int, replies: list[bytes], mail: bytes, pipelines: bool
    ) -> None:
        """Whatever is answered, no more than RCPTMAX are offered, nobody has two outcomes, and who
        has none before the content was accepted.
        """
        machine = Initiator(b"x")
        machine.receive(b"220 mx\r\n")
        last = b"250 PIPELINING\r\n" if pipelines else b"250 SIZE\r\n"
        machine.receive(b"250-mx\r\n250-LIMITS RCPTMAX=%d\r\n" % most + last)
        machine.take_output()
        to = [(n, Address(b"u%d@y" % n, b"y")) for n in range(len(replies))]
        happened = machine.prepare("1", SENDER, to, 10, False)
        offered = 0
        while not happened:
            said = machine.take_output()
            self.assertTrue(said, "the machine waits and has said nothing")
            for line in said.split(b"\r\n")[:-1]:
                reply = {b"MAIL": mail, b"DATA": b"354"}.get(line[:4], b"250")
                if line.startswith(b"RCPT"):
                    reply, offered = replies[offered], offered + 1
                if mail != b"250" and line.startswith((b"RCPT", b"DATA")):
                    reply = b"503"
                happened += machine.receive(reply + b" said\r\n")
        self.assertLessEqual(offered, most)
        (prepared,) = happened
        assert isinstance(prepared, Prepared)
        settled = [outcome.recipient for outcome in prepared.outcomes]
        self.assertEqual(len(settled), len(set(settled)))
        if mail == b"250":
            accepted = {n for n in range(offered) if replies[n] == b"250"}
            self.assertEqual(set(settled), set(range(len(replies))) - accepted)
            later = {o.recipient for o in prepared.outcomes if o.next_transfer}
            self.assertLessEqual(set(range(most, len(replies))), later)
        else:
            kind = OutcomeKind.DEFERRED if mail == b"450" else OutcomeKind.FAILED
            self.assertEqual({o.kind for o in prepared.outcomes}, {kind})
            self.assertEqual(set(settled), set(range(len(replies))))


class PathTests(SynchronousTestCase):
    def lab(self, limits: bytes, extensions: tuple[bytes, ...] = PIPELINED) -> Lab:
        lab = Lab(more=ONE_BY_ONE)
        lab.hub.extensions = (*extensions, b"LIMITS " + limits)
        return lab

    def associations(self, lab: Lab) -> list[list[bytes]]:
        """The commands of each, in order; the connector has one at a time."""
        found: list[list[bytes]] = []
        for line in lab.hub.commands:
            if line.startswith(b"EHLO"):
                found.append([])
            found[-1].append(line)
        return found

    def assert_each_once(self, lab: Lab, sizes: list[int]) -> None:
        """The crowd has the message once each, in transactions of these sizes; nobody was offered
        twice, deferred, or is left.
        """
        self.assertEqual([len(m.recipients) for m in lab.hub.messages], sizes)
        offered = [line for line in lab.hub.commands if line.startswith(b"RCPT")]
        self.assertEqual(len(offered), len(CROWD))
        got = [r.decode() for m in lab.hub.messages for r in m.recipients]
        self.assertEqual(sorted(got), sorted(CROWD))
        told = lab.owner.kinds(Transferred)
        self.assertEqual(sorted(e.recipient.decode() for e in told), sorted(CROWD))
        self.assertEqual({e.status for e in told}, {"sent"})
        self.assertEqual(lab.queue(), [])

    def test_crowd(self) -> None:
        """250 recipients at RCPTMAX=100: three transactions over one association, each recipient in
        one of them, and the server has to say no to none.
        """
        for extensions in (PIPELINED, (b"8BITMIME",)):
            lab = self.lab(b"RCPTMAX=100", extensions)
            self.assertIn(b"250 2.0.0", lab.send(CROWD))
            lab.advance(1)
            self.assert_each_once(lab, [100, 100, 50])
            self.assertEqual(len(lab.hub.sources), 1)

    def test_crowd_and_few_transactions(self) -> None:
        """With MAILMAX=1 besides, each of the three has an association that ends with QUIT."""
        lab = self.lab(b"RCPTMAX=100 MAILMAX=1")
        lab.send(CROWD)
        lab.advance(1)
        self.assert_each_once(lab, [100, 100, 50])
        for commands in self.associations(lab):
            self.assertEqual(sum(c.startswith(b"MAIL") for c in commands), 1)
            self.assertEqual(commands[-1], b"QUIT")
        self.assertEqual((len(lab.hub.sources), lab.hub.open), (3, 0))

    def test_mailmax_of_mail_at_hand(self) -> None:
        """Five messages wait for a server with MAILMAX=2: two, two and one, none of them in vain."""
        for extensions in (PIPELINED, (b"8BITMIME",)):
            lab = self.lab(b"MAILMAX=2", extensions)
            lab.hub.answer("GREETING", b"421 4.3.2 Not now")
            for n in range(5):
                lab.send([f"u{n}@example.com"])
            lab.hub.mend()
            lab.hub.commands.clear()
            lab.advance(700)
            self.assertEqual(
                [sum(c.startswith(b"MAIL") for c in said) for said in self.associations(lab)],
                [2, 2, 1],
            )
            self.assertEqual([said[-1] for said in self.associations(lab)], [b"QUIT"] * 3)
            self.assertEqual(sorted(m.recipients for m in lab.hub.messages), [
                (b"u%d@example.com" % n,) for n in range(5)
            ])  # fmt: skip
            self.assertEqual(lab.queue(), [])

    def test_mailmax_of_mail_that_comes(self) -> None:
        """Mail that comes one by one: behind the second message the association is not kept for a
        third, but ended at once.
        """
        lab = self.lab(b"MAILMAX=2")
        for n in range(3):
            lab.send([f"u{n}@example.com"])
            self.assertEqual(lab.hub.open, 0 if n == 1 else 1)
        self.assertEqual(len(lab.hub.messages), 3)
        self.assertEqual(len(lab.hub.sources), 2)
        self.assertEqual(self.associations(lab)[0][-1], b"QUIT")

    def test_announced(self) -> None:
        """Our own listeners say RCPTMAX, and it is their `limits.recipients`."""
        passwords = os.path.abspath(self.mktemp())
        with open(passwords, "wb"):
            os.chmod(passwords, 0o600)
        listeners = "".join(
            f"  - {{kind: {kind}, port: {port}, limits: {{recipients: {port}}}{more}}}\n"
            for kind, port, more in (
                ("smtp", 25, ""),
                ("lmtp", 24, ""),
                ("submission", 587, ", auth: clear, tls: none"),
            )
        )
        auth = f"auth: {{kind: passwords, password-file: {passwords}}}\n"
        lab = Lab(more=f"listeners:\n{listeners}{auth}")
        for port, verb in ((25, b"EHLO"), (24, b"LHLO"), (587, b"EHLO")):
            said = lab.client(port=port).say(verb + b" x")
            self.assertIn(b"250-LIMITS RCPTMAX=%d\r\n" % port, said)
