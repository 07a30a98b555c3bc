"""The policy `limits` by user and by recipient: rates, and transactions open at once."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Fenced, Full
from mta.model import Address, PeerInfo
from mta.policy.allowance import Allowances, Places
from mta.policy.rate import (
    RECIPIENT_MESSAGES,
    RECIPIENT_TRANSACTIONS,
    USER_MESSAGES,
    USER_RECIPIENTS,
    USER_TRANSACTIONS,
    RateLimits,
    RateSettings,
    recipient_key,
)
from mta.testing.lab import STRANGER as OUTSIDE
from mta.testing.lab import Lab, LabClient
from mta.testing.policy_suite import IPolicyTests
from mta.testing.surroundings import MemorySurroundings
from tests.intake_ground import FRIEND, MESSAGE, STRANGER, House, address, begin, send

LIGHT = settings(max_examples=150, deadline=None, derandomize=True)
BOB = "bob@example.com"
CAROL = "carol@example.com"


class UserAndRecipientSuite(IPolicyTests, SynchronousTestCase):
    def build(self, surroundings: MemorySurroundings) -> RateLimits:
        keys = {"messages": 1, "transactions": 1}
        chosen = RateSettings.model_validate({"per-user": keys, "per-recipient": keys})
        return RateLimits(chosen, surroundings)


class Ground:
    """An intake with one policy `limits`, and users that come through a mail proxy."""

    def __init__(self, **keys: Any) -> None:
        self.surroundings = MemorySurroundings()
        chosen = RateSettings.model_validate({k.replace("_", "-"): v for k, v in keys.items()})
        self.policy = RateLimits(chosen, self.surroundings)
        self.house = House((self.policy,))

    def reception(self, user: str = "", host: str = FRIEND, uid: int | None = None) -> Any:
        reception = self.house.reception(host, uid=uid)
        if user:
            peer = PeerInfo("smtp/in/1", host, 40000, "192.0.2.10", 25, "smtp")
            assert reception.presented(peer, b"laptop", "ESMTP", user) is None
        return reception

    def refusals(self) -> dict[str, float]:
        """By kind, those that happened."""
        found = {}
        for (name, labels), counter in self.surroundings.telemetry.counters.items():
            if name == "mta_limits_refused_total" and counter.value:
                found[dict(labels)["kind"]] = counter.value
        return found


class UserTests(SynchronousTestCase):
    def test_messages(self) -> None:
        """A user has one allowance, from wherever and in whatever case the name comes."""
        ground = Ground(per_user={"messages": 2}, interval="60s")
        hosts = ("198.51.100.1", "198.51.100.2", "2001:db8::3")
        users = ("alice", "ALICE", "Alice")
        answers = [
            ground.reception(user, host).mail(address("a@b.net"), {})
            for user, host in zip(users, hosts, strict=True)
        ]
        self.assertEqual(answers, [None, None, USER_MESSAGES])
        self.assertIsNone(begin(ground.reception("dave", hosts[0]))[0])
        self.assertIsNone(begin(ground.reception())[0])
        ground.surroundings.advance(29.9)
        self.assertEqual(ground.reception("alice").mail(address("a@b.net"), {}), USER_MESSAGES)
        ground.surroundings.advance(0.1)
        self.assertIsNone(ground.reception("alice").mail(address("a@b.net"), {}))
        self.assertEqual(ground.refusals(), {"user-messages": 2})

    def test_recipients(self) -> None:
        """Recipients over a user's number wait, those before them are accepted."""
        ground = Ground(per_user={"recipients": 2})
        answers = begin(ground.reception("alice"), BOB, CAROL, "dan@example.com")
        self.assertEqual(answers, [None, None, None, USER_RECIPIENTS])

    def test_transactions(self) -> None:
        """As many at once as allowed; one that ended, however, makes room."""
        ground = Ground(per_user={"transactions": 1})
        first, second = ground.reception("alice"), ground.reception("alice", "198.51.100.2")
        self.assertIsNone(begin(first)[0])
        self.assertEqual(second.mail(address("a@b.net"), {}), USER_TRANSACTIONS)
        first.reset()
        self.assertIsNone(second.mail(address("a@b.net"), {}))
        second.closed("MAIL", "")
        self.assertEqual(send(first).code, 250)
        self.assertEqual(ground.policy.places, 0)

    def test_exempt(self) -> None:
        """Exempt users, exempt networks and local programs have none of these limits."""
        ground = Ground(per_user={"messages": 1, "exempt": ["News"]}, exempt=["192.0.2.0/24"])
        for reception in (
            ground.reception("news", STRANGER),
            ground.reception("alice", FRIEND),
            ground.reception("", "", uid=7),
        ):
            for _ in range(3):
                self.assertIsNone(reception.mail(address("a@b.net"), {}))
                reception.reset()


