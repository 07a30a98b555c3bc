"""Policies: their order, their faults, their time, and the built-in `limits`."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, implementer
from zope.interface.verify import verifyObject

from mta.errors import PluginError
from mta.interfaces import IContentEditor, IDeliveryPolicy, IPolicy, ISigner, ITransaction
from mta.model import Address, PeerInfo, Reply, VirtualServer
from mta.policy.chain import ASKED, FAULT, HOOKS, TOLD, Chain, check_order
from mta.policy.greeting import GreetDelay, GreetDelaySettings
from mta.policy.rate import TOO_MANY, RateLimits, RateSettings
from mta.policy.relay import RelayRule
from mta.policy.stream import Stream
from mta.policy.transaction import Association, Transaction
from mta.routing.least_cost import LeastCostRouting
from mta.telemetry import Telemetry, Transferred
from mta.testing.clock import VirtualClock
from mta.testing.policy_suite import IPolicyTests, Walk, sample_peers
from mta.testing.surroundings import MemorySurroundings, virtual_addresses

NO = Reply(550, "5.7.1", (b"No",))
OK = Reply(250, "2.0.0", (b"Fine",))


@implementer(IPolicy)
class Saying:
    """Answers `answer` (called first, when it can be) to each of its hooks."""

    def __init__(self, name: str, answer: Any, *hooks: str, log: list[str] | None = None) -> None:
        self.name = name
        self.answer = answer
        self.hooks = frozenset(hooks or ("mail",))
        self.log = [] if log is None else log

    def on(self, hook: str, transaction: Any) -> Any:
        self.log.append(self.name)
        return self.answer() if callable(self.answer) else self.answer


@implementer(IDeliveryPolicy)
class Watching:
    hooks: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.error: Exception | None = None

    def on(self, hook: str, transaction: Any) -> None:
        raise AssertionError("no hook was wanted")

    def delivered(self, event: Any) -> None:
        self.heard.append(event)
        if self.error is not None:
            raise self.error


def transaction() -> Transaction:
    return Transaction(Association(sample_peers()[0], admitted=False))


class ChainTests(SynchronousTestCase):
    def chain(self, *policies: Any, seconds: float = 60.0) -> Chain:
        self.clock = VirtualClock()
        self.telemetry = Telemetry()
        self.events: list[Any] = []
        self.telemetry.attach(self.events.append)
        return Chain(policies, self.clock, self.telemetry, seconds)

    def test_order(self) -> None:
        """Policies are asked in the order of the configuration, until one refuses."""
        log: list[str] = []
        chain = self.chain(
            Saying("one", None, log=log),
            Saying("other hook", NO, "rcpt", log=log),
            Saying("two", NO, log=log),
            Saying("three", None, log=log),
        )
        self.assertEqual(chain.ask("mail", transaction()), NO)
        self.assertEqual(log, ["one", "two"])

    def test_positive_reply(self) -> None:
        """A policy that accepts spares the message the later ones, at that hook."""
        log: list[str] = []
        chain = self.chain(Saying("one", OK, log=log), Saying("two", NO, log=log))
        self.assertIsNone(chain.ask("mail", transaction()))
        self.assertEqual(log, ["one"])

    def test_nobody_wants_it(self) -> None:
        """Hooks that nobody named ask nobody and wait for nothing."""
        chain = self.chain(Saying("one", NO, "rcpt"))
        self.assertTrue(chain.wants("mail", "rcpt"))
        self.assertFalse(chain.wants(*(HOOKS - {"rcpt"})))
        for hook in (*ASKED, *TOLD):
            if hook != "rcpt":
                self.assertIsNone(chain.ask(hook, transaction()))

    def test_order_with_waiting_ones(self) -> None:
        """A policy that waits holds back those behind it, wherever it stands."""
        for position in range(3):
            log: list[str] = []
            waits: Deferred[Any] = Deferred()
            policies = [Saying(str(i), None, log=log) for i in range(3)]
            policies[position].answer = waits
            answer = self.chain(*policies).ask("mail", transaction())
            self.assertNoResult(answer)
            self.assertEqual(log, [str(i) for i in range(position + 1)])
            waits.callback(None)
            self.assertIsNone(self.successResultOf(answer))
            self.assertEqual(log, ["0", "1", "2"])
            self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_later_refusals(self) -> None:
        """What a policy says later counts as what it says at once."""
        for first, second, expected in (
            (succeed(NO), None, NO),
            (succeed(OK), NO, None),
            (succeed(None), succeed(NO), NO),
            (succeed(None), NO, NO),
            (succeed(None), OK, None),
        ):
            chain = self.chain(Saying("one", first), Saying("two", second))
            self.assertEqual(self.successResultOf(chain.ask("mail", transaction())), expected)

    def test_faults(self) -> None:
        """A policy that raises or talks nonsense costs that command a 451, and the log names it."""

        def explode() -> None:
            raise ZeroDivisionError("secret insides")

        for answer in (
            explode,
            fail(ZeroDivisionError("secret insides")),
            "yes",
            succeed("yes"),
            Reply(354, "", (b"Go on",)),
            Reply(199, "", (b"?",)),
            Reply(700, "", (b"?",)),
        ):
            for ahead in (None, succeed(None)):
                chain = self.chain(Saying("ahead", ahead), Saying("broken", answer))
                got = chain.ask("mail", transaction())
                got = self.successResultOf(got) if isinstance(got, Deferred) else got
                if isinstance(answer, Reply) and answer.is_positive:
                    self.assertIsNone(got)
                    continue
                self.assertEqual(got, FAULT)
                self.assertNotIn(b"secret", got.lines[0])
                (notice,) = self.events
                self.assertEqual((notice.level, notice.room), ("error", "policy"))
                self.assertIn("policy broken, hook mail", notice.text)
                counter = self.telemetry.counter("mta_policy_errors_total", policy="broken")
                self.assertEqual(counter.value, 1.0)
                if isinstance(answer, Deferred):
                    break  # a fired Deferred answers once

    def test_reply_text_is_neutralised(self) -> None:
        """A policy cannot, by foreign text, write lines of its own into the dialogue."""
        chain = self.chain(Saying("one", Reply(550, "5.7.1", (b"You said x\r\n250 Ok\x1b[2J",))))
        reply = chain.ask("mail", transaction())
        self.assertEqual(reply, Reply(550, "5.7.1", (b"You said x  250 Ok [2J",)))

    def test_time_limit(self) -> None:
        """A policy that never answers costs its minute and not the association."""
        cancelled: list[Any] = []
        chain = self.chain(Saying("slow", lambda: Deferred(cancelled.append)), seconds=60)
        answer = chain.ask("mail", transaction())
        self.clock.advance(59.9)
        self.assertNoResult(answer)
        self.clock.advance(0.1)
        self.assertEqual(self.successResultOf(answer), FAULT)
        self.assertEqual(len(cancelled), 1)
        self.assertIn("policy slow, hook mail: it did not answer: 60 s", self.events[0].text)

    def test_cancelled(self) -> None:
        """When the association ends the policy is cancelled, and nothing is logged as its fault."""
        cancelled: list[Any] = []
        chain = self.chain(
            Saying("one", succeed(None)), Saying("slow", lambda: Deferred(cancelled.append))
        )
        answer = chain.ask("mail", transaction())
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertEqual((len(cancelled), self.events), (1, []))
        self.assertEqual(self.clock.reactor.getDelayedCalls(), [])

    def test_told(self) -> None:
        """Everyone hears what happened, whatever the others do with it."""
        log: list[str] = []

        def explode() -> None:
            raise ZeroDivisionError

        late: Deferred[Any] = Deferred()
        chain = self.chain(
            *(
                Saying(name, answer, "queued", log=log)
                for name, answer in (("a", NO), ("b", explode), ("c", late), ("d", "nonsense"))
            )
        )
        chain.tell("queued", transaction())
        self.assertEqual(log, ["a", "b", "c", "d"])
        late.errback(ZeroDivisionError())
        self.assertEqual(len(self.events), 2)

    def test_stop(self) -> None:
        """With the tenure ends what policies still did for messages gone by."""
        cancelled: list[Any] = []
        chain = self.chain(Saying("slow", lambda: Deferred(cancelled.append), "queued"))
        chain.tell("queued", transaction())
        chain.stop()
        self.assertEqual((len(cancelled), self.events), (1, []))

    def test_deliveries(self) -> None:
        """A policy that asked for it hears of every outcome until the end; its faults are logged."""
        watching = Watching()
        verifyObject(IDeliveryPolicy, watching)
        chain = self.chain(watching)
        event = Transferred(
            *("Q1", b"b@example.com", b"", "hub", "smtp", "hub[192.0.2.20]:25", 1.0),
            *((0.0, 0.0, 0.5, 0.5), "2.0.0", "sent", "250 Ok", "192.0.2.10", "192.0.2.10"),
        )
        self.telemetry.event(event)
        self.telemetry.notice("info", "x", "y")
        watching.error = ZeroDivisionError("oh")
        self.telemetry.event(event)
        self.assertEqual(watching.heard, [event, event])
        self.assertIn("policy Watching, delivered", self.events[-1].text)
        chain.stop()
        self.telemetry.event(event)
        self.assertEqual(len(watching.heard), 2)

    def test_order_of_signers(self) -> None:
        """Whoever changes content behind one that signs is refused by both names, whatever their
        factories say.
        """
        signer, editor, other = Saying("seal", None), Saying("edit", None), Saying("other", None)
        directlyProvides(signer, ISigner)
        directlyProvides(editor, IContentEditor)
        check_order([editor, editor, other, signer, other])  # type: ignore[list-item]
        with self.assertRaises(PluginError) as caught:
            check_order([other, signer, other, editor])  # type: ignore[list-item]
        self.assertIn("policy edit may change what seal has signed", str(caught.exception))
        self.assertIn("put seal behind it", str(caught.exception))

    def test_unknown_hook(self) -> None:
        """A misspelt hook refuses the start with the name that was meant."""
        with self.assertRaises(PluginError) as caught:
            self.chain(Saying("typo", None, "recpt"))
        self.assertIn("did it mean rcpt?", str(caught.exception))
        self.assertIn("policy typo", str(caught.exception))


class StreamTests(SynchronousTestCase):
    @given(
        waits=st.lists(st.booleans(), min_size=6, max_size=6),
        order=st.lists(st.booleans(), max_size=12),
    )
    @settings(max_examples=100, deadline=None, derandomize=True)
    def test_pieces_stay_in_order(self, waits: list[bool], order: list[bool]) -> None:
        """However long a policy thinks, it sees the pieces of a message in order, each once."""
        seen: list[bytes] = []
        pending: list[Deferred[Any]] = []
        plan = iter(waits)

        @implementer(IPolicy)
        class Slow:
            hooks = frozenset({"headers", "body"})

            def on(self, hook: str, t: Any) -> Any:
                seen.append(t.chunk)
                if next(plan):
                    pending.append(Deferred())
                    return pending[-1]
                return None

        t = transaction()
        stream = Stream(Chain([Slow()], VirtualClock(), Telemetry()), t)
        pieces = [b"", b"1", b"2", b"3", b"4", b"5"]
        fed = iter(pieces)
        pauses = []
        for feed in order:
            if feed:
                piece = next(fed, None)
                if piece is not None:
                    pauses.append(stream.feed("body" if piece else "headers", piece))
            elif pending:
                pending.pop(0).callback(None)
        for piece in fed:
            pauses.append(stream.feed("body" if piece else "headers", piece))
        while pending:
            pending.pop(0).callback(None)
        self.assertEqual(seen, pieces)
        self.assertIsNone(stream.idle())
        for pause in pauses:
            if pause is not None:
                self.assertIsNone(self.successResultOf(pause))

    def test_refused_in_the_middle(self) -> None:
        """After a refusal no policy is asked about the rest."""
        saying = Saying("one", Deferred(), "body")
        t = transaction()
        stream = Stream(Chain([saying], VirtualClock(), Telemetry()), t)
        stream.feed("body", b"1")
        pause = stream.feed("body", b"2")
        saying.answer.callback(NO)
        self.assertIsNone(self.successResultOf(pause))
        self.assertEqual((stream.refusal, saying.log), (NO, ["one"]))
        self.assertIsNone(stream.feed("body", b"3"))
        self.assertEqual(saying.log, ["one"])


class TransactionTests(SynchronousTestCase):
    def test_contract(self) -> None:
        """What policies are handed is what the contract says."""
        verifyObject(ITransaction, transaction())

    @given(name=st.binary(max_size=20), value=st.binary(max_size=60))
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_added_headers_stay_in_their_lines(self, name: bytes, value: bytes) -> None:
        """A header field that a policy adds cannot end the header or add another field."""
        t = transaction()
        try:
            t.add_header(name, value)
        except ValueError:
            self.assertEqual(t.added, b"")
            return
        self.assertTrue(t.added.startswith(name + b": "))
        self.assertTrue(t.added.endswith(b"\r\n"))
        lines = t.added[:-2].split(b"\r\n")
        self.assertTrue(all(line[:1] in (b" ", b"\t") and line.strip() for line in lines[1:]))
        self.assertFalse(set(t.added.replace(b"\r\n", b"")) & {0, 10, 13, 27, 127})

    def test_folding_is_kept(self) -> None:
        """A value that was folded by whoever made it stays as it is: it may be signed so."""
        t = transaction()
        t.add_header(b"X-Signed", b"v=1;\n\t b=abc\n  def\nghi \r\n")
        self.assertEqual(t.added, b"X-Signed: v=1;\r\n\t b=abc\r\n  def\r\n\tghi\r\n")

    def test_misuse(self) -> None:
        """A change at the wrong time is an error with a name, not a surprise."""
        t = transaction()
        self.assertRaises(ValueError, t.replace_recipient, Address(b"x@y", b"y"))
        self.assertRaises(ValueError, t.set_recipients, [])
        self.assertRaises(ValueError, t.add_header, b"Bad Name", b"x")

    def test_notes(self) -> None:
        """A policy's notes live as long as the message, or as the association."""
        association = Association(sample_peers()[0], admitted=False)
        one, two = Transaction(association), Transaction(association)
        one.notes["x"] = one.association_notes["y"] = 1
        self.assertEqual((two.notes, two.association_notes), ({}, {"y": 1}))


