"""Maildir and discard: a local store that never holds the same message twice."""

from __future__ import annotations

import errno

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mta.association.discard import DiscardKind, DiscardSettings
from mta.association.maildir import LocalForm, MaildirKind, MaildirSettings, mailbox_part
from mta.errors import Fenced
from mta.model import NextHop, OutcomeKind, queue_id
from mta.testing.disk import ForgetfulDisk, PowerCut
from mta.testing.kind_suite import WIRE, IAssociationKindTests, PieceContent, envelope_to
from mta.testing.surroundings import MemorySurroundings, MemoryTenure

HOP = NextHop("local", "local", "local", 0)


class DiscardSuite(IAssociationKindTests, SynchronousTestCase):
    def kind(self):
        return DiscardKind(DiscardSettings(), MemorySurroundings())

    def tenure(self):
        return MemoryTenure()


class MaildirSuite(IAssociationKindTests, SynchronousTestCase):
    def setUp(self):
        self.around = MemorySurroundings()
        self.around.disk.mkdir("/mail")

    def kind(self):
        return MaildirKind(MaildirSettings(directory="/mail/{domain}/{user}"), self.around)

    def tenure(self):
        return MemoryTenure()

    def received(self, recipient):
        user, _, domain = recipient.partition("@")
        return bodies(self.around.disk, f"/mail/{domain}/{user}/new/")


def bodies(disk, prefix):
    return [disk.octets(path) for path in disk.paths() if path.startswith(prefix)]


class Box:
    """A Maildir kind on a forgetful disk."""

    def __init__(self, disk=None, epoch=1):
        self.disk = disk or ForgetfulDisk()
        if disk is None:
            self.disk.mkdir("/mail")
            self.disk.sync_directory("/")
        self.around = MemorySurroundings(disk=self.disk)
        self.kind = MaildirKind(MaildirSettings(directory="/mail/{user}"), self.around)
        self.tenure = MemoryTenure(epoch=epoch)

    def send(self, case, *recipients, serial=1, resident=True, pieces=(WIRE,)):
        """The outcomes' kinds, in order of recipient."""
        sender = case.successResultOf(self.kind.open(self.tenure, HOP))
        envelope = envelope_to(*(recipients or ("bob@example.com",)))
        indexes = tuple(range(len(envelope.recipients)))
        case.successResultOf(sender.prepare(queue_id(1, serial), envelope, indexes, len(WIRE)))
        found = case.successResultOf(sender.commit(PieceContent(pieces, is_resident=resident)))
        return sorted(found, key=lambda o: o.recipient)

    def new(self, user="bob"):
        return bodies(self.disk, f"/mail/{user}/new/")

    def temporary(self):
        return [p for p in self.disk.paths() if "/tmp/" in p]


