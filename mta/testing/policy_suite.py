"""What every policy must keep, ours and third parties'.

    class DelayTests(IPolicyTests, SynchronousTestCase):
        def build(self, surroundings):
            return Delay(DelaySettings(delay=5), surroundings)

The suite walks whole associations through the policy the way intake does, and asks: does it name
hooks that exist, answer only what a policy may answer, keep to its transaction, survive being asked
twice, and end when it is cancelled?
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.interfaces import IDeliveryPolicy, IPolicy
from mta.model import NULL_ADDRESS, Address, PeerInfo, Recipient, Reply
from mta.policy.chain import HOOKS, TOLD, Chain, policy_name
from mta.policy.transaction import Association, Transaction
from mta.telemetry import Notice, Transferred
from mta.testing.surroundings import MemorySurroundings

__all__ = ["IPolicyTests", "Walk", "sample_peers"]

PATIENCE_SECONDS = 300.0
"""How far the suite moves time for a policy that waits: no client waits longer."""


def sample_peers() -> tuple[PeerInfo, ...]:
    """Peers of each sort that a policy meets."""

    def peer(number: int, host: str, **keys: Any) -> PeerInfo:
        return PeerInfo(f"smtp/in/{number}", host, 40000, "192.0.2.10", 25, "smtp", **keys)

    return (
        peer(1, "198.51.100.7"),
        peer(2, "2001:db8:ffff::7"),
        peer(3, "::ffff:198.51.100.8"),
        peer(4, "192.0.2.77", tls="TLSv1.3 with cipher TLS_AES_256_GCM_SHA384"),
        peer(5, "", uid=1000),
    )


class Walk:
    """Asks one policy's hooks in the order in which intake does, for one message."""

    def __init__(self, policy: Any, peer: PeerInfo, surroundings: MemorySurroundings) -> None:
        self.policy = policy
        self.surroundings = surroundings
        self.association = Association(peer, admitted=peer.uid is not None)
        self.introduction = Transaction(self.association)
        self.answers: dict[str, Any] = {}

    def ask(self, hook: str, transaction: Transaction) -> Any:
        """The policy's answer, waited for in virtual time; None when it does not want the hook."""
        if hook not in self.policy.hooks:
            return None
        answer = self.policy.on(hook, transaction)
        if isinstance(answer, Deferred):
            results: list[Any] = []
            answer.addBoth(results.append)
            if not results:
                self.surroundings.advance(PATIENCE_SECONDS)
            if not results:
                raise AssertionError(f"{hook}: no answer within {PATIENCE_SECONDS:g} s")
            answer = results[0]
        self.answers[hook] = answer
        return answer

    def message(
        self,
        number: int = 1,
        sender: Address = NULL_ADDRESS,
        recipients: tuple[bytes, ...] = (b"b@example.com",),
        headers: bytes = b"Subject: x\r\n",
        body: tuple[bytes, ...] = (b"Hello\r\n", b"..\r\n"),
    ) -> Transaction:
        """One message through every hook, whatever the policy says to each."""
        self.ask("connect", self.introduction)
        self.association.helo, self.association.protocol = b"client.example.net", "ESMTP"
        self.ask("helo", self.introduction)
        self.association.line = b"XFOO bar"
        self.ask("unknown", self.introduction)
        transaction = Transaction(self.association, sender, {b"SIZE": b"100"})
        self.ask("mail", transaction)
        for text in recipients:
            transaction.recipient = Recipient(Address(text, text.rpartition(b"@")[2]))
            self.ask("rcpt", transaction)
            transaction.keep(transaction.recipient)
        self.ask("unknown", transaction)
        transaction.queue_id = f"{number:014X}"
        self.ask("data", transaction)
        transaction.headers = headers
        self.ask("headers", transaction)
        for piece in body:
            transaction.chunk = piece
            transaction.size_octets += len(piece)
            self.ask("body", transaction)
        self.ask("end", transaction)
        return transaction


