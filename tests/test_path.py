"""One message's whole path, in memory: accepted, queued, routed, sent, reported, or refused."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from mta.interfaces import IPolicy
from mta.model import Reply
from mta.spool.epoch import SLOT_OCTETS
from mta.telemetry import Accepted, Disconnected, Rejected, Removed, Reported, Transferred
from mta.testing.lab import FRIEND, HUB, MESSAGE, STRANGER, VIRTUAL_ADDRESS, Lab
from mta.testing.sink import DROP

STEADY = "queue: {jitter: 0, lifetime: 5d, bounce-lifetime: 1d, backoff: [5m, 10m]}\n"


class Path:
    """Tests that hold over every store; mixed into one case for each."""

    spool = "memory"

    def lab(self: Any, nodes: str = "a", **keys: Any) -> Lab:
        return Lab(nodes, **{"spool": self.spool, "more": STEADY} | keys)

    def test_relayed(self: Any) -> None:
        """A message goes from its client to the next hop, octet by octet, from the virtual
        address, with one Received before it, and nothing of it stays.
        """
        lab = self.lab()
        content = b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\nend\r\n"

        reply = lab.send(["you@example.com", "two@example.com"], content=content)

        (accepted,) = lab.owner.kinds(Accepted)
        self.assertEqual(reply, b"250 2.0.0 Ok: queued as " + accepted.queue_id.encode())
        (sunk,) = lab.hub.messages
        self.assertEqual(
            (sunk.sender, sunk.recipients, sunk.source, sunk.helo),
            (
                b"me@example.net",
                (b"you@example.com", b"two@example.com"),
                VIRTUAL_ADDRESS,
                b"vs1.example.org",
            ),
        )
        received, _, rest = sunk.content.partition(b"Subject:")
        self.assertEqual(b"Subject:" + rest, content)
        self.assertEqual(received.count(b"Received:"), 1)
        self.assertIn(b"by vs1.example.org with ESMTP", received)
        self.assertIn(accepted.queue_id.encode(), received)
        self.assertEqual([e.status for e in lab.owner.kinds(Transferred)], ["sent", "sent"])
        self.assertEqual([e.queue_id for e in lab.owner.kinds(Removed)], [accepted.queue_id])
        self.assertEqual(lab.queue(), [])

    def test_many_over_one_association(self: Any) -> None:
        """A client that sends many messages has each answered, in order, and all arrive."""
        lab = self.lab()
        client = lab.client()
        replies = [
            client.send([f"{i}@example.com"], content=b"Subject: %d\r\n\r\nx\r\n" % i)
            for i in range(20)
        ]
        self.assertEqual({r[:3] for r in replies}, {b"250"})
        self.assertEqual(len(set(replies)), 20)
        self.assertEqual(
            sorted(m.recipients[0] for m in lab.hub.messages),
            sorted(b"%d@example.com" % i for i in range(20)),
        )

    def test_big_message(self: Any) -> None:
        """A message of 3 MiB crosses unchanged."""
        lab = self.lab()
        content = b"Subject: big\r\n\r\n" + b"".join(
            b".%070d\r\n" % i for i in range(3 * 1024 * 1024 // 73)
        )
        self.assertEqual(lab.send(content=content)[:3], b"250")
        lab.advance(1)
        self.assertTrue(lab.hub.messages[0].content.endswith(content))
        self.assertEqual(lab.queue(), [])

    def test_deferral_and_retry(self: Any) -> None:
        """A transient refusal is retried when its pause is over: not before, and not later."""
        lab = self.lab()
        lab.hub.answer(".", b"451 4.3.0 Later", times=2)
        lab.send()
        (first,) = lab.owner.kinds(Transferred)
        self.assertEqual((first.status, first.enhanced), ("deferred", "4.3.0"))
        (entry,) = lab.queue()
        self.assertEqual(entry.state.attempts, 1)

        lab.advance(299.9)
        self.assertEqual(len(lab.owner.kinds(Transferred)), 1)
        lab.advance(0.1)
        self.assertEqual(len(lab.owner.kinds(Transferred)), 2)
        lab.advance(599.9)
        self.assertEqual(len(lab.owner.kinds(Transferred)), 2)
        lab.advance(0.1)

        self.assertEqual(
            [e.status for e in lab.owner.kinds(Transferred)], ["deferred", "deferred", "sent"]
        )
        self.assertEqual((len(lab.hub.messages), lab.queue()), (1, []))

    def test_bounce(self: Any) -> None:
        """A recipient refused for good is reported to the sender, the others get their mail."""
        lab = self.lab()
        lab.hub.answer("RCPT", _refuse(b"bad@example.com"))
        lab.send(["good@example.com", "bad@example.com"])
        lab.advance(1)

        mail, report = sorted(lab.hub.messages, key=lambda m: m.sender, reverse=True)
        self.assertEqual(mail.recipients, (b"good@example.com",))
        self.assertEqual((report.sender, report.recipients), (b"", (b"me@example.net",)))
        self.assertIn(b"multipart/report", report.content)
        self.assertIn(b"Reporting-MTA: dns; vs1.example.org", report.content)
        self.assertIn(b"Final-Recipient: rfc822; bad@example.com", report.content)
        self.assertIn(b"5.1.1", report.content)
        self.assertNotIn(b"Final-Recipient: rfc822; good@example.com", report.content)
        self.assertEqual(len(lab.owner.kinds(Reported)), 1)
        self.assertEqual(lab.queue(), [])

    def test_expiry(self: Any) -> None:
        """What cannot be delivered in its lifetime is returned, once, and tried no more."""
        lab = self.lab(
            more="queue: {jitter: 0, lifetime: 1h, bounce-lifetime: 1h, backoff: [5m]}\n"
        )
        lab.hub.answer("RCPT", _refuse(b"you@example.com", b"450 4.2.1 Mailbox busy"))
        lab.send()
        lab.advance(3599)
        self.assertEqual(lab.hub.messages, [])
        lab.advance(302)

        (report,) = lab.hub.messages
        self.assertEqual((report.sender, report.recipients), (b"", (b"me@example.net",)))
        self.assertIn(b"Final-Recipient: rfc822; you@example.com", report.content)
        self.assertEqual(lab.queue(), [])
        lab.advance(86_400)
        self.assertEqual(len(lab.hub.messages), 1)

    def test_double_bounce(self: Any) -> None:
        """A report that cannot be delivered goes to the postmaster; there it ends."""
        lab = self.lab()
        lab.hub.answer(
            "RCPT", lambda a: b"250 Ok" if b"<postmaster@" in a else b"550 5.1.1 No such user"
        )
        lab.send()
        lab.advance(1)
        (double,) = lab.hub.messages
        self.assertEqual((double.sender, double.recipients), (b"", (b"postmaster@example.com",)))
        self.assertEqual(lab.queue(), [])

    def test_no_endless_reports(self: Any) -> None:
        """When even the postmaster is refused, the last report ends in the log."""
        lab = self.lab()
        lab.hub.answer("RCPT", b"550 5.1.1 No such user")
        lab.send()
        lab.advance(86_400)
        self.assertEqual((lab.hub.messages, lab.queue()), ([], []))

    def test_reports_of_strangers(self: Any) -> None:
        """A report (null sender) that is refused makes no report of its own to nobody."""
        lab = self.lab()
        lab.hub.answer("RCPT", _refuse(b"you@example.com"))
        lab.send(sender="")
        lab.advance(1)
        self.assertEqual([m.recipients for m in lab.hub.messages], [(b"postmaster@example.com",)])

    def test_hub_away(self: Any) -> None:
        """While the next hop is away mail is accepted and waits; when it is back, it goes."""
        lab = self.lab()
        listening = lab.network.listening.pop((HUB, 25))
        for i in range(5):
            self.assertEqual(lab.send([f"{i}@example.com"])[:3], b"250")
        self.assertEqual(len(lab.queue()), 5)
        lab.network.listening[HUB, 25] = listening
        lab.advance(900)
        self.assertEqual(len(lab.hub.messages), 5)
        self.assertEqual(lab.queue(), [])

    def test_dropped_after_the_dot(self: Any) -> None:
        """When the next hop drops us before its last reply, the message is sent again, late
        rather than never (RFC 1047).
        """
        lab = self.lab()
        lab.hub.answer(".", DROP, times=1)
        lab.send()
        self.assertEqual(lab.hub.messages, [])
        self.assertEqual(len(lab.queue()), 1)
        lab.advance(3600)
        self.assertEqual(len(lab.hub.messages), 1)
        self.assertEqual(lab.queue(), [])

    def test_loop(self: Any) -> None:
        """A message that has gone round too often is refused with 5.4.6."""
        lab = self.lab()
        reply = lab.send(content=b"Received: by x\r\n" * 101 + MESSAGE)
        self.assertEqual(reply[:9], b"554 5.4.6")
        self.assertEqual((lab.hub.messages, lab.queue()), ([], []))

    def test_open_relay(self: Any) -> None:
        """A stranger reaches those who accept anyone, and nobody else."""
        lab = self.lab()
        self.assertEqual(lab.send(["you@example.com"], source=STRANGER)[:3], b"250")
        reply = lab.send(["you@sub.example.net"], source=STRANGER)
        self.assertEqual(reply, b"554 5.7.1 <you@sub.example.net>: Relay access denied")
        (rejected,) = [e for e in lab.owner.kinds(Rejected) if e.stage == "RCPT"]
        self.assertEqual((rejected.client, rejected.recipient), (STRANGER, b"you@sub.example.net"))
        self.assertEqual(lab.send(["you@sub.example.net"], source=FRIEND)[:3], b"250")
        self.assertEqual(len(lab.hub.messages), 2)

    def test_revoked_in_data(self: Any) -> None:
        """When the address goes while a message comes in, the client hears nothing more, and
        nothing of the message stays.
        """
        lab = self.lab()
        client = lab.client()
        self.assertEqual(client.begin(["you@example.com"])[-1][:3], b"354")
        client.pour(b"Subject: half\r\n\r\nhalf of")
        lab.owner.revoke()
        lab.settle()
        self.assertFalse(client.is_open)
        self.assertEqual(client.pour(b" it\r\n.\r\n"), b"")
        self.assertEqual((lab.hub.messages, lab.owner.kinds(Accepted)), ([], []))
        self.assertEqual([e.lost_after for e in lab.owner.kinds(Disconnected)], ["DATA"])
        self.assertFalse(lab.client().is_open)

        lab.owner.restore()
        self.assertEqual(lab.send()[:3], b"250")
        self.assertEqual(len(lab.hub.messages), 1)

    def test_policy_takes_its_time(self: Any) -> None:
        """Replies keep their order however long a policy thinks about each command."""
        slow = Slow()
        lab = self.lab(policies=[slow])
        client = lab.client()
        at_once = client.say(
            b"MAIL FROM:<me@example.net>",
            b"RCPT TO:<bad@example.com>",
            b"RCPT TO:<you@example.com>",
            b"NOOP",
            b"RSET",
            b"MAIL FROM:<two@example.net>",
            b"RCPT TO:<you@example.com>",
            b"DATA",
        )
        self.assertEqual(at_once, b"")
        while slow.waiting:
            slow.waiting.pop(0)()
            lab.settle()
        replies = client.peer.take().splitlines()
        self.assertEqual(
            [r[:3] for r in replies],
            [b"250", b"550", b"250", b"250", b"250", b"250", b"250", b"354"],
        )
        self.assertEqual(client.pour(MESSAGE + b".\r\n")[:3], b"250")
        self.assertEqual([m.sender for m in lab.hub.messages], [b"two@example.net"])

    def test_client_leaves_while_a_policy_thinks(self: Any) -> None:
        """A client that leaves takes its question with it."""
        slow = Slow()
        lab = self.lab(policies=[slow])
        client = lab.client()
        client.say(b"MAIL FROM:<me@example.net>")
        client.peer.abort()
        lab.settle()
        self.assertEqual(slow.cancelled, 1)
        self.assertEqual(lab.queue(), [])

    def test_policy_ends_the_association(self: Any) -> None:
        """A policy that answers 421 ends the association, whatever was pipelined behind it."""
        lab = self.lab(policies=[Saying(Reply(421, "4.7.0", (b"Go away",)))])
        client = lab.client()
        replies = client.say(b"MAIL FROM:<me@example.net>", b"RCPT TO:<you@example.com>", b"NOOP")
        self.assertEqual(replies, b"421 4.7.0 Go away\r\n")
        self.assertFalse(client.is_open)

    def test_broken_policy(self: Any) -> None:
        """A policy that raises costs its command a 451; the association goes on."""
        lab = self.lab(policies=[Saying(ZeroDivisionError("secret"))])
        client = lab.client()
        self.assertEqual(client.send()[:9], b"451 4.3.0")
        self.assertEqual(client.say(b"NOOP")[:3], b"250")
        self.assertIn("policy Saying, hook mail", lab.owner.surroundings.notices("error")[0])

    def test_reload_in_mid_message(self: Any) -> None:
        """A reload between MAIL and the final dot loses nothing."""
        lab = self.lab()
        client = lab.client()
        client.begin(["you@example.com"])
        lab.owner.tenant.reconfigure(lab.config)
        lab.settle()
        self.assertEqual(client.pour(MESSAGE + b".\r\n")[:3], b"250")
        self.assertEqual(client.send(["two@example.com"])[:3], b"250")
        lab.advance(60)
        self.assertEqual(len(lab.hub.messages), 2)
        self.assertEqual(lab.queue(), [])

    def test_reload_gives_a_connector_its_neighbours_settings(self: Any) -> None:
        """A reload takes over what changed in a connector, also when another one had just that."""

        def connectors(first: str) -> str:
            return (
                "connectors:\n"
                f"  - {{name: a, kind: maildir, directory: {first},"
                " address-spaces: [{domain: a.example.com}]}\n"
                "  - {name: b, kind: maildir, directory: /mail/b, address-spaces: [{domain: '*'}]}\n"
            )

        lab = self.lab(more=STEADY + connectors("/mail/a"))
        after = self.lab(more=STEADY + connectors("/mail/b")).config
        lab.send(["you@a.example.com"])
        lab.owner.tenant.reconfigure(after)
        lab.send(["you@a.example.com"])
        lab.advance(60)
        places = [p.rpartition("/")[0] for p in lab.disk.paths() if "/new/" in p]
        self.assertEqual(sorted(places), ["/mail/a/new", "/mail/b/new"])


class MemoryPathTests(Path, SynchronousTestCase):
    def test_full(self) -> None:
        """A full spool answers 452, never 5yz, and takes mail again when there is room."""
        lab = self.lab(more=STEADY + "spool: {store: memory, capacity: 4KiB}\n")
        lab.hub.answer(".", b"451 4.3.0 Later")
        content = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" * 1000
        replies = [lab.send(content=content)[:9] for _ in range(3)]
        self.assertEqual(replies[0][:3], b"250")
        self.assertEqual(replies[-1], b"452 4.3.1")
        lab.hub.mend()
        lab.advance(300)
        self.assertEqual(lab.queue(), [])
        self.assertEqual(lab.send(content=content)[:3], b"250")


class LogPathTests(Path, SynchronousTestCase):
    spool = "log"

    def test_full(self) -> None:
        """A disk that fills up answers 452, never 5yz; what was answered 250 still goes out, and
        then there is room again.
        """
        spool = (
            "spool: {store: log, directory: /spool, initialise: true, reserve: 4MiB,"
            " segment-size: 1MiB, first-segment-size: 256KiB, spares: 1}\n"
        )
        lab = self.lab(more=STEADY + spool, capacity=(24 << 20) + SLOT_OCTETS)
        lab.hub.answer(".", b"451 4.3.0 Later")
        content = b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * 7000
        replies = []
        for number in range(100):
            lab.advance(1)
            # What is left when no large one fits any more is filled with small ones.
            replies.append(
                lab.send(content=content if number < 50 else content[: 14 + 72 * 400])[:9]
            )
        accepted = len([r for r in replies if r[:3] == b"250"])
        self.assertGreater(accepted, 10)
        self.assertEqual(set(replies) - {replies[0]}, {b"452 4.3.1"})
        self.assertEqual(replies[0][:3], b"250")
        self.assertEqual(len(lab.queue()), accepted)
        told = [e for e in lab.owner.kinds(Rejected) if e.reply.startswith("452")]
        self.assertEqual(told[-1].stage, "MAIL")

        lab.hub.mend()
        lab.advance(1200)
        self.assertEqual(len(lab.hub.messages), accepted)
        self.assertEqual(lab.queue(), [])
        self.assertEqual(lab.send(content=content)[:3], b"250")

    def test_disk_error_at_commit(self) -> None:
        """A message whose first flush failed is answered only when it lies somewhere else for
        certain: pages that the kernel dropped with the error are not relied upon.
        """
        lab = self.lab("ab")
        lab.hub.answer(".", b"451 4.3.0 Later")
        client = lab.client()
        self.assertEqual(client.send(["one@example.com"])[:3], b"250")
        client.begin(["two@example.com"])
        lab.disk.fail("sync")
        self.assertEqual(client.pour(MESSAGE + b".\r\n")[:3], b"250")
        lab.hub.mend()
        lab.fail("a", to="b", power_cut=True)
        lab.advance(3600)
        self.assertEqual(
            sorted(m.recipients for m in lab.hub.messages),
            [(b"one@example.com",), (b"two@example.com",)],
        )

    def test_disk_lost(self) -> None:
        """When the disk takes nothing any more there is no 250, and nothing is sent on."""
        lab = self.lab()
        client = lab.client()
        client.begin(["you@example.com"])
        lab.disk.fail("any", times=1_000_000)
        self.assertNotEqual(client.pour(MESSAGE + b".\r\n")[:1], b"2")
        self.assertEqual((lab.owner.kinds(Accepted), lab.hub.messages), ([], []))

    def test_answered_is_on_disk(self) -> None:
        """What was answered 250 survives the loss of power; what was not is not half there."""
        lab = self.lab("ab")
        lab.hub.answer(".", b"451 4.3.0 Later")
        lab.send(["kept@example.com"])
        client = lab.client()
        client.begin(["lost@example.com"])
        lab.owner.is_frozen = True
        self.assertEqual(client.pour(MESSAGE + b".\r\n"), b"")
        lab.hub.mend()

        lab.fail("a", to="b", power_cut=True)
        lab.advance(3600)

        self.assertEqual([m.recipients for m in lab.hub.messages], [(b"kept@example.com",)])
        self.assertEqual(lab.queue(), [])

    def test_superseded_in_commit(self) -> None:
        """A node that was stopped while another took over answers nothing when it wakes: the
        client sends again, and the new owner has the only copy.
        """
        lab = self.lab("ab")
        old = lab.owner
        client = lab.client()
        client.begin(["you@example.com"])
        old.is_frozen = True
        self.assertEqual(client.pour(MESSAGE + b".\r\n"), b"")

        # The new owner has the address; what the old one still has open stays open.
        lab.network.listening.clear()
        lab.network.serve(HUB, 25, lab.hub.build)
        lab.owner = lab.nodes["b"]
        lab.owner.take_over()
        old.is_frozen = False
        lab.settle()

        self.assertEqual(client.peer.take(), b"")
        self.assertFalse(client.is_open)
        self.assertEqual((old.kinds(Accepted), lab.hub.messages), ([], []))
        self.assertEqual(lab.send()[:3], b"250")
        self.assertEqual(len(lab.hub.messages), 1)


@implementer(IPolicy)
class Slow:
    """Answers MAIL and RCPT only when told; refuses `bad`."""

    hooks = frozenset({"mail", "rcpt"})

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.cancelled = 0

    def on(self, hook: str, transaction: Any) -> Deferred[Reply | None]:
        answer: Deferred[Reply | None] = Deferred(self._cancelled)
        reply = None
        if hook == "rcpt" and transaction.recipient.address.local == b"bad":
            reply = Reply(550, "5.1.1", (b"No",))
        self.waiting.append(lambda: answer.callback(reply))
        return answer

    def _cancelled(self, _: Any) -> None:
        self.cancelled += 1


@implementer(IPolicy)
class Saying:
    """Answers MAIL with what it was given, or raises it."""

    hooks = frozenset({"mail"})

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def on(self, hook: str, transaction: Any) -> Reply | None:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def _refuse(address: bytes, reply: bytes = b"550 5.1.1 No such user") -> Any:
    return lambda argument: reply if b"<" + address + b">" in argument else b"250 2.1.5 Ok"
