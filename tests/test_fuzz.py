"""A small, always equal part of what `make fuzz` does, and proof that it would notice."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta.errors import RemoteProtocolError
from mta.resolver import packets as dns_packets
from mta.spool import checkpoint, envelopes, epoch, records, recovery
from mta.testing.fuzz import blocks, smtp
from mta.testing.fuzz.blocks import Block, blocks_of, check_blocks
from mta.testing.fuzz.catalogue import LEFT_OUT, TARGETS
from mta.testing.fuzz.holding import hold, main, run
from mta.testing.fuzz.smtp import GAMES, Smtp
from mta.testing.fuzz.target import Target, read_seeds
from mta.wire import dkim, dovecot_auth, proxy, sasl, sasl_client, scram
from mta.wire.milter.packets import PacketReader
from mta.wire.mime import encodings
from mta.wire.smtp import client, content
from mta.wire.smtp.client_states import Opened
from mta.wire.smtp.server import Responder
from mta.wire.smtp.server_chunks import ChunkingResponder

HERE = Path(os.path.dirname(os.path.abspath(__file__)))


def target_of(name: str) -> Target:
    return next(entry for entry in TARGETS if entry.name == name).kind().at(HERE)


class SmtpTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.target = Smtp.at(HERE)

    def test_2000_conversations(self) -> None:
        """Whatever peers say, in whatever pieces, the machines keep every promise."""
        self.assertEqual(run(self.target, 20260701, 0, 2000), [])

    def test_a_conversation_can_be_held_again(self) -> None:
        """Seed and number say everything: the same conversation reads the same octets."""
        heard: list[list[bytes]] = []
        for _ in range(2):
            pieces: list[bytes] = []

            class Noting(ChunkingResponder):
                def receive(self, data: bytes, pieces: list[bytes] = pieces) -> None:
                    pieces.append(data)
                    super().receive(data)

            names = ("Responder", "ChunkingResponder")
            patches = [self.patch(smtp, name, Noting) for name in names]
            hold(self.target, 7, 3 * len(GAMES))
            for patch in patches:
                patch.restore()
            heard.append(pieces)
        self.assertTrue(heard[0])
        self.assertEqual(heard[0], heard[1])

    def test_what_is_broken_is_found(self) -> None:
        """A machine that breaks a promise does not get through: pieces, ends, outcomes, memory."""
        left_over = client.left_over
        for place, name, broken in (
            (content, "_unfinished", lambda data: 0),
            (content.ContentReader, "_mend", lambda reader, piece, is_first: piece),
            (content.Stuffer, "take", lambda stuffer, piece: piece),
            (Responder, "_needs_more", lambda machine: True),
            (client, "left_over", lambda *about: left_over(*about)[:-1]),
            (client.Initiator, "_authenticate", lambda machine, _, told: told.append(Opened())),
        ):
            patch = self.patch(place, name, broken)
            self.assertTrue(run(self.target, 20260701, 0, 4000), name)
            patch.restore()


class TargetTests(SynchronousTestCase):
    def test_each_has_samples_and_a_law(self) -> None:
        """Every target says what it holds a parser to, under its own name and with samples."""
        for entry in TARGETS:
            target = target_of(entry.name)
            self.assertEqual(target.name, entry.name)
            self.assertTrue((type(target).__doc__ or "").strip(), entry.name)
            if not isinstance(target, Smtp) and entry.name != "spool":
                self.assertTrue(target.seeds, entry.name)
        for parser, why in LEFT_OUT.items():
            self.assertTrue((HERE.parent / parser).exists(), parser)
            self.assertTrue(why)

    def test_samples_are_read_by_somebody(self) -> None:
        """No folder of samples belongs to nobody."""
        folders = {path.name for path in (HERE / "fuzz").iterdir() if path.is_dir()}
        self.assertEqual(folders - {entry.name for entry in TARGETS}, set())

    def test_a_part_of_each(self) -> None:
        """Whatever is fed to the parsers, each keeps its law."""
        for entry in TARGETS:
            if entry.name != "smtp":
                count = max(10, min(200, entry.in_check // 50))
                self.assertEqual(run(target_of(entry.name), 20260701, 0, count), [], entry.name)

    def test_what_is_broken_is_found(self) -> None:
        """A parser that breaks its law does not get through."""

        def strange(*_: Any, **__: Any) -> Any:
            raise AttributeError("strange")

        next_packet = PacketReader.next_packet

        def one_at_a_time(reader: PacketReader) -> tuple[bytes, bytes] | None:
            found = next_packet(reader)
            reader._octets.clear()
            return found

        def believe(exchange: sasl_client.Scram, message: bytes) -> None:
            exchange.is_proven = True

        sabotage: list[tuple[str, Any, str, Any]] = [
            ("proxy", proxy, "_port", lambda word: 70_000),
            ("proxy", proxy, "_check_values", strange),
            ("dns", dns_packets, "_shown", lambda name: "\x1b"),
            ("milter", PacketReader, "next_packet", one_at_a_time),
            ("dovecot", dovecot_auth, "_SPECIAL", dovecot_auth._ESCAPE),
            ("sasl-server", scram.hmac, "compare_digest", lambda one, other: True),
            ("sasl-server", sasl, "prepared", lambda octets, what: octets.decode()),
            ("sasl-client", sasl_client.Scram, "_server_final", believe),
            ("mime", encodings, "_quoted_by_octets", lambda line, is_broken: line),
            ("dkim", dkim.BodyHash, "_update", lambda hash_, data: None),
            ("records", records, "crc32", lambda *_: 0),
            ("envelopes", envelopes, "_slice", strange),
            ("epoch", epoch, "_DAMAGED", (ValueError,)),
            ("checkpoint", checkpoint, "Position", strange),
            ("spool", recovery, "read_header", strange),
        ]
        for name, place, what, broken in sabotage:
            target = target_of(name)
            patch = self.patch(place, what, broken)
            if name == "records":  # its sample is sealed with what is broken
                target = target_of(name)
            self.assertTrue(run(target, 1, 0, 5000), f"{name}: {what}")
            patch.restore()

    def test_samples(self) -> None:
        """Samples are text as it stands, lines with CRLF, or digits with comments."""
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "a.txt").write_bytes(b"one\ntwo\n%%\nthree")
        (folder / "b.crlf").write_bytes(b"x\ny\n")
        (folder / "c.hex").write_bytes(b"# what it is\n00ff 10\n%%\n41 # A\n")
        self.assertEqual(
            read_seeds(folder), [b"one\ntwo", b"three", b"x\r\ny\r\n", b"\0\xff\x10", b"A"]
        )
        (folder / "d.doc").write_bytes(b"")
        self.assertRaises(ValueError, read_seeds, folder)


class CommandTests(SynchronousTestCase):
    def said(self, *arguments: str) -> tuple[int, str]:
        with redirect_stdout(io.StringIO()) as shown:
            status = main([*arguments, "--tests", str(HERE)])
        return status, shown.getvalue()

    def test_command(self) -> None:
        """The command says how many cases were held, and fails when one did."""
        self.assertEqual(self.said("--count", "30"), (0, "30 cases of smtp, 0 failed\n"))
        status, said = self.said("--count", "9", "--target", "proxy")
        self.assertEqual((status, said), (0, "9 cases of proxy, 0 failed\n"))
        self.patch(Responder, "_needs_more", lambda machine: True)
        status, said = self.said("--count", "3000", "--seed", "5")
        self.assertEqual(status, 1)
        self.assertTrue(said.startswith("--target smtp --seed 5 --first "), said[:80])

    def test_what_failed_can_be_held_again(self) -> None:
        """The words that name a failed case hold just that one."""

        def refuse(reader: object, data: bytes) -> None:
            if len(data) > 60:
                raise RemoteProtocolError("strange")

        self.patch(proxy.HeaderReader, "receive", refuse)
        _, said = self.said("--target", "proxy", "--count", "500")
        words = said.splitlines()[0].split()
        status, again = self.said(*words)
        self.assertEqual(status, 1)
        self.assertIn("1 cases of proxy, 1 failed", again)

    def test_shares(self) -> None:
        """SMTP has half of a run at least, every other target its part; one alone has all."""
        held: dict[str, int] = {}
        for block in blocks_of(1_000_000, 1):
            held[block.entry.name] = held.get(block.entry.name, 0) + block.count
        self.assertEqual(set(held), {entry.name for entry in TARGETS})
        self.assertEqual(sum(held.values()), 1_000_000)
        self.assertGreaterEqual(held["smtp"], 500_000)
        alone = list(blocks_of(1000, 1, "dns"))
        self.assertEqual({block.entry.name for block in alone}, {"dns"})
        self.assertEqual(sum(block.count for block in alone), 1000)

    def test_check(self) -> None:
        """`make check` holds 200 000 conversations of SMTP in ten blocks, and one of each other."""
        named = check_blocks()
        smtp_blocks = [block for _, block in named if block.entry.name == "smtp"]
        self.assertEqual(len(smtp_blocks), 10)
        self.assertEqual(sum(block.count for block in smtp_blocks), 200_000)
        self.assertEqual(len({name for name, _ in named}), len(named))
        self.assertEqual(len(named), 10 + len(TARGETS) - 1)

    def test_blocks(self) -> None:
        """A block that failed, took too long or grew too large is no block that passed."""
        entry = next(entry for entry in TARGETS if entry.name == "proxy")
        good = blocks.hold(Block(entry, 1, 0, 50), tests=HERE)
        self.assertEqual(good.fault, "")
        self.assertIn("MiB", blocks.hold(Block(entry, 1, 0, 50), largest_mib=1, tests=HERE).fault)
        slow = blocks.hold(Block(entry, 1, 0, 10_000_000), limit_seconds=1.5, tests=HERE)
        self.assertIn("SIGKILL), at --target proxy --seed 1 --first ", slow.fault)
