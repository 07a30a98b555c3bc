"""A small, always equal part of what `make fuzz` does, and proof that it would notice."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mta.testing import fuzz
from mta.testing.dialogues import Corpus
from mta.testing.fuzz import GAMES, hold, main, run
from mta.wire.smtp import client, content
from mta.wire.smtp.client_states import Opened
from mta.wire.smtp.server import Responder
from mta.wire.smtp.server_chunks import ChunkingResponder

HERE = Path(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = (HERE / "transcripts", HERE / "fuzz")


class FuzzTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.corpus = Corpus.read(FOLDERS)

    def test_2000_conversations(self) -> None:
        """Whatever peers say, in whatever pieces, the machines keep every promise."""
        self.assertEqual(run(self.corpus, 20260701, 0, 2000), [])

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
            patches = [self.patch(fuzz, name, Noting) for name in names]
            hold(7, 3 * len(GAMES), self.corpus)
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
            self.assertTrue(run(self.corpus, 20260701, 0, 4000), name)
            patch.restore()

    def test_command(self) -> None:
        """The command says how many conversations were held, and fails when one did."""
        folders = [str(folder) for folder in FOLDERS]
        shown: list[str] = []
        self.patch(__import__("builtins"), "print", lambda *words: shown.extend(words))
        self.assertEqual(main(["--count", "30", "--corpus", *folders]), 0)
        self.assertEqual(shown, ["30 conversations, 0 failed"])
        self.patch(Responder, "_needs_more", lambda machine: True)
        self.assertEqual(main(["--count", "3000", "--seed", "5", "--corpus", *folders]), 1)
        self.assertIn("--seed 5 --first ", shown[1])
