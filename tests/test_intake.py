"""Intake: what is accepted, what is refused and how, and when a message is ours."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.errors import Fenced, Full, LocalProtocolError, TenureRevoked, Unavailable, Unknown
from mta.interfaces import IReception, IReceptionHost, ISpool, IStaging
from mta.model import (
    NULL_ADDRESS,
    Address,
    BodyType,
    Notify,
    PeerInfo,
    Recipient,
    Reply,
)
from mta.telemetry import Accepted, Connected, Disconnected, Notice, Rejected
from tests.intake_ground import (
    FRIEND,
    MESSAGE,
    POSTMASTER,
    STRANGER,
    WALL,
    House,
    address,
    begin,
    send,
)


class ContractTests(SynchronousTestCase):
    def test_contracts(self) -> None:
        """Everything that meets another room keeps its contract."""
        house = House()
        verifyObject(IReceptionHost, house.intake)
        verifyObject(IReception, house.reception())
        verifyObject(ISpool, house.spool)
        verifyObject(IStaging, house.spool.stage("smtp/in/1"))


class AcceptTests(SynchronousTestCase):
    def test_one_message(self) -> None:
        """An accepted message is durable, answered with its queue id, logged and offered."""
        house = House()
        reception = house.reception()

        reply = send(reception)

        (staging,) = house.spool.stagings
        self.assertEqual(
            reply, Reply(250, "2.0.0", (b"Ok: queued as " + staging.queue_id.encode(),))
        )
        envelope, state = house.spool.queued[staging.queue_id]
        self.assertEqual(envelope.sender, address("a@example.net"))
        self.assertEqual(envelope.recipients, (Recipient(address("b@example.com")),))
        self.assertEqual(
            (envelope.association, envelope.ordinal, envelope.client, envelope.message_id),
            ("smtp/in/1", 1, FRIEND, b"<1@example.net>"),
        )
        self.assertEqual((envelope.received_at, state.due, state.held), (WALL, WALL, False))
        self.assertEqual(house.offered, [(staging.queue_id, envelope, state)])
        (accepted,) = house.kinds(Accepted)
        self.assertEqual(
            (accepted.queue_id, accepted.size_octets, accepted.recipients, accepted.vip),
            (staging.queue_id, len(MESSAGE), 1, "192.0.2.10"),
        )
        self.assertEqual(
            staging.stored,
            b"Received: from client.example.net ([192.0.2.77])\r\n"
            b"\tby vs1.example.org with ESMTP\r\n"
            b"\tid 00010000000001\r\n"
            b"\tfor <b@example.com>; Fri, 15 Jan 2027 08:00:00 +0000\r\n" + MESSAGE,
        )

    def test_reply_before_offer(self) -> None:
        """The client's 250 waits for the disk and for nothing else."""
        house = House()
        house.spool.commits_at_once = False
        reception = house.reception()
        answered = send(reception)
        self.assertNoResult(answered)
        self.assertEqual(house.offered, [])

        answered.addCallback(lambda reply: house.order.append(f"reply {reply.code}"))
        house.spool.stagings[0].durable()

        self.assertEqual(house.order, ["reply 250", f"offer {house.spool.stagings[0].queue_id}"])

    def test_second_message_after_acknowledgement_only(self) -> None:
        """An association never has two replies on their way: the in-doubt list counts on one."""
        house = House()
        reception = house.reception()
        send(reception)
        begin(reception)
        reception.data()
        reception.chunk(MESSAGE)
        self.assertRaises(LocalProtocolError, reception.end, None)

        reception.acknowledged()

        self.assertEqual(self.successResultOf(reception.end(None)).code, 250)
        self.assertEqual([e.ordinal for _, e, _ in house.offered], [1, 2])

    def test_association_is_journalled_once(self) -> None:
        """The journal knows both ends of an association from its beginning: a new owner can tell
        its peer, wherever the dialogue stood.
        """
        house = House()
        reception = house.reception()
        for _ in range(2):
            send(reception)
            reception.acknowledged()
        reception.closed("", "ehlo=1 mail=2 quit=1 commands=4")

        self.assertEqual(
            house.spool.journal_lines,
            ["open smtp/in/1 192.0.2.77:40000 -> 192.0.2.10:25 inbound=True", "close smtp/in/1"],
        )
        self.assertEqual(
            house.kinds(Disconnected),
            [Disconnected("smtp/in/1", FRIEND, "ehlo=1 mail=2 quit=1 commands=4", "")],
        )

    def test_what_the_tenures_end_closed_stays_in_the_journal(self) -> None:
        """A reset sent when the address was gone reached nobody: the next owner resets that peer
        again, and the message whose reply it may have missed stays in doubt.
        """
        house = House()
        reception = house.reception()
        send(reception)
        house.tenure.revoke()
        reception.closed("", "ehlo=1 mail=1 commands=2")
        self.assertEqual(
            house.spool.journal_lines,
            ["open smtp/in/1 192.0.2.77:40000 -> 192.0.2.10:25 inbound=True"],
        )

    def test_steps_without_their_predecessors(self) -> None:
        """An adapter that skips a step is told so; nothing is accepted."""
        reception = House().reception()
        self.assertRaises(LocalProtocolError, reception.rcpt, address("b@example.com"), {})
        self.assertRaises(LocalProtocolError, reception.data)
        begin(reception)
        self.assertRaises(LocalProtocolError, reception.chunk, b"x")
        self.assertRaises(LocalProtocolError, reception.end, None)

    def test_envelope_parameters(self) -> None:
        """What the client asked for by parameters travels with the message."""
        house = House()
        reception = house.reception()
        reception.mail(
            address("a@example.net"),
            {b"BODY": b"8bitmime", b"SIZE": b"1000", b"ENVID": b"X1", b"RET": b"HDRS"},
        )
        reception.rcpt(
            address("b@example.com"),
            {b"NOTIFY": b"success,FAILURE", b"ORCPT": b"rfc822;b@old.example"},
        )
        reception.rcpt(address("c@example.com"), {b"NOTIFY": b"NEVER"})
        reception.data()
        reception.chunk(MESSAGE)
        reception.chunk("Grüße\r\n".encode())
        reception.end(None)

        envelope = house.offered[0][1]
        self.assertEqual(house.spool.declared, [1000])
        self.assertEqual(
            (envelope.body_type, envelope.envelope_id, envelope.ret_full),
            (BodyType.EIGHT_BIT_MIME, b"X1", False),
        )
        self.assertEqual(
            [(r.notify, r.original) for r in envelope.recipients],
            [(Notify.SUCCESS | Notify.FAILURE, b"rfc822;b@old.example"), (Notify.NEVER, b"")],
        )

    def test_declared_eight_bits_that_are_none(self) -> None:
        """A client that declares 8BITMIME for plain ASCII keeps no old peer from getting it."""
        house = House()
        reception = house.reception()
        reception.mail(address("a@example.net"), {b"BODY": b"8BITMIME"})
        reception.rcpt(address("b@example.com"), {})
        reception.data()
        reception.chunk(MESSAGE)
        reception.end(None)
        self.assertIs(house.offered[0][1].body_type, BodyType.SEVEN_BIT)

    def test_recipient_named_twice(self) -> None:
        """A recipient that is named twice gets one copy."""
        house = House()
        send(house.reception(), MESSAGE, "b@example.com", "c@example.com", "b@example.com")
        self.assertEqual(
            [r.address.text for r in house.offered[0][1].recipients],
            [b"b@example.com", b"c@example.com"],
        )

    def test_local_submission_is_completed(self) -> None:
        """A local program's message gets the Message-ID and Date that it lacks, and its uid."""
        house = House()
        send(house.reception("", uid=1000), b"Subject: x\r\n\r\ny\r\n", "x@sub.example.net")
        (staging,) = house.spool.stagings
        self.assertEqual(
            staging.stored,
            b"Received: by vs1.example.org (from uid 1000)\r\n\tid %b\r\n"
            b"\tfor <x@sub.example.net>; Fri, 15 Jan 2027 08:00:00 +0000\r\n"
            b"Message-ID: <%b@vs1.example.org>\r\n"
            b"Date: Fri, 15 Jan 2027 08:00:00 +0000\r\n"
            b"Subject: x\r\n\r\ny\r\n" % (staging.queue_id.encode(), staging.queue_id.encode()),
        )
        self.assertEqual(house.offered[0][1].client, "uid=1000")
        self.assertEqual(house.spool.journal_lines, [])

    def test_content_without_header(self) -> None:
        """Text without any header stays text: our Received does not swallow its first line."""
        for content, separator in (
            (b"Hello there.\r\n", b"\r\n"),
            (b"\r\nHello.\r\n", b""),
            (b"", b""),
            (b"Subject: x\r\n", b""),
            (b"..dots\r\n\r\nx\r\n", b"\r\n"),
        ):
            house = House()
            send(house.reception(), content)
            self.assertTrue(
                house.spool.stagings[0].stored.endswith(b"+0000\r\n" + separator + content),
                content,
            )

    def test_received_privacy(self) -> None:
        """With received-client: false the clients of relay-from are not named; others are."""
        house = House(received_client=False)
        for host in (FRIEND, STRANGER):
            send(house.reception(host))
        ours, theirs = (s.prepend for s in house.spool.stagings)
        self.assertTrue(ours.startswith(b"Received: by vs1.example.org with ESMTP\r\n\tid "))
        self.assertIn(b"[198.51.100.7]", theirs)


