"""Header fields: what we write stays in its lines, what is not changed stays as it is."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from mta.errors import LocalProtocolError
from mta.interfaces import (
    IContentEditor,
    IEditableBody,
    IEditableHeader,
    IEditableReturn,
    INewBody,
    IRefusedRecipient,
    ISaslMechanism,
)
from mta.model import ContentForm
from mta.policy.milter import Milter, MilterSettings
from mta.policy.new_body import NO_BOUNDS, NewBody
from mta.policy.transaction import Association, Transaction
from mta.testing.lab import Lab
from mta.testing.policy_suite import sample_peers
from mta.testing.surroundings import MemorySurroundings
from mta.wire.fields import changed_fields, field_text
from tests.memory_filter import CONTINUE, MemoryFilter, said
from tests.scripted_spool import ScriptedSpool

BLOCK = b"A: 1\r\nB: 2\r\n 2\r\na : 3\r\nA: 4\r\n"
NAMES = st.sampled_from((b"A", b"a", b"B", b"C", b"", b"A b", b".A"))
LINES = st.sampled_from(
    (b"A: 1\r\n", b"B: 2\r\n", b" x\r\n", b"a:\r\n", b"\t\r\n", b"no\r\n", b"..A: x\r\n")
)
SOCKET = "unix:/run/filter.sock"


class ChangedFieldsTests(SynchronousTestCase):
    def test_changes(self) -> None:
        """The field of that name and number changes or goes; without one it is added; numbers count
        what stood there before.
        """
        for changes, block, added in (
            ([(b"A", 1, b"x")], b"A: x\r\nB: 2\r\n 2\r\na : 3\r\nA: 4\r\n", b""),
            ([(b"a", 2, b"x\ny")], b"A: 1\r\nB: 2\r\n 2\r\na: x\r\n\ty\r\nA: 4\r\n", b""),
            ([(b"B", 0, b"")], b"A: 1\r\na : 3\r\nA: 4\r\n", b""),
            ([(b"A", 1, b""), (b"A", 2, b""), (b"A", 3, b"x")], b"B: 2\r\n 2\r\nA: x\r\n", b""),
            ([(b"A", 4, b"5"), (b"C", 1, b"6")], BLOCK, b"A: 5\r\nC: 6\r\n"),
            ([(b"C", 1, b"")], BLOCK, b""),
        ):
            self.assertEqual(changed_fields(BLOCK, changes), (block, added))

    @given(
        lines=st.lists(LINES, max_size=8),
        rest=st.binary(max_size=10),
        changes=st.lists(st.tuples(NAMES, st.integers(0, 4), st.binary(max_size=12)), max_size=4),
    )
    @settings(max_examples=500, deadline=None, derandomize=True)
    def test_any_changes(
        self, lines: list[bytes], rest: bytes, changes: list[tuple[bytes, int, bytes]]
    ) -> None:
        """Whatever is changed, what is no field stays, and no new value adds a line that is none of its
        own; without changes nothing changes.
        """
        block = b"".join(lines) + rest
        self.assertEqual(changed_fields(block, []), (block, b""))
        try:
            changed, added = changed_fields(block, changes)
        except ValueError:
            self.assertTrue(any(name in {b"", b"A b", b".A"} for name, _, _ in changes))
            return
        self.assertNotIn(b"\r\n\r\n", added)
        self.assertTrue(not added or added.endswith(b"\r\n"))
        names = {name.lower() for name, _, _ in changes}
        for line in added.split(b"\r\n")[:-1]:
            self.assertTrue(line[:1] in (b" ", b"\t") or line.partition(b":")[0].lower() in names)
        if not names & {b"a", b"b"}:
            self.assertEqual(changed, block)
        self.assertLessEqual(changed.count(b"\r\n\r\n"), block.count(b"\r\n\r\n"))

    def test_no_field(self) -> None:
        """A name that is none is refused, a dot in front too: it would have to be doubled."""
        for name in (b"", b"A b", b"A:", b".A", b"A\r"):
            self.assertRaises(ValueError, field_text, name, b"x")


class ContractTests(SynchronousTestCase):
    def test_contracts(self) -> None:
        """What policies are handed, and the policy that edits, are what the contracts say."""
        transaction = Transaction(Association(sample_peers()[0], admitted=False))
        for contract in (IEditableHeader, IEditableBody, IEditableReturn, IRefusedRecipient):
            verifyObject(contract, transaction)
        body = NewBody(ScriptedSpool().stage(""), ContentForm.OPAQUE, b"", NO_BOUNDS, False, id)
        verifyObject(INewBody, body)
        verifyObject(ISaslMechanism, transaction)
        verifyObject(IContentEditor, Milter(MilterSettings(socket=SOCKET), MemorySurroundings()))

    def test_too_late(self) -> None:
        """A header that is in the store already is not changed, and it is our mistake to ask for it."""
        transaction = Transaction(Association(sample_peers()[0], admitted=False))
        self.assertRaises(LocalProtocolError, transaction.change_fields, [(b"A", 1, b"x")])


class StoredTests(SynchronousTestCase):
    def test_stores(self) -> None:
        """In memory, in the log, streamed to a file and kept as one: a changed header stands before its
        body, and every octet of that is there.
        """
        change = said(b"m", b"\0\0\0\1Subject\0new\0") + said(b"m", b"\0\0\0\1X\0\0")
        for spool in ("memory", "log"):
            lab = Lab(spool=spool, more=f"policies: [{{policy: milter, socket: '{SOCKET}'}}]\n")
            lab.network.serve_service(SOCKET, MemoryFilter(E=change + CONTINUE))
            for octets in (0, 1000, 300_000, 6_000_000):
                body = (b"z" * 98 + b"\r\n") * (octets // 100)
                content = b"From: a@b.c\r\nX: gone\r\nSubject: old\r\n\r\n" + body
                client = lab.client()
                reply = client.send(("you@example.com",), sender="me@example.net", content=content)
                self.assertTrue(reply.startswith(b"250"), reply)
                lab.settle()
                arrived = lab.hub.messages[-1].content
                self.assertTrue(arrived.startswith(b"Received: "))
                self.assertTrue(
                    arrived.endswith(b"\r\nFrom: a@b.c\r\nSubject: new\r\n\r\n" + body),
                    arrived[:400],
                )
