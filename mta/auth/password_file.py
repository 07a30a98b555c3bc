"""The file of the kind `passwords`: one user a line, read again when it changed.

    # name, Argon2id's encoded form, and for SCRAM what RFC 5803 writes
    anna  $argon2id$v=19$m=65536,t=3,p=4$...  SCRAM-SHA-256$50000:...$...:...

Law: a damaged line is said by its number and costs nobody but its user; of what stands in a line
nothing but the name is ever repeated. A file that others can read is refused as a whole. All of it
blocks: it runs on a worker, but for the first time.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from mta.errors import StartRefused
from mta.wire.saslprep import prepare
from mta.wire.scram import Verifier, parse_verifier
from mta.wire.text import printable

LARGEST_OCTETS = 16 * 2**20
"""Of the file: about 100,000 users. Who has more keeps them elsewhere."""
MOST_KIB = 256 * 1024
"""Of memory for one Argon2 check: what asks for more is a slip, or meant to hurt."""
MOST_PASSES = 32
MOST_LANES = 16
_ARGON2 = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,8}),t=(\d{1,4}),p=(\d{1,4})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class User:
    """One line. `argon2` is in the encoded form, without the salt's and the digest's padding."""

    name: str
    argon2: str = field(repr=False)
    verifier: Verifier | None = None


@dataclass(frozen=True, slots=True)
class Users:
    """A file's contents. `damaged` are sentences for operators."""

    by_name: Mapping[str, User]
    damaged: tuple[str, ...] = ()

    @property
    def first(self) -> User | None:
        return next(iter(self.by_name.values()), None)

    @property
    def first_verifier(self) -> Verifier | None:
        """Of the first user that has one; None: SCRAM is for nobody."""
        return next((u.verifier for u in self.by_name.values() if u.verifier), None)


def parse(octets: bytes) -> Users:
    """The users of a file. Never raises: what is damaged is in the answer, with its line.

    A name that stands twice is damaged where it stands again, and means nobody: which of two
    passwords was withdrawn is not guessed.
    """
    users: dict[str, User] = {}
    lines: dict[str, int] = {}
    damaged: list[str] = []
    for number, line in enumerate(octets.split(b"\n"), 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        try:
            user = _user(words)
        except ValueError as error:
            # Its name may be that of a sound line: then that is not to be trusted either.
            name = _name_or_none(words[0])
            damaged.append(f"line {number}: {error}; {printable(words[0])} is refused")
            if name is not None:
                users.pop(name, None)
                lines.setdefault(name, number)
            continue
        if user.name in lines:
            users.pop(user.name, None)
            first = lines[user.name]
            damaged.append(
                f"line {number}: {printable(words[0])} stands in line {first} too, and is refused"
            )
            continue
        users[user.name] = user
        lines[user.name] = number
    return Users(users, tuple(damaged))


def _user(words: list[bytes]) -> User:
    """@raise ValueError."""
    name = _name(words[0])
    if len(words) not in {2, 3}:
        raise ValueError("expected a name, $argon2id$..., and perhaps SCRAM-SHA-256$...")
    argon2 = words[1].decode("ascii", "replace")
    check_argon2(argon2)
    if len(words) == 2:
        return User(name, argon2)
    return User(name, argon2, parse_verifier(words[2].decode("ascii", "replace")))


def _name(word: bytes) -> str:
    """@raise ValueError."""
    try:
        name = word.decode()
    except UnicodeDecodeError:
        raise ValueError("the name is not UTF-8") from None
    try:
        prepared = prepare(name)
    except ValueError as error:
        raise ValueError(f"the name: {error}") from None
    if not prepared:
        raise ValueError("the name: nothing of it is visible")
    return prepared


def _name_or_none(word: bytes) -> str | None:
    try:
        return _name(word)
    except ValueError:
        return None


def check_argon2(text: str) -> None:
    """@raise ValueError: not Argon2id's encoded form (version 19), or beyond what may be asked."""
    match = _ARGON2.fullmatch(text)
    if match is None:
        raise ValueError("expected $argon2id$v=19$m=...,t=...,p=...$salt$digest")
    memory, passes, lanes = (int(number) for number in match.groups()[:3])
    salt, digest = _unpadded(match[4]), _unpadded(match[5])
    if not 8 * lanes <= memory <= MOST_KIB or not 1 <= passes <= MOST_PASSES:
        raise ValueError(f"m={memory},t={passes} is outside m<={MOST_KIB}, t<={MOST_PASSES}")
    if not 1 <= lanes <= MOST_LANES:
        raise ValueError(f"p={lanes} is outside 1 to {MOST_LANES}")
    if not 8 <= len(salt) <= 64 or not 16 <= len(digest) <= 64:
        raise ValueError("a salt has 8 to 64 octets, a digest 16 to 64")


def _unpadded(text: str) -> bytes:
    """@raise ValueError: no encoder writes that, and Argon2's decoder refuses it."""
    wrong = ValueError("salt and digest are written in base64 without padding")
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise wrong from None
    if base64.b64encode(octets).rstrip(b"=") != text.encode("ascii"):
        raise wrong
    return octets


def nobodys_argon2(like: str) -> str:
    """As expensive as `like`, and of no password: its digest is all zeros."""
    head, digest = like[: like.rindex("$") + 1], like[like.rindex("$") + 1 :]
    return head + "A" * len(digest)


Stamp = tuple[int, ...]


class PasswordFile:
    """Reads one file. Blocking; one call at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: Stamp = ()

    def read(self) -> Users:
        """@raise StartRefused: it cannot be read, is no file, is too large, or open to others."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as fault:
            raise self._unreadable(fault) from None
        try:
            facts = os.fstat(fd)
            self._stamp = _stamp(facts)
            self._check(facts)
            with open(fd, "rb", closefd=False) as file:
                octets = file.read(LARGEST_OCTETS + 1)
        except OSError as fault:
            raise self._unreadable(fault) from None
        finally:
            os.close(fd)
        if len(octets) > LARGEST_OCTETS:
            raise StartRefused(
                f"the password file {self._path} is too large",
                f"it has more than {LARGEST_OCTETS // 2**20} MiB",
                "keep so many users in Dovecot or another authenticator",
                os.EX_CONFIG,
            )
        return parse(octets)

    def look(self) -> Users | None:
        """The users if the file is another than when it was last read, else None; as `read`."""
        try:
            facts = os.stat(self._path)
        except OSError as fault:
            if self._stamp == (fault.errno or 0,):
                return None
            self._stamp = (fault.errno or 0,)
            raise self._unreadable(fault) from None
        return None if _stamp(facts) == self._stamp else self.read()

    def _check(self, facts: os.stat_result) -> None:
        if not stat.S_ISREG(facts.st_mode):
            raise StartRefused(
                f"the password file {self._path} is not a file",
                "it is a directory, a device or a pipe",
                "name a file with one user a line",
                os.EX_CONFIG,
            )
        if facts.st_mode & (stat.S_IROTH | stat.S_IWOTH):
            raise StartRefused(
                f"the password file {self._path} is open to others",
                f"its mode is {stat.S_IMODE(facts.st_mode):04o}",
                f"chmod o-rw {self._path}",
                os.EX_NOPERM,
            )

    def _unreadable(self, fault: OSError) -> StartRefused:
        return StartRefused(
            f"the password file {self._path} cannot be read by uid {os.geteuid()}",
            fault.strerror or str(fault),
            "the user that the MTA runs as must be able to read it",
            os.EX_NOPERM,
        )


def _stamp(facts: os.stat_result) -> Stamp:
    return facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_mode