class RelayTests(SynchronousTestCase):
    def rcpt(self, host: str, recipient: str, uid: int | None = None) -> Any:
        self.house = House()
        return begin(self.house.reception(host, uid=uid), recipient)[-1]

    def test_strangers_may_not_relay(self) -> None:
        """A client outside relay-from reaches only spaces that accept anyone, and the log says
        why it did not reach the others.
        """
        self.assertIsNone(self.rcpt(STRANGER, "b@example.com"))
        for recipient in ("x@sub.example.net", "x@secret.example.com", "x@nowhere.test"):
            reply = self.rcpt(STRANGER, recipient)
            self.assertEqual(
                reply, Reply(554, "5.7.1", (b"<%b>: Relay access denied" % recipient.encode(),))
            )
            self.assertEqual(
                self.house.kinds(Rejected),
                [
                    Rejected(
                        "smtp/in/1",
                        STRANGER,
                        "RCPT",
                        f"554 5.7.1 <{recipient}>: Relay access denied",
                        b"a@example.net",
                        recipient.encode(),
                        b"client.example.net",
                        "ESMTP",
                    )
                ],
            )

    def test_admitted_clients(self) -> None:
        """relay-from networks of either family, mapped addresses and local users may relay."""
        for host in (FRIEND, "2001:db8:1::5", "::ffff:192.0.2.9"):
            self.assertIsNone(self.rcpt(host, "x@sub.example.net"), host)
        self.assertIsNone(self.rcpt("", "x@sub.example.net", uid=33))
        for host in ("2001:db8:2::5", "::ffff:198.51.100.7", "rubbish", ""):
            self.assertEqual(self.rcpt(host, "x@sub.example.net").code, 554, host)

    def test_other_listener(self) -> None:
        """relay-from is a listener's own: nobody is admitted by a listener that has none."""
        house = House()
        peer = PeerInfo("smtp/in/9", FRIEND, 1, "192.0.2.10", 2525, listener="other")
        reception = house.intake.reception(house.tenure, peer)
        self.assertEqual(begin(reception, "x@sub.example.net")[-1].code, 554)

    def test_unroutable(self) -> None:
        """Even an admitted client hears at once that there is no way."""
        reply = self.rcpt(FRIEND, "x@nowhere.test")
        self.assertEqual((reply.code, reply.enhanced), (550, "5.1.2"))
        self.assertEqual(reply.lines, (b"<x@nowhere.test>: No route",))

    def test_postmaster(self) -> None:
        """The postmaster is reached by everyone, by each of our names (RFC 5321 4.5.1)."""
        for name in ("postmaster", "PostMaster@VS1.example.org", "postmaster@[192.0.2.10]"):
            house = House()
            send(house.reception(STRANGER), MESSAGE, name)
            (recipient,) = house.offered[0][1].recipients
            self.assertEqual(
                recipient, Recipient(POSTMASTER, original=b"rfc822;" + name.encode()), name
            )
        self.assertEqual(self.rcpt(STRANGER, "other@vs1.example.org").code, 554)

    def test_control_bytes_in_a_refused_address(self) -> None:
        """What is echoed to the peer holds nothing but graphic characters."""
        reply = self.rcpt(STRANGER, "x\x1b[2J\r\n250 ok@nowhere.test")
        self.assertEqual(reply.lines, (b"<x?[2J??250?ok@nowhere.test>: Relay access denied",))

    def test_senders(self) -> None:
        """Reports (null sender) pass; a sender without a domain could never be told of a failure."""
        reception = House().reception()
        self.assertIsNone(reception.mail(NULL_ADDRESS, {}))
        reception.reset()
        reply = reception.mail(Address(b"root"), {})
        self.assertEqual((reply.code, reply.enhanced), (553, "5.1.7"))
        self.assertRaises(LocalProtocolError, reception.rcpt, address("b@example.com"), {})