class MaildirTests(SynchronousTestCase):
    def test_form(self):
        """A mail reader finds Return-Path and Delivered-To, LF line ends and plain dots."""
        box = Box()
        box.send(self)
        [found] = box.new()
        self.assertEqual(
            found,
            b"Return-Path: <alice@example.org>\nDelivered-To: bob@example.com\n"
            b"Received: from x by y\nSubject: suite\n\nfirst\n.dot at the start\na line\nlast\n",
        )
        self.assertEqual(box.temporary(), [])

    def test_delivered_once(self):
        """A message that is delivered again after a takeover is there once, also when it was read
        and filed meanwhile."""
        box = Box()
        box.send(self)
        [name] = [p for p in box.disk.paths() if "/new/" in p]
        later = Box(box.disk, epoch=2)
        [outcome] = later.send(self)
        self.assertEqual(outcome.kind, OutcomeKind.DELIVERED)
        self.assertEqual(len(later.new()), 1)
        box.disk.link(name, name.replace("/new/", "/cur/") + ":2,S")
        box.disk.unlink(name)
        [outcome] = Box(box.disk, epoch=3).send(self)
        self.assertEqual(outcome.kind, OutcomeKind.DELIVERED)
        self.assertEqual(later.new(), [])

    def test_same_epoch_after_a_failure(self):
        """A delivery that failed after link(2) is not doubled by the next attempt."""
        box = Box()
        box.send(self, serial=9)
        box.disk.fail("directory")
        [outcome] = box.send(self)
        self.assertEqual(outcome.kind, OutcomeKind.DEFERRED)
        box.disk.heal()
        [outcome] = box.send(self)
        self.assertEqual(outcome.kind, OutcomeKind.DELIVERED)
        self.assertEqual(len(box.new()), 2)

    def test_two_recipients_in_one_box(self):
        """Two addresses that lead to the same directory each get their copy."""
        box = Box()
        box.send(self, "bob@example.com", "bob@example.net")
        self.assertEqual(len(box.new()), 2)

    def test_disk_full(self):
        """A full disk defers with 452 4.2.2 and leaves nothing behind; other mail goes on."""
        for resident in (True, False):
            box = Box()
            box.send(self, serial=9)
            box.disk.fail("write", error=errno.ENOSPC)
            [outcome] = box.send(self, resident=resident)
            self.assertEqual(outcome.kind, OutcomeKind.DEFERRED)
            self.assertEqual((outcome.reply.code, outcome.reply.enhanced), (452, "4.2.2"))
            self.assertEqual(box.temporary(), [])
            box.disk.heal()
            self.assertEqual(box.send(self)[0].kind, OutcomeKind.DELIVERED)

    def test_io_error_at_every_step(self):
        """Whichever file call fails the outcome is deferred, and the next attempt delivers once."""
        for step in ("open", "write", "sync", "link", "directory", "mkdir"):
            box = Box()
            box.disk.fail(step)
            [outcome] = box.send(self)
            self.assertEqual(outcome.kind, OutcomeKind.DEFERRED, step)
            self.assertEqual(outcome.reply.code // 100, 4)
            self.assertIn(b"maildir /", outcome.reply.lines[0])
            box.disk.heal()
            [outcome] = box.send(self)
            self.assertEqual(outcome.kind, OutcomeKind.DELIVERED, step)
            self.assertEqual(len(box.new()), 1, step)

    def test_power_cut(self):
        """What was told as delivered is there after a power cut."""
        box = Box()
        box.send(self)
        box.disk.power_cut(keep="none")
        self.assertEqual(len(box.new()), 1)
        self.assertTrue(box.new()[0].endswith(b"last\n"))

    def test_one_recipient_of_two_fails(self):
        """A recipient whose box is broken is deferred alone."""
        box = Box()
        box.send(self, "bob@example.com", "carol@example.com", serial=9)
        box.disk.fail("link", nth=2)
        found = box.send(self, "bob@example.com", "carol@example.com", resident=False)
        self.assertEqual(sorted(o.kind.value for o in found), ["deferred", "delivered"])

    def test_large(self):
        """A large message streams through in pieces, to all recipients."""
        box = Box()
        piece = (b"x" * 998 + b"\r\n") * 300
        found = box.send(
            self,
            "bob@example.com",
            "carol@example.com",
            resident=False,
            pieces=[WIRE, *[piece] * 4],
        )
        self.assertEqual([o.kind for o in found], [OutcomeKind.DELIVERED] * 2)
        tails = {
            bodies(box.disk, f"/mail/{u}/new/")[0].partition(b"Received")[2]
            for u in ("bob", "carol")
        }
        self.assertEqual(len(tails), 1)
        self.assertEqual(len(tails.pop()), len(WIRE) - 8 - 8 + 4 * 300 * 999)

    def test_superseded(self):
        """A newer owner exists: no file is placed after that, and none is left half."""
        box = Box()
        sender = self.successResultOf(box.kind.open(box.tenure, HOP))
        envelope = envelope_to("bob@example.com")
        self.successResultOf(sender.prepare(queue_id(1, 1), envelope, (0,), 10))
        box.tenure.fence()
        self.failureResultOf(sender.commit(PieceContent([WIRE], is_resident=False)), Fenced)
        self.assertEqual([p for p in box.disk.paths() if "/new/" in p or "/tmp/" in p], [])

    def test_cancelled(self):
        """Cancelled in the middle of a large message: nothing is placed."""
        box = Box()
        sender = self.successResultOf(box.kind.open(box.tenure, HOP))
        self.successResultOf(
            sender.prepare(queue_id(1, 1), envelope_to("bob@example.com"), (0,), 10)
        )
        content = PieceContent([WIRE], is_resident=False)
        content.read = lambda: Deferred()
        commit = sender.commit(content)
        commit.cancel()
        self.failureResultOf(commit)
        self.assertEqual([p for p in box.disk.paths() if p.startswith("/mail/bob/")], [])

    def test_mailboxes_beyond_ascii(self):
        """Capital letters of every script lead to the mailbox of the small ones."""
        for one, other in (("JOSÉ", "josé"), ("ÄΣЖ", "äσж")):
            self.assertEqual(mailbox_part(one.encode()), mailbox_part(other.encode()))
        self.assertEqual(mailbox_part("é".encode()), "%C3%A9")
        self.assertNotEqual(mailbox_part(b"\xc3"), mailbox_part(b"\xe3"))

    def test_settings(self):
        """A directory that is relative, climbs out or has unknown braces is refused."""
        for wrong in ("mail", "/mail/{name}", "/mail/../x", "/mail/{", "/mail/{0}"):
            self.assertRaises(ValidationError, MaildirSettings, directory=wrong)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.binary(max_size=300))
    def test_no_address_leaves_the_directory(self, local):
        """No local part climbs out, hides, or becomes two path components."""
        part = mailbox_part(local)
        self.assertNotIn("/", part)
        self.assertNotIn("\0", part)
        self.assertFalse(part.startswith("."))
        self.assertTrue(0 < len(part) <= 255)
        self.assertTrue(part.isascii() and part.isprintable())

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        st.lists(
            st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"x", b"\r\n.", b"\r\n.."]), max_size=12
        ),
        st.lists(st.integers(0, 30), max_size=6),
    )
    def test_local_form_of_any_cut(self, atoms, cuts):
        """However a content is cut, the local form is the same as of the whole."""
        whole = b"".join(atoms)
        reference = LocalForm(stuffed=True, text=True)
        expected = reference.feed(whole) + reference.end()
        form, found, at = LocalForm(stuffed=True, text=True), b"", 0
        for cut in sorted(cuts):
            found += form.feed(whole[at:cut] if cut > at else b"")
            at = max(at, min(cut, len(whole)))
        found += form.feed(whole[at:]) + form.end()
        self.assertEqual(found, expected)


class CrashTests(SynchronousTestCase):
    def test_power_cut_at_every_step(self):
        """The power fails at any file call: afterwards the message is there once after the next
        attempt, never twice, never in part."""
        whole = Box()
        whole.send(self, serial=9)
        before = whole.disk.steps
        whole.send(self)
        steps = whole.disk.steps - before
        self.assertGreater(steps, 4)
        for step in range(1, steps + 1):
            for keep, seed in (("none", 0), ("all", 0), ("random", 1), ("random", 2), ("torn", 3)):
                box = Box()
                box.send(self, serial=9)
                left = [step]

                def cut(kind, path, left=left):
                    left[0] -= 1
                    if not left[0]:
                        raise PowerCut

                box.disk.on_step = cut
                try:
                    box.send(self)
                except (PowerCut, self.failureException):
                    pass
                box.disk.on_step = None
                self.flushLoggedErrors()
                box.disk.power_cut(keep=keep, seed=seed)
                [outcome] = Box(box.disk, epoch=2).send(self)
                self.assertEqual(outcome.kind, OutcomeKind.DELIVERED)
                self.assertEqual(len(box.new()), 2, (step, keep, seed))
                self.assertTrue(all(b.endswith(b"last\n") for b in box.new()))
