"""Named transactions (RFC 1845) at the intake: known ones are not taken again, none is lost."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Fenced, Unavailable
from mta.model import Remembered
from mta.telemetry import Notice
from tests.intake_ground import MESSAGE, WALL, House, address, send

NAME = b"<1.a@client.example.net>"
NAMED: dict[bytes, bytes | None] = {b"TRANSID": NAME}
CLIENT = "client.example.net"


def house(**keys: Any) -> House:
    """One that knows the transaction NAME already."""
    made = House(**keys)
    known = Remembered(CLIENT, NAME.decode(), "00010000000007", 120, WALL + 100)
    made.spool.remembered[CLIENT, NAME.decode()] = known
    return made


def mail(reception: Any, parameters: dict[bytes, bytes | None] = NAMED) -> Any:
    return reception.mail(address("a@example.net"), parameters)


class KnownTests(SynchronousTestCase):
    def test_known(self) -> None:
        """MAIL is answered 355 with the octets that came then, the lone dot with the first queue
        id; nothing is staged, offered, or said to policies, and the log says what it was.
        """
        ground = house()
        reception = ground.reception()
        reply = mail(reception)
        self.assertEqual((reply.code, reply.lines), (355, (b"120 is the transaction offset",)))
        self.assertIsNone(reception.data())
        answer = self.successResultOf(reception.end(None))
        self.assertEqual(answer.text, "250 2.0.0 Ok: queued as 00010000000007")
        self.assertEqual((ground.spool.stagings, ground.offered), ([], []))
        (notice,) = ground.kinds(Notice)
        self.assertIn("taken before as 00010000000007", notice.text)
        reception.acknowledged()
        self.assertEqual(send(reception).code, 250)

    def test_case_of_the_client(self) -> None:
        """A client is the same however it spells its own name; a name's case counts."""
        ground = house()
        self.assertEqual(mail(ground.reception(helo=b"CLIENT.example.NET")).code, 355)
        other = {b"TRANSID": NAME.replace(b"a@", b"A@")}
        self.assertIsNone(mail(ground.reception(), other))
        self.assertIsNone(mail(ground.reception(helo=b"another.example.net")))

    def test_more_content(self) -> None:
        """Content behind the offset is refused for good: it is not what was completed."""
        ground = house()
        reception = ground.reception()
        mail(reception)
        reception.data()
        self.assertIsNone(reception.chunk(MESSAGE))
        answer = self.successResultOf(reception.end(None))
        self.assertEqual((answer.code, answer.enhanced), (554, "5.5.1"))
        self.assertEqual((ground.spool.stagings, ground.offered), ([], []))

    def test_given_up(self) -> None:
        """RSET behind 355 leaves all as it was: it is known still."""
        ground = house()
        reception = ground.reception()
        mail(reception)
        reception.reset()
        self.assertEqual(mail(reception).code, 355)

    def test_superseded(self) -> None:
        """A node that was superseded says of nothing that it was taken: neither at MAIL nor at the
        dot.
        """
        ground = house()
        reception = ground.reception()
        mail(reception)
        reception.data()
        other = ground.reception()
        ground.tenure._fault = Fenced("epoch 1 is superseded")
        self.failureResultOf(reception.end(None), Fenced)
        self.assertRaises(Fenced, mail, other)


class NewTests(SynchronousTestCase):
    def test_remembered_with_the_message(self) -> None:
        """A new name is handed to the store before its commit, with the time until which it holds."""
        ground = House(transaction_lifetime=50.0)
        self.assertEqual(send(ground.reception(), parameters=NAMED).code, 250)
        self.assertEqual(ground.spool.stagings[0].remembered, (CLIENT, NAME.decode(), WALL + 50.0))
        self.assertEqual(mail(ground.reception()).code, 355)

    def test_no_name(self) -> None:
        """Without a name nothing is remembered."""
        ground = House()
        send(ground.reception())
        self.assertIsNone(ground.spool.stagings[0].remembered)

    def test_quit_and_loss(self) -> None:
        """QUIT says that the client has recorded the last one; a lost connection says nothing."""
        ground = House()
        polite, lost = ground.reception(), ground.reception()
        polite.closed("", "")
        lost.closed("END-OF-MESSAGE", "")
        self.assertEqual(ground.spool.forgotten, ["smtp/in/1"])

    def test_two_at_once(self) -> None:
        """The same transaction on two connections: the newer is taken, the older is told to try
        later, whichever ends first.
        """
        ground = House()
        older, newer = ground.reception(), ground.reception()
        for reception in (older, newer):
            self.assertIsNone(mail(reception))
            reception.rcpt(address("b@example.com"), {})
            reception.data()
            reception.chunk(MESSAGE)
        late = self.successResultOf(older.end(None))
        self.assertEqual((late.code, late.enhanced), (451, "4.5.0"))
        self.assertEqual(self.successResultOf(newer.end(None)).code, 250)
        self.assertEqual(len(ground.offered), 1)

    def committing(self) -> tuple[House, Any]:
        """One whose commit is under way, and what its client will be answered."""
        ground = House()
        ground.spool.commits_at_once = False
        return ground, send(ground.reception(), parameters=NAMED)

    def test_waits_for_a_commit(self) -> None:
        """While it is being committed nobody can say; then it is known."""
        ground, _ = self.committing()
        answer = mail(ground.reception())
        self.assertNoResult(answer)
        ground.spool.stagings[0].durable()
        self.assertEqual(self.successResultOf(answer).code, 355)

    def test_waits_for_a_commit_that_fails(self) -> None:
        """A commit that came to nothing: the transaction is new, and taken."""
        ground, _ = self.committing()
        reception = ground.reception()
        answer = mail(reception)
        ground.spool.stagings[0].broken(Unavailable("no"))
        self.assertIsNone(self.successResultOf(answer))
        ground.spool.commits_at_once = True
        reception.rcpt(address("b@example.com"), {})
        reception.data()
        reception.chunk(MESSAGE)
        self.assertEqual(self.successResultOf(reception.end(None)).code, 250)
        self.assertEqual(len(ground.offered), 1)

    def test_leaves_while_it_waits(self) -> None:
        """A client that goes while it waits for a commit is forgotten; the commit goes on."""
        ground, _ = self.committing()
        reception = ground.reception()
        answer = mail(reception)
        reception.closed("MAIL", "")
        self.failureResultOf(answer, CancelledError)
        ground.spool.stagings[0].durable()
        self.assertEqual(len(ground.offered), 1)

    def test_refused_and_brought_again(self) -> None:
        """What was refused under a name is taken under it later."""
        ground = House()
        reception = ground.reception()
        mail(reception)
        reception.reset()
        ground.spool.stage_error = Unavailable("no")
        mail(reception)
        reception.rcpt(address("b@example.com"), {})
        self.assertEqual(reception.data().code, 451)
        reception.reset()
        ground.spool.stage_error = None
        self.assertEqual(send(reception, parameters=NAMED).code, 250)