class RelayRuleTests(SynchronousTestCase):
    def test_without_connectors(self) -> None:
        """Without any connector even the admitted hear that there is no way, in fitting codes."""
        server = VirtualServer("vs1.example.org", virtual_addresses("192.0.2.10"))
        rule = RelayRule(LeastCostRouting(()), Address(b"pm@example.org", b"example.org"), server)
        target = Address(b"x@example.com", b"example.com")
        self.assertEqual(rule.decide(target, admitted=True).code, 550)
        self.assertEqual(rule.decide(target, admitted=False).code, 554)
        self.assertEqual(
            rule.decide(Address(b"Postmaster@vs1.example.org", b"vs1.example.org"), False).text,
            b"pm@example.org",
        )


class RateLimitsSuite(IPolicyTests, SynchronousTestCase):
    def build(self, surroundings: MemorySurroundings) -> RateLimits:
        return RateLimits(RateSettings(connections=1, messages=1, recipients=1), surroundings)


class RateLimitsTests(SynchronousTestCase):
    def limits(self, **keys: Any) -> RateLimits:
        self.surroundings = MemorySurroundings()
        return RateLimits(RateSettings(**keys), self.surroundings)

    def say(self, policy: RateLimits, hook: str, host: str, uid: int | None = None) -> Any:
        peer = PeerInfo("smtp/in/1", host, 1, "192.0.2.10", 25, "smtp", uid=uid)
        walk = Walk(policy, peer, self.surroundings)
        return walk.ask(hook, walk.introduction)

    def test_each_limit(self) -> None:
        """Over a limit the client is asked to come again; others are not touched."""
        for kind, (hook, key) in enumerate(
            (("connect", "connections"), ("mail", "messages"), ("rcpt", "recipients"))
        ):
            policy = self.limits(**{key: 3})
            answers = [self.say(policy, hook, "198.51.100.7") for _ in range(4)]
            self.assertEqual(answers, [None, None, None, TOO_MANY[kind]])
            self.assertIsNone(self.say(policy, hook, "198.51.100.8"))

    def test_refill(self) -> None:
        """An allowance refills evenly, and is full again after one interval."""
        policy = self.limits(messages=3, interval="60s")
        for _ in range(3):
            self.say(policy, "mail", "198.51.100.7")
        self.surroundings.advance(19.9)
        self.assertIsNotNone(self.say(policy, "mail", "198.51.100.7"))
        self.surroundings.advance(0.1)
        self.assertIsNone(self.say(policy, "mail", "198.51.100.7"))
        self.assertIsNotNone(self.say(policy, "mail", "198.51.100.7"))
        self.surroundings.advance(60)
        answers = [self.say(policy, "mail", "198.51.100.7") for _ in range(4)]
        self.assertEqual(answers[:3], [None, None, None])
        self.assertIsNotNone(answers[3])

    def test_who_is_one_client(self) -> None:
        """IPv6 clients count by /64, mapped ones as IPv4; local users and exempt networks do not."""
        policy = self.limits(messages=1, exempt=[ip_network("192.0.2.0/24")])
        self.assertIsNone(self.say(policy, "mail", "2001:db8::1"))
        self.assertIsNotNone(self.say(policy, "mail", "2001:db8::ffff"))
        self.assertIsNone(self.say(policy, "mail", "2001:db8:0:1::1"))
        self.assertIsNone(self.say(policy, "mail", "198.51.100.7"))
        self.assertIsNotNone(self.say(policy, "mail", "::ffff:198.51.100.7"))
        for _ in range(3):
            self.assertIsNone(self.say(policy, "mail", "192.0.2.5"))
            self.assertIsNone(self.say(policy, "mail", "", uid=7))

    def test_bounded(self) -> None:
        """Ten thousand clients cost the memory of a hundred, when a hundred was allowed."""
        policy = self.limits(clients=100)
        for i in range(10_000):
            self.say(policy, "mail", f"10.0.{i >> 8}.{i & 255}")
        self.assertEqual(policy.clients, 100)


class GreetDelayTests(IPolicyTests, SynchronousTestCase):
    """Strangers wait for the greeting, for as long as was said; friends do not."""

    def build(self, surroundings: MemorySurroundings) -> GreetDelay:
        return GreetDelay(GreetDelaySettings(delay=5), surroundings)

    def test_who_waits(self) -> None:
        surroundings = MemorySurroundings()
        policy = self.build(surroundings)
        stranger, friend = (
            Transaction(Association(sample_peers()[0], admitted)) for admitted in (False, True)
        )
        self.assertIsNone(policy.on("connect", friend))
        waiting = policy.on("connect", stranger)
        assert waiting is not None
        surroundings.clock.advance(4.9)
        self.assertNoResult(waiting)
        surroundings.clock.advance(0.1)
        self.assertIsNone(self.successResultOf(waiting))