class StoreFaultTests(SynchronousTestCase):
    def test_full_before_anything_is_sent(self) -> None:
        """A full spool answers 452 at MAIL, a store that is away 451; never 5yz."""
        for error, code, enhanced in (
            (Full("no room"), 452, "4.3.1"),
            (Unavailable("not mounted"), 451, "4.3.0"),
        ):
            house = House()
            house.spool.room_error = error
            reception = house.reception()
            reply = reception.mail(address("a@example.net"), {})
            self.assertEqual((reply.code, reply.enhanced), (code, enhanced))
            house.spool.room_error = None
            self.assertIsNone(reception.mail(address("a@example.net"), {}))

    def test_full_at_data(self) -> None:
        """The same at DATA; the transaction stays and may be tried again."""
        house = House()
        reception = house.reception()
        begin(reception)
        house.spool.stage_error = Full("no room")
        self.assertEqual(reception.data().code, 452)
        house.spool.stage_error = None
        self.assertIsNone(reception.data())

    def commit_fails(self, error: Exception) -> Any:
        self.house = House()
        self.house.spool.commits_at_once = False
        self.reception = self.house.reception()
        answered = send(self.reception)
        self.house.spool.stagings[0].broken(error)
        return answered

    def test_commit_refused(self) -> None:
        """A commit that failed for certain is 451 or 452, and nothing is offered."""
        for error, code in ((Full("no room"), 452), (Unavailable("EIO"), 451)):
            reply = self.successResultOf(self.commit_fails(error))
            self.assertEqual(reply.code, code)
            self.assertEqual(self.house.offered, [])
            self.assertEqual(self.house.kinds(Rejected)[0].stage, "END-OF-MESSAGE")
            self.reception.acknowledged()
            self.assertEqual(begin(self.reception), [None, None])

    def test_fenced(self) -> None:
        """A superseded node says nothing at all: no 250, no 451, nothing offered."""
        self.failureResultOf(self.commit_fails(Fenced("epoch 2 exists")), Fenced)
        self.assertEqual((self.house.offered, self.house.kinds(Accepted)), ([], []))

    def test_reserved(self) -> None:
        """The INTENT of an association that is kept for the message is committed with it, and the
        association is told of the commit's end, whatever that is.
        """
        for error in (None, Full("no room"), Fenced("epoch 2 exists"), Unknown("broken")):
            house = House()
            house.spool.commits_at_once = False
            house.reserves = True
            answered = send(house.reception())
            (staging,) = house.spool.stagings
            (reservation,) = house.reservations
            self.assertIs(staging.intent, reservation.intent)
            self.assertEqual(staging.intent.queue_id, staging.queue_id)
            self.assertEqual((house.offered, reservation.is_given_back), ([], False))
            if error is None:
                staging.durable()
                self.assertEqual(house.used, [reservation])
            else:
                staging.broken(error)
                answered.addErrback(lambda _: None)
                self.assertEqual((house.offered, house.used), ([], []))
            self.assertEqual(reservation.is_given_back, error is not None)

    def test_reserved_and_the_tenure_ends(self) -> None:
        house = House()
        house.spool.commits_at_once = False
        house.reserves = True
        answered = send(house.reception())
        house.tenure.revoke()
        house.spool.stagings[0].durable()
        self.failureResultOf(answered, TenureRevoked)
        self.assertTrue(house.reservations[0].is_given_back)
        self.assertEqual(house.used, [])

    def test_unknown_but_queued(self) -> None:
        """When a commit's result is unknown and the message is there, it is ours."""
        self.house = House()
        self.house.spool.commits_at_once = False
        answered = send(self.house.reception())
        (staging,) = self.house.spool.stagings
        self.house.spool.queued[staging.queue_id] = (staging.envelope, staging.state)
        staging.broken(Unknown("the connection to the store broke"))
        self.assertEqual(self.successResultOf(answered).code, 250)
        self.assertEqual([o[0] for o in self.house.offered], [staging.queue_id])

    def test_unknown_and_not_queued(self) -> None:
        """When it is not there, the client is asked to come again."""
        reply = self.successResultOf(self.commit_fails(Unknown("broken")))
        self.assertEqual(reply.code, 451)

    def test_unknown_for_ever(self) -> None:
        """When it cannot be found out, the association ends without a reply (RFC 1047)."""
        self.house = House()
        self.house.spool.commits_at_once = False
        self.house.spool.load_error = Unavailable("still away")
        answered = send(self.house.reception())
        self.house.spool.stagings[0].broken(Unknown("broken"))
        self.failureResultOf(answered, Unknown)
        self.assertEqual(self.house.offered, [])
        self.assertEqual(self.house.spool.given_back, [self.house.spool.stagings[0].queue_id])

    def test_unknown_then_fenced(self) -> None:
        """A message that is found under a lost epoch is not answered."""
        self.house = House()
        self.house.spool.commits_at_once = False
        answered = send(self.house.reception())
        (staging,) = self.house.spool.stagings
        self.house.spool.queued[staging.queue_id] = (staging.envelope, staging.state)
        self.house.spool.check_error = Fenced("epoch 2 exists")
        staging.broken(Unknown("broken"))
        self.failureResultOf(answered, Fenced)
        self.assertEqual(self.house.offered, [])

    def test_defect_in_the_store(self) -> None:
        """What no store should raise aborts the association and is said loudly."""
        self.failureResultOf(self.commit_fails(ZeroDivisionError("oh")), Unknown)
        (notice,) = self.house.kinds(Notice)
        self.assertEqual((notice.level, notice.room), ("critical", "intake"))

    def test_back_pressure(self) -> None:
        """A slow disk slows the client down instead of filling memory."""
        house = House()
        reception = house.reception()
        begin(reception)
        reception.data()
        house.spool.pause = Deferred()
        pause = reception.chunk(MESSAGE)
        self.assertNoResult(pause)
        house.spool.pause.callback(None)
        self.assertIsNone(self.successResultOf(pause))


