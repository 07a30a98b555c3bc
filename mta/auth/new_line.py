"""`python -m mta.auth.new_line --user NAME [--scram]` writes one line for the file of `passwords`.

Law: the password is no argument, which every process of the machine could read, and is shown
nowhere: it is typed twice without an echo, or is the only line on standard input. What is written
is read back before it is shown, so that no line is printed that the MTA would refuse.

RFC 9106 (Argon2id, section 4: the second choice), RFC 5803 (the verifier as text).
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import warnings
from collections.abc import Callable

from mta.auth.password_file import parse
from mta.wire.sasl import LONGEST_OCTETS
from mta.wire.saslprep import prepare
from mta.wire.scram import verifier_for

ITERATIONS = 50_000
"""Of SCRAM: 20 to 50 ms for a client's processor, above RFC 7677's 4096 by more than ten times."""
SALT_OCTETS = 16
"""RFC 9106 section 3.1."""


def main(arguments: list[str]) -> int:
    """The exit code: 0, 64 (EX_USAGE) for a name, 65 (EX_DATAERR) for a password."""
    parser = argparse.ArgumentParser(
        prog="mta password", description="One line for the file of `auth: {kind: passwords}`."
    )
    parser.add_argument("--user", required=True, metavar="NAME")
    parser.add_argument("--scram", action="store_true", help="with a verifier for SCRAM-SHA-256")
    given = parser.parse_args(arguments)
    try:
        user = checked_name(given.user)
    except ValueError as error:
        return _fail(os.EX_USAGE, f"a user of that name cannot be: {error}")
    try:
        password = typed_twice(_ask) if sys.stdin.isatty() else read_once(sys.stdin.buffer.read)
        line = written(user, password, is_scram=given.scram)
    except (ValueError, getpass.GetPassWarning) as error:
        return _fail(os.EX_DATAERR, f"that is no password: {error}")
    except EOFError:
        return _fail(os.EX_DATAERR, "no password was given")
    sys.stdout.write(f"{line}\n")
    return os.EX_OK


def written(user: str, password: str, *, is_scram: bool) -> str:
    """A line, without its end; takes about 100 ms. @raise ValueError: what the file cannot hold."""
    from argon2 import PasswordHasher
    from argon2.profiles import RFC_9106_LOW_MEMORY

    prepared = prepare(password)
    if not prepared:
        raise ValueError("it is empty")
    hasher = PasswordHasher.from_parameters(RFC_9106_LOW_MEMORY)
    line = f"{user} {hasher.hash(prepared)}"
    if is_scram:
        line += f" {verifier_for(prepared, os.urandom(SALT_OCTETS), ITERATIONS)}"
    read = parse(line.encode())
    if list(read.by_name) != [user]:
        raise ValueError("; ".join(read.damaged) or "the name begins a comment")
    return line


def checked_name(text: str) -> str:
    """As it stands in the file. @raise ValueError: it cannot stand there."""
    name = prepare(text)
    if not name or name.startswith("#") or len(name.encode().split()) != 1 or " " in name:
        raise ValueError("a name is not empty, has no white space, and does not begin with #")
    if len(name.encode()) > LONGEST_OCTETS:
        raise ValueError(f"a name has at most {LONGEST_OCTETS} octets")
    return name


def typed_twice(ask: Callable[[str], str]) -> str:
    """@raise ValueError: the second is another."""
    first = ask("Password: ")
    if ask("The same again: ") != first:
        raise ValueError("the second is not the first")
    return _bounded(first)


def read_once(read: Callable[[int], bytes]) -> str:
    """The only line of an input, without its end. @raise ValueError: it is not one line of text."""
    octets = read(LONGEST_OCTETS + 3).removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in octets:
        raise ValueError("standard input has more than one line")
    try:
        return _bounded(octets.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def _bounded(password: str) -> str:
    if len(password.encode("utf-8", "surrogateescape")) > LONGEST_OCTETS:
        raise ValueError(f"it has more than {LONGEST_OCTETS} octets")
    return password


def _ask(prompt: str) -> str:
    """@raise getpass.GetPassWarning: the terminal would show it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        return getpass.getpass(prompt)


def _fail(code: int, text: str) -> int:
    sys.stderr.write(f"mta password: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