class IPolicyTests:
    """Mix into a SynchronousTestCase and define `build`."""

    def build(self, surroundings: MemorySurroundings) -> Any:
        """A new policy, as its factory's `create` would make it."""
        raise AssertionError("a suite needs build(surroundings)")

    @property
    def _case(self) -> SynchronousTestCase:
        return cast(SynchronousTestCase, self)

    def _built(self) -> tuple[Any, MemorySurroundings]:
        surroundings = MemorySurroundings()
        return self.build(surroundings), surroundings

    def test_policy_contract(self) -> None:
        """It provides IPolicy, and has a name for the log."""
        policy, _ = self._built()
        verifyObject(IPolicy, policy)
        if IDeliveryPolicy.providedBy(policy):
            verifyObject(IDeliveryPolicy, policy)
        self._case.assertTrue(policy_name(policy))

    def test_policy_hooks_exist(self) -> None:
        """It wants at least one hook, and only hooks that are called."""
        policy, _ = self._built()
        self._case.assertIsInstance(policy.hooks, frozenset)
        self._case.assertLessEqual(policy.hooks, HOOKS)
        self._case.assertTrue(policy.hooks or IDeliveryPolicy.providedBy(policy))

    def test_policy_answers(self) -> None:
        """To whatever peer, sender and content, it answers nothing or a well-formed Reply."""
        for peer in sample_peers():
            for headers, body in (
                (b"Subject: x\r\n", (b"Hello\r\n",)),
                (b"", ()),
                (b"\xff\xfe: \x00\x1b[2J\r\n", (b"\x00" * 70_000, b"\r", b"\n")),
            ):
                for sender in (NULL_ADDRESS, Address(b'"q\xc3\xa9"@example.net', b"example.net")):
                    policy, surroundings = self._built()
                    walk = Walk(policy, peer, surroundings)
                    walk.message(1, sender, (b"b@example.com", b"c@example.com"), headers, body)
                    for hook, answer in walk.answers.items():
                        self._well_formed(hook, answer)

    def _well_formed(self, hook: str, answer: Any) -> None:
        if answer is None:
            return
        self._case.assertIsInstance(answer, Reply, f"{hook} answered {answer!r}")
        self._case.assertTrue(200 <= answer.code < 300 or 400 <= answer.code < 600, answer)
        for line in answer.lines:
            self._case.assertNotIn(b"\r", line)
            self._case.assertNotIn(b"\n", line)
        if answer.enhanced:
            self._case.assertEqual(answer.enhanced.split(".")[0], str(answer.code // 100))

    def test_policy_is_told(self) -> None:
        """queued, abort and disconnect raise nothing, for messages that it never saw too."""
        policy, surroundings = self._built()
        walk = Walk(policy, sample_peers()[0], surroundings)
        seen = walk.message()
        unseen = Transaction(walk.association)
        for hook in TOLD:
            for transaction in (seen, seen, unseen):
                walk.ask(hook, transaction)

    def test_policy_twice(self) -> None:
        """The same message may pass twice, and on another node: no second answer is an error."""
        policy, surroundings = self._built()
        for _ in range(2):
            walk = Walk(policy, sample_peers()[0], surroundings)
            walk.message(number=7)
            walk.ask("queued", walk.message(number=7))
            for hook, answer in walk.answers.items():
                self._well_formed(hook, answer)

    def test_policy_in_a_chain(self) -> None:
        """Behind the chain nothing of it becomes a fault: no plugin error is logged."""
        policy, surroundings = self._built()
        chain = Chain([policy], surroundings.clock, surroundings.telemetry)
        association = Association(sample_peers()[0], admitted=False)
        transaction = Transaction(association)
        transaction.recipient = Recipient(Address(b"b@example.com", b"example.com"))
        for hook in sorted(HOOKS):
            if hook in TOLD:
                chain.tell(hook, transaction)
                continue
            answer = chain.ask(hook, transaction)
            if isinstance(answer, Deferred):
                answer.addErrback(lambda failure: failure.trap(CancelledError))
                answer.cancel()
                self._case.assertTrue(answer.called, f"{hook} cannot be cancelled")
        chain.stop()
        faults = [e for e in surroundings.events if isinstance(e, Notice) and e.level == "error"]
        self._case.assertEqual(faults, [])

    def test_policy_hears_of_deliveries(self) -> None:
        """Outcomes of messages that it never saw are no error either."""
        policy, _ = self._built()
        if IDeliveryPolicy.providedBy(policy):
            policy.delivered(
                Transferred(
                    queue_id="00010000000001",
                    recipient=b"b@example.com",
                    original=b"",
                    connector="hub",
                    kind="smtp",
                    relay="hub[192.0.2.20]:25",
                    delay=1.0,
                    delays=(0.0, 0.0, 0.5, 0.5),
                    enhanced="2.0.0",
                    status="sent",
                    reply="250 2.0.0 Ok",
                    vip="192.0.2.10",
                    source="192.0.2.10",
                )
            )