class TenureTests(SynchronousTestCase):
    def test_superseded_at_connect(self) -> None:
        """A superseded node greets nobody."""
        house = House()
        house.tenure.fence()
        self.assertRaises(Fenced, house.reception)

    def test_revoked_in_data(self) -> None:
        """When the tenure ends while content comes, there is no 250 and nothing stays."""
        house = House()
        reception = house.reception()
        begin(reception)
        reception.data()
        reception.chunk(MESSAGE)
        house.tenure.revoke()
        self.failureResultOf(reception.end(None), TenureRevoked)
        reception.closed("DATA", "")
        self.assertTrue(house.spool.stagings[0].is_aborted)
        self.assertEqual((house.offered, house.kinds(Accepted)), ([], []))

    def test_revoked_in_commit(self) -> None:
        """A message that became durable too late is answered by nobody, and stays due."""
        house = House()
        house.spool.commits_at_once = False
        answered = send(house.reception())
        house.tenure.revoke()
        house.spool.stagings[0].durable()
        self.failureResultOf(answered, TenureRevoked)
        self.assertEqual(house.offered, [])
        self.assertEqual(house.spool.given_back, [house.spool.stagings[0].queue_id])

    def test_client_gone_in_commit(self) -> None:
        """A client that leaves before its 250 leaves a message that is ours all the same."""
        house = House()
        house.spool.commits_at_once = False
        reception = house.reception()
        answered = send(reception)
        answered.addErrback(lambda f: f.trap(CancelledError))
        answered.cancel()
        reception.closed("DATA", "")
        house.spool.stagings[0].durable()
        self.assertEqual(len(house.offered), 1)
        self.assertFalse(house.spool.stagings[0].is_aborted)

    def test_client_gone_in_data(self) -> None:
        """What a client did not finish is forgotten, once."""
        house = House()
        reception = house.reception()
        begin(reception)
        reception.data()
        reception.chunk(MESSAGE)
        reception.closed("DATA", "ehlo=1")
        reception.closed("DATA", "ehlo=1")
        self.assertTrue(house.spool.stagings[0].is_aborted)
        self.assertEqual(len(house.kinds(Disconnected)), 1)

    def test_reset_then_another(self) -> None:
        """RSET forgets the recipients of before."""
        house = House()
        reception = house.reception()
        begin(reception, "b@example.com", "c@example.com")
        reception.reset()
        send(reception, MESSAGE, "d@example.com")
        self.assertEqual(
            [r.address.text for r in house.offered[0][1].recipients], [b"d@example.com"]
        )