class RecipientTests(SynchronousTestCase):
    def test_messages(self) -> None:
        """A mail bomb waits, whoever throws it; the message's other recipients do not."""
        ground = Ground(per_recipient={"messages": 2})
        for host in ("198.51.100.1", "198.51.100.2"):
            self.assertEqual(begin(ground.reception("", host), BOB), [None, None])
        answers = begin(ground.reception("", "198.51.100.3"), BOB, CAROL)
        self.assertEqual(answers, [None, RECIPIENT_MESSAGES, None])
        ground.surroundings.advance(30)
        self.assertEqual(begin(ground.reception(), BOB), [None, None])
        self.assertEqual(ground.refusals(), {"recipient-messages": 1})

    def test_who_is_one_recipient(self) -> None:
        """Neither case nor needless quotes evade the limit; a subaddress is another address."""
        ground = Ground(per_recipient={"messages": 1})
        self.assertEqual(begin(ground.reception(), BOB), [None, None])
        for text in ("BOB@EXAMPLE.com", '"bob"@example.com', '"b\\ob"@example.com'):
            self.assertEqual(begin(ground.reception(), text)[1], RECIPIENT_MESSAGES)
        self.assertEqual(begin(ground.reception(), "bob+x@example.com"), [None, None])

    def test_named_twice(self) -> None:
        """One message is one message, however often it names its recipient."""
        ground = Ground(per_recipient={"messages": 2, "transactions": 1})
        reception = ground.reception()
        self.assertEqual(begin(reception, BOB, BOB, "BOB@example.com"), [None] * 4)
        reception.reset()
        self.assertEqual(begin(reception, BOB), [None, None])

    def test_transactions(self) -> None:
        """So many at once name one address; the next is told to come again."""
        ground = Ground(per_recipient={"transactions": 2})
        first, second, third = (ground.reception() for _ in range(3))
        self.assertEqual(begin(first, BOB), [None, None])
        self.assertEqual(begin(second, BOB), [None, None])
        self.assertEqual(begin(third, BOB, CAROL), [None, RECIPIENT_TRANSACTIONS, None])
        second.closed("RCPT", "")
        self.assertIsNone(third.rcpt(address(BOB), {}))

    def test_exempt(self) -> None:
        """The postmaster of any domain is always reached, and whom the operator named."""
        ground = Ground(per_recipient={"messages": 1, "exempt": ["Desk@EXAMPLE.com"]})
        for text in ("Postmaster@example.com", "desk@example.com"):
            for _ in range(3):
                self.assertEqual(begin(ground.reception(), text), [None, None])

    def test_settings(self) -> None:
        """An exempt recipient is a mail address, a number at least one."""
        for keys in ({"exempt": ["desk"]}, {"messages": 0}, {"transactions": -1}):
            with self.assertRaises(ValidationError):
                RateSettings.model_validate({"per-recipient": keys})

    @LIGHT
    @given(st.binary(max_size=40), st.binary(max_size=20))
    def test_any_address_has_a_key(self, local: bytes, domain: bytes) -> None:
        """Whatever octets an address has, it is one recipient in either case."""
        key = recipient_key(Address(local + b"@" + domain, domain))
        self.assertEqual(key, recipient_key(Address(local.swapcase() + b"@" + domain, domain)))


class WholeServerTests(SynchronousTestCase):
    def test_as_configured(self) -> None:
        """A server that is configured so refuses one recipient by name and sends to the other; a
        client that is cut off in the middle of its transaction leaves no place taken.
        """
        lab = Lab(
            more="""
policies:
  - policy: limits
    per-recipient: {messages: 2, transactions: 1}
"""
        )
        first, second = LabClient(lab, OUTSIDE), LabClient(lab, "198.51.100.8")
        self.assertTrue(first.begin(["bob@example.com"])[1].startswith(b"250"))
        replies = second.begin(["Bob@example.com", "carol@example.com"])
        self.assertEqual(
            replies[1], b"450 4.2.1 Too many messages at once for this recipient, try again later"
        )
        self.assertEqual([r[:3] for r in replies], [b"250", b"450", b"250", b"354"])
        self.assertTrue(second.pour(b"Subject: x\r\n\r\nHello\r\n.\r\n").startswith(b"250 2.0.0"))
        first.peer.abort()
        lab.settle()
        self.assertTrue(second.send(["bob@example.com"]).startswith(b"250 2.0.0"))
        self.assertEqual(
            second.send(["bob@example.com"]),
            b"450 4.2.1 Too many messages for this recipient, try again later",
        )
        lab.advance(30)
        self.assertTrue(second.send(["bob@example.com"]).startswith(b"250 2.0.0"))


class AllowanceTests(SynchronousTestCase):
    @LIGHT
    @given(
        st.integers(1, 9),
        st.lists(st.tuples(st.integers(0, 4), st.floats(0.0, 30.0)), max_size=80),
    )
    def test_never_more(self, number: int, steps: list[tuple[int, float]]) -> None:
        """In no stretch of an interval is more allowed than a burst and a refill."""
        allowances, now, taken = Allowances(60.0, (None, number), 5), 100.0, {}
        for key, pause in steps:
            now += pause
            self.assertTrue(allowances.spend(key, 0, now))
            if allowances.spend(key, 1, now):
                taken.setdefault(key, []).append(now)
        for times in taken.values():
            for at in times:
                within = sum(at <= t <= at + 60.0 for t in times)
                self.assertLessEqual(within, 2 * number)

    def test_bounded(self) -> None:
        """Ten thousand recipients cost the memory of a hundred, when a hundred was allowed."""
        allowances = Allowances(60.0, (1,), 100)
        for key in range(10_000):
            allowances.spend(key, 0, 1.0)
        self.assertEqual(len(allowances), 100)

    def test_nothing_is_counted(self) -> None:
        """Without a number there is always a place, and no memory of it."""
        places = Places(None)
        places.take("x")
        self.assertTrue(places.is_free("x"))
        places.give_back("x")
        self.assertEqual(len(places), 0)


