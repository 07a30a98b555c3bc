"""`mta password`: what it asks, what it writes, and what it refuses."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.auth.new_line import checked_name, main, read_once, typed_twice, written
from mta.auth.passwords import Passwords, PasswordsSettings
from mta.model import Authenticated
from mta.settings import SecretFile
from mta.testing.auth_suite import CLIENTS, auth_peer, converse
from mta.testing.surroundings import MemorySurroundings
from mta.wire.sasl import LONGEST_OCTETS

LIGHT = settings(max_examples=100, deadline=None, derandomize=True)


class NewLineTests(SynchronousTestCase):
    def run_with(self, given_input: bytes, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and complaint of the command whose input is no terminal."""
        self.patch(sys, "stdin", io.TextIOWrapper(io.BytesIO(given_input)))
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(arguments))
        return code, out.getvalue(), err.getvalue()

    def test_its_line_lets_in(self) -> None:
        """The line is what the MTA reads: with --scram by every mechanism, without it by two."""
        for options, mechanisms in (
            ((), ("PLAIN", "LOGIN")),
            (("--scram",), ("SCRAM-SHA-256", "PLAIN", "LOGIN")),
        ):
            code, out, err = self.run_with("pass wört\n".encode(), "--user=änna", *options)
            self.assertEqual((0, ""), (code, err))
            path = os.path.abspath(self.mktemp())
            with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
                file.write(out)
            surroundings = MemorySurroundings()
            passwords = Passwords(PasswordsSettings(password_file=SecretFile(path)), surroundings)
            self.assertEqual(mechanisms, passwords.mechanisms)
            self.assertEqual([], surroundings.notices())
            for mechanism in mechanisms:
                client = CLIENTS[mechanism]("änna", "pass wört", at_once=True)
                said = converse(surroundings, passwords.begin(mechanism, auth_peer()), client)
                self.assertEqual(Authenticated("änna"), said)

    def test_fresh_salt(self) -> None:
        """The same password twice gives two lines."""
        lines = {written("anna", "x", is_scram=True) for _ in range(2)}
        self.assertEqual(2, len({line.split()[1] for line in lines}))
        self.assertEqual(2, len({line.split()[2] for line in lines}))

    def test_no_such_name(self) -> None:
        """A name that no line can begin with is refused before anything is asked."""
        for name in (
            "",
            "an na",
            "#anna",
            "an\u00a0na",
            "an\tna",
            "\u00ad",
            "x" * 2000,
            "a\u202eb",
        ):
            code, out, err = self.run_with(b"x\n", f"--user={name}")
            self.assertEqual((os.EX_USAGE, ""), (code, out))
            self.assertIn("a user of that name cannot be", err)

    def test_no_such_password(self) -> None:
        """Nothing, two lines, what is no text, what is too long, what nobody can type again."""
        long = b"x" * (LONGEST_OCTETS + 1)
        for octets in (
            b"",
            b"\n",
            b"a\nb\n",
            b"\xff\n",
            long,
            long + b"\n",
            b"a\x07\n",
            b"\xc2\xad",
        ):
            code, out, err = self.run_with(octets, "--user=anna")
            self.assertEqual((os.EX_DATAERR, ""), (code, out))
            self.assertIn("that is no password", err)

    def test_typed_twice(self) -> None:
        """On a terminal it is asked for twice, and a slip is noticed."""
        asked: list[str] = []

        def ask(prompt: str) -> str:
            asked.append(prompt)
            return answers.pop(0)

        answers = ["x y", "x y"]
        self.assertEqual("x y", typed_twice(ask))
        self.assertEqual(2, len(set(asked)))
        answers = ["x", "y"]
        self.assertRaises(ValueError, typed_twice, ask)
        answers = ["x" * 2000] * 2
        self.assertRaises(ValueError, typed_twice, ask)

    def test_ends_of_lines(self) -> None:
        """The end of the line is no part of a password; blanks are."""
        for octets in (b" x ", b" x \n", b" x \r\n"):
            self.assertEqual(" x ", read_once(io.BytesIO(octets).read))

    @LIGHT
    @given(st.text(max_size=20))
    def test_any_name(self, text: str) -> None:
        """A name that is taken stays one word, and is taken again as it is."""
        try:
            name = checked_name(text)
        except ValueError:
            return
        self.assertEqual([name.encode()], name.encode().split())
        self.assertEqual(name, checked_name(name))