class LoopTests(SynchronousTestCase):
    def content(self, hops: int) -> bytes:
        return b"RECEIVED: by x\r\n" * hops + b"Subject: y\r\n\r\nReceived: not this one\r\n"

    def test_hop_limit(self) -> None:
        """A message that went round a hundred times is refused, one hop less is not."""
        house = House()
        reception = house.reception()
        self.assertEqual(send(reception, self.content(100)).code, 250)
        self.assertEqual(house.offered[0][1].trace_hops, 100)
        reception.acknowledged()
        reply = send(reception, self.content(101))
        self.assertEqual((reply.code, reply.enhanced), (554, "5.4.6"))
        self.assertTrue(house.spool.stagings[1].is_aborted)
        self.assertEqual(len(house.offered), 1)

    def test_fault_seen_by_the_machine(self) -> None:
        """What the wire machine refuses is discarded with the machine's own reply."""
        house = House()
        reception = house.reception()
        begin(reception)
        reception.data()
        reception.chunk(MESSAGE)
        fault = Reply(552, "5.3.4", (b"Message too big",))
        self.assertEqual(self.successResultOf(reception.end(fault)), fault)
        self.assertTrue(house.spool.stagings[0].is_aborted)
        self.assertEqual(house.kinds(Rejected)[0].reply, "552 5.3.4 Message too big")
        reception.acknowledged()
        self.assertEqual(send(reception).code, 250)


class EventTests(SynchronousTestCase):
    def test_connected(self) -> None:
        """A connection is logged with the virtual address that the peer sees, behind NAT too."""
        house = House()
        house.reception(STRANGER)
        self.assertEqual(
            house.kinds(Connected), [Connected("smtp/in/1", STRANGER, 40000, "192.0.2.10")]
        )