class LeakTests(SynchronousTestCase):
    """Whatever happens to transactions, what is open is what is counted."""

    STEP = st.tuples(
        st.integers(0, 3),
        st.sampled_from(["mail", "rcpt", "reset", "send", "full", "fenced", "close", "again"]),
        st.sampled_from([BOB, "Bob@example.com", CAROL, "nobody@elsewhere.invalid"]),
    )

    def test_lost_sight(self) -> None:
        """A commit that nobody can vouch for ends its association, and so its places, once."""
        ground = Ground(per_user={"transactions": 1}, per_recipient={"transactions": 1})
        for _ in range(2):
            reception = ground.reception("alice")
            self.assertEqual(begin(reception, BOB, CAROL), [None] * 3)
            self.assertEqual(ground.policy.places, 3)
            self.finish(ground, reception, "fenced")
            self.assertEqual(ground.policy.places, 0)

    @LIGHT
    @example([(0, step, BOB) for step in ("mail", "rcpt", "fenced", "mail", "rcpt", "full")])
    @example([(1, step, CAROL) for step in ("mail", "rcpt", "again", "mail", "rcpt", "send")])
    @given(st.lists(STEP, max_size=60))
    def test_places(self, steps: list[tuple[int, str, str]]) -> None:
        """Places taken are those of the transactions that are open, at every step and at the end,
        by reset, refusal, acceptance, a store that fails, a lost tenure or a lost connection.
        """
        ground = Ground(
            per_user={"transactions": 2}, per_recipient={"transactions": 2}, connections=1000
        )
        users = ("alice", "Alice", "bob", "")
        receptions = [ground.reception(user) for user in users]
        opened: list[set[str] | None] = [None] * 4
        for index, step, recipient in steps:
            reception = receptions[index]
            if step == "close":
                reception.closed("DATA", "")
                receptions[index], opened[index] = ground.reception(users[index]), None
            elif step == "again":
                peer = PeerInfo("smtp/in/1", FRIEND, 40000, "192.0.2.10", 25, "smtp")
                reception.presented(peer, b"laptop", "ESMTP", users[index])
                opened[index] = None
            elif step == "mail" and opened[index] is None:
                name = users[index].lower()
                busy = sum(
                    o is not None and u.lower() == name for u, o in zip(users, opened, strict=True)
                )
                answer = reception.mail(address("a@example.net"), {})
                refused = bool(name) and busy >= 2
                self.assertEqual(answer, USER_TRANSACTIONS if refused else None)
                opened[index] = None if refused else set()
            elif step == "rcpt" and opened[index] is not None:
                key = recipient.lower()
                busy = sum(o is not None and key in o for o in opened)
                answer = reception.rcpt(address(recipient), {})
                if answer is None:
                    self.assertTrue(key in opened[index] or busy < 2)
                    opened[index].add(key)
                elif key not in {BOB, CAROL}:
                    self.assertNotEqual(answer, RECIPIENT_TRANSACTIONS)
                else:
                    self.assertEqual((answer, busy), (RECIPIENT_TRANSACTIONS, 2))
            elif step == "reset" and opened[index] is not None:
                reception.reset()
                opened[index] = None
            elif step in {"send", "full", "fenced"} and opened[index]:
                self.finish(ground, reception, step)
                opened[index] = None
                if step == "fenced":
                    receptions[index] = ground.reception(users[index])
            self.assertEqual(ground.policy.places, self.expected(users, opened))
        for reception in receptions:
            reception.closed("DATA", "")
        self.assertEqual(ground.policy.places, 0)

    def finish(self, ground: Ground, reception: Any, how: str) -> None:
        spool = ground.house.spool
        spool.commits_at_once = how == "send"
        self.assertIsNone(reception.data())
        reception.chunk(MESSAGE)
        answered = reception.end(None)
        if how == "full":
            spool.stagings[-1].broken(Full("no room"))
            self.assertEqual(self.successResultOf(answered).code, 452)
        elif how == "fenced":
            spool.stagings[-1].broken(Fenced("epoch 2 exists"))
            self.failureResultOf(answered, Fenced)
            reception.closed("DATA", "")
            return
        else:
            self.assertEqual(self.successResultOf(answered).code, 250)
        reception.acknowledged()

    def expected(self, users: tuple[str, ...], opened: list[set[str] | None]) -> int:
        pairs = list(zip(users, opened, strict=True))
        names = {user.lower() for user, o in pairs if o is not None and user}
        return len(names) + len(set().union(*(o for o in opened if o)))
