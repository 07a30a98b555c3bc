"""The kind `passwords`: who is let in, what a file may look like, and what a check costs."""

from __future__ import annotations

import os
from typing import Any

from argon2.low_level import Type, hash_secret
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from mta.auth.argon2_checks import MOST_AT_ONCE, MOST_REMEMBERED, MOST_WAITING, Argon2Checks
from mta.auth.password_file import (
    LARGEST_OCTETS,
    MOST_KIB,
    PasswordFile,
    check_argon2,
    nobodys_argon2,
    parse,
)
from mta.auth.passwords import LOOK_SECONDS, MOST_NAMED, NOBODYS, Passwords, PasswordsSettings
from mta.errors import LocalProtocolError, PermanentFailure, StartRefused, TransientFailure
from mta.model import Authenticated, Challenge
from mta.settings import SecretFile
from mta.testing.auth_suite import (
    CLIENTS,
    PASSWORD,
    USER,
    IAuthenticatorTests,
    auth_peer,
    converse,
    settled,
)
from mta.testing.clock import VirtualClock
from mta.testing.executors import StepExecutor
from mta.testing.surroundings import MemorySurroundings
from mta.wire.scram import LEAST_ITERATIONS, verifier_for

LIGHT = settings(max_examples=200, deadline=None, derandomize=True)
SCRAM = "SCRAM-SHA-256"


def argon2_of(password: str, salt: bytes = b"saltsalt") -> str:
    """As cheap as Argon2id can be: the cost is the parameters' matter, not ours."""
    octets = hash_secret(password.encode(), salt, 1, 8, 1, 16, Type.ID)
    return octets.decode("ascii")


def line(user: str = USER, password: str = PASSWORD, *, scram: bool = False) -> str:
    verifier = f" {verifier_for(password, b'pepperpepper', LEAST_ITERATIONS)}" if scram else ""
    return f"{user} {argon2_of(password)}{verifier}\n"


class FileTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.abspath(self.mktemp())

    def write(self, text: str | bytes, mode: int = 0o600) -> None:
        octets = text.encode() if isinstance(text, str) else text
        with open(self.path, "wb") as file:
            file.write(octets)
        os.chmod(self.path, mode)

    def passwords(self, surroundings: MemorySurroundings, **keys: Any) -> Passwords:
        return Passwords(
            PasswordsSettings(password_file=SecretFile(self.path), **keys), surroundings
        )

    def try_in(
        self,
        passwords: Passwords,
        surroundings: MemorySurroundings,
        user: str = USER,
        password: str = PASSWORD,
        mechanism: str = "PLAIN",
    ) -> Any:
        exchange = passwords.begin(mechanism, auth_peer())
        client = CLIENTS[mechanism](user, password, at_once=True)
        return converse(surroundings, exchange, client)


class WithScramTests(IAuthenticatorTests, FileTestCase):
    """The suite, on a file in which users have verifiers."""

    def build(self, surroundings: MemorySurroundings) -> Passwords:
        self.write(line("first", "x", scram=True) + line(scram=True))
        return self.passwords(surroundings)


class WithoutScramTests(IAuthenticatorTests, FileTestCase):
    """The suite, on a file in which nobody has one."""

    def build(self, surroundings: MemorySurroundings) -> Passwords:
        self.write("# staff\n\n" + line())
        return self.passwords(surroundings)


class PasswordsTests(FileTestCase):
    def test_mechanisms(self) -> None:
        """SCRAM is offered while somebody has a verifier, and before the others."""
        self.write(line())
        self.assertEqual(("PLAIN", "LOGIN"), self.passwords(MemorySurroundings()).mechanisms)
        self.write(line() + line("bert", scram=True))
        passwords = self.passwords(MemorySurroundings())
        self.assertEqual((SCRAM, "PLAIN", "LOGIN"), passwords.mechanisms)
        self.assertRaises(LocalProtocolError, passwords.begin, "CRAM-MD5", auth_peer())

    def test_without_a_verifier(self) -> None:
        """A user who has none is refused by SCRAM as a stranger is, and let in by PLAIN."""
        surroundings = MemorySurroundings()
        self.write(line() + line("bert", scram=True))
        passwords = self.passwords(surroundings)
        refusal = self.try_in(passwords, surroundings, mechanism=SCRAM)
        stranger = self.try_in(passwords, surroundings, "nobody", mechanism=SCRAM)
        self.assertIsInstance(refusal, PermanentFailure)
        self.assertEqual(str(stranger), str(refusal))
        self.assertEqual(Authenticated(USER), self.try_in(passwords, surroundings))

    def test_same_feigned_salt_on_every_node(self) -> None:
        """A stranger's salt is the same after a restart and on another node, and when users are
        added behind.
        """
        salts = set()
        for more in ("", line("cleo", scram=True)):
            surroundings = MemorySurroundings()
            self.write(line(scram=True) + more)
            exchange = self.passwords(surroundings).begin(SCRAM, auth_peer())
            first = settled(surroundings, exchange.step(b"n,,n=nobody,r=abc")).octets
            salts.add(first.split(b",")[1])
        self.assertEqual(1, len(salts))

    def test_nobody_there(self) -> None:
        """A file without users lets nobody in, after a check that costs as much as ours do."""
        surroundings = MemorySurroundings(executor=StepExecutor())
        self.write("# nobody yet\n")
        passwords = self.passwords(surroundings)
        passwords.begin("PLAIN", auth_peer()).step(b"\0anna\0x").addErrback(lambda _: None)
        ((_, arguments, _),) = surroundings.executor.calls  # type: ignore[attr-defined]
        self.assertEqual(NOBODYS, arguments[0])
        check_argon2(NOBODYS)

    def test_a_stranger_costs_as_much(self) -> None:
        """A user who is not there is checked against a digest with the first user's parameters."""
        surroundings = MemorySurroundings(executor=StepExecutor())
        self.write(line())
        passwords = self.passwords(surroundings)
        for user in (USER, "nobody"):
            step = passwords.begin("PLAIN", auth_peer()).step(f"\0{user}\0wrong".encode())
            step.addErrback(lambda _: None)
        calls = surroundings.executor.calls  # type: ignore[attr-defined]
        (_, known, _), (_, unknown, _) = calls
        self.assertEqual(known[0].rpartition("$")[0], unknown[0].rpartition("$")[0])
        self.assertEqual(len(known[0]), len(unknown[0]))
        surroundings.executor.run()  # type: ignore[attr-defined]

    def test_read_again(self) -> None:
        """A change counts from the next exchange that begins after a few seconds, not sooner."""
        surroundings = MemorySurroundings()
        self.write(line())
        passwords = self.passwords(surroundings)
        self.write(line("bert", "new", scram=True))
        surroundings.advance(LOOK_SECONDS - 0.001)
        self.assertIsInstance(self.try_in(passwords, surroundings, "bert", "new"), PermanentFailure)
        surroundings.advance(0.001)
        self.assertEqual(Authenticated("bert"), self.try_in(passwords, surroundings, "bert", "new"))
        self.assertIn(SCRAM, passwords.mechanisms)
        self.assertIsInstance(self.try_in(passwords, surroundings), PermanentFailure)
        self.assertEqual([f"{self.path} was read again, users: 1"], surroundings.notices("info"))

    def test_withdrawn(self) -> None:
        """A password that was changed is worth nothing, though it was remembered."""
        surroundings = MemorySurroundings()
        self.write(line())
        passwords = self.passwords(surroundings)
        self.assertEqual(Authenticated(USER), self.try_in(passwords, surroundings))
        self.write(line(password="another"))
        surroundings.advance(LOOK_SECONDS)
        self.assertIsInstance(self.try_in(passwords, surroundings), PermanentFailure)

    def test_damaged_later(self) -> None:
        """A file that is opened to others or goes leaves the former users, and one line each."""
        surroundings = MemorySurroundings()
        self.write(line())
        passwords = self.passwords(surroundings)
        os.chmod(self.path, 0o644)
        for _ in range(3):
            surroundings.advance(LOOK_SECONDS)
            self.assertEqual(Authenticated(USER), self.try_in(passwords, surroundings))
        (said,) = surroundings.notices("error")
        self.assertIn("open to others: its mode is 0644", said)
        self.assertIn("the former users stay", said)
        os.unlink(self.path)
        for _ in range(3):
            surroundings.advance(LOOK_SECONDS)
            self.assertEqual(Authenticated(USER), self.try_in(passwords, surroundings))
        (_, said) = surroundings.notices("error")
        self.assertIn("No such file", said)
        self.write(line(password="back"))
        surroundings.advance(LOOK_SECONDS)
        self.assertEqual(Authenticated(USER), self.try_in(passwords, surroundings, password="back"))

    def test_given_up_while_it_is_read(self) -> None:
        """Who gives up while the file is read does not lose the change for those behind."""
        surroundings = MemorySurroundings(executor=StepExecutor())
        executor: Any = surroundings.executor
        self.write(line())
        passwords = self.passwords(surroundings)
        self.write(line(password="new"))
        surroundings.advance(LOOK_SECONDS)
        step = passwords.begin("PLAIN", auth_peer()).step(f"\0{USER}\0new".encode())
        step.cancel()
        self.failureResultOf(step, CancelledError)
        executor.run()
        step = passwords.begin("PLAIN", auth_peer()).step(f"\0{USER}\0new".encode())
        executor.run()
        self.assertEqual(Authenticated(USER), self.successResultOf(step))

    def test_one_looks(self) -> None:
        """While one exchange waits for the file the next is content with the former users."""
        surroundings = MemorySurroundings(executor=StepExecutor())
        executor: Any = surroundings.executor
        self.write(line())
        passwords = self.passwords(surroundings)
        surroundings.advance(LOOK_SECONDS)
        steps = []
        for _ in range(2):
            surroundings.advance(LOOK_SECONDS)
            exchange = passwords.begin("PLAIN", auth_peer())
            steps.append(exchange.step(f"\0{USER}\0{PASSWORD}".encode()))
        self.assertEqual(2, len(executor.calls))  # one look, and one check beside it
        executor.run()
        for step in steps:
            self.assertEqual(Authenticated(USER), self.successResultOf(step))

    def test_one_step_at_a_time(self) -> None:
        """A step while another is under way is our defect, and spoils nothing."""
        surroundings = MemorySurroundings(executor=StepExecutor())
        executor: Any = surroundings.executor
        self.write(line())
        exchange = self.passwords(surroundings).begin("PLAIN", auth_peer())
        step = exchange.step(f"\0{USER}\0{PASSWORD}".encode())
        self.failureResultOf(exchange.step(b"x"), LocalProtocolError)
        executor.run()
        self.assertEqual(Authenticated(USER), self.successResultOf(step))

    def test_abandoned_at_work(self) -> None:
        """Abandoning while a check runs ends the step; the worker ends by itself."""
        surroundings = MemorySurroundings(executor=StepExecutor())
        executor: Any = surroundings.executor
        self.write(line())
        exchange = self.passwords(surroundings).begin("PLAIN", auth_peer())
        step = exchange.step(f"\0{USER}\0{PASSWORD}".encode())
        exchange.abandon()
        self.failureResultOf(step, CancelledError)
        executor.run()
        self.failureResultOf(exchange.step(None), LocalProtocolError)

    def test_refused_at_start(self) -> None:
        """A file that others can read, or that cannot be read, is refused with what to do."""
        surroundings = MemorySurroundings()
        for mode in (0o644, 0o602):
            self.write(line(), mode)
            said = str(self.assertRaises(StartRefused, self.passwords, surroundings))
            self.assertIn(f"its mode is {mode:04o}", said)
            self.assertIn(f"(chmod o-rw {self.path})", said)
        os.unlink(self.path)
        said = str(self.assertRaises(StartRefused, self.passwords, surroundings))
        self.assertIn("No such file", said)
        os.mkdir(self.path)
        said = str(self.assertRaises(StartRefused, self.passwords, surroundings))
        self.assertIn(self.path, said)
        os.rmdir(self.path)
        os.mkfifo(self.path, 0o600)
        said = str(self.assertRaises(StartRefused, self.passwords, surroundings))
        self.assertIn("is not a file", said)
        os.unlink(self.path)
        self.write(b"#" * (LARGEST_OCTETS + 1))
        said = str(self.assertRaises(StartRefused, self.passwords, surroundings))
        self.assertIn("too large", said)

    def test_readable_by_a_group(self) -> None:
        """root:mta 0640 is how such files usually lie."""
        self.write(line(), 0o640)
        surroundings = MemorySurroundings()
        self.assertEqual(
            Authenticated(USER), self.try_in(self.passwords(surroundings), surroundings)
        )

    def test_damaged_lines(self) -> None:
        """A damaged line is said by its number, refuses its user, and nobody else."""
        surroundings = MemorySurroundings()
        self.write(f"bert $argon2id$broken\n{line()}".encode() + b"c\x1bleo\xff x\n" * 20)
        passwords = self.passwords(surroundings)
        self.assertEqual(Authenticated(USER), self.try_in(passwords, surroundings))
        self.assertIsInstance(self.try_in(passwords, surroundings, "bert", "x"), PermanentFailure)
        said = surroundings.notices("warning")
        self.assertEqual(MOST_NAMED + 1, len(said))
        self.assertIn(f"{self.path}: line 1: expected $argon2id$v=19", said[0])
        self.assertIn("bert is refused", said[0])
        self.assertNotIn("broken", said[0])
        self.assertIn("line 3: the name is not UTF-8; c?leo? is refused", said[1])
        self.assertIn("11 more lines", said[-1])


class FormatTests(SynchronousTestCase):
    def damage(self, text: str) -> str:
        users = parse(text.encode())
        self.assertEqual(1, len(users.damaged), users)
        return users.damaged[0]

    def test_lines(self) -> None:
        """Names, comments, empty lines, both forms, and any white space between."""
        text = f"# a\n\n  {line()}\t#b\n{line('bert', scram=True).strip()}\r\n"
        users = parse(text.encode())
        self.assertEqual((), users.damaged)
        self.assertEqual([USER, "bert"], list(users.by_name))
        self.assertIsNone(users.by_name[USER].verifier)
        self.assertEqual(users.by_name["bert"].verifier, users.first_verifier)
        self.assertNotIn("argon2id", repr(users))

    def test_names_are_prepared(self) -> None:
        """A name in another spelling is the same name."""
        self.assertEqual(["IX"], list(parse(line("\u2168").encode()).by_name))
        self.assertIn("Unicode 3.2", self.damage(line("\U0001f40e")))

    def test_doubled(self) -> None:
        """Who stands twice, soundly or not, is nobody."""
        for text in (
            line() + line(password="other"),
            line() + f"{USER} x\n",
            f"{USER} x\n" + line(),
            line() * 3,
        ):
            users = parse(text.encode())
            self.assertNotIn(USER, users.by_name)
            self.assertIn("2", users.damaged[-1] + "line 2")
            self.assertTrue(all("is refused" in d for d in users.damaged))
        twice = parse((line() + line()).encode()).damaged
        self.assertEqual((f"line 2: {USER} stands in line 1 too, and is refused",), twice)

    def test_beyond_bounds(self) -> None:
        """What costs too much to check, is of another kind, or is not what an encoder writes."""
        good = argon2_of("x")
        for old, new, why in (
            ("argon2id", "argon2i", "expected $argon2id"),
            ("v=19", "v=16", "expected"),
            ("m=8", f"m={MOST_KIB + 1}", "outside"),
            ("m=8", "m=7", "outside"),
            ("t=1", "t=33", "outside"),
            ("t=1", "t=0", "outside"),
            ("p=1", "p=0", "outside"),
            ("m=8,t=1,p=1", "m=4096,t=1,p=17", "outside"),
            ("c2FsdHNhbHQ", "c2FsdHNhbHR", "base64"),
            ("c2FsdHNhbHQ", "c2Fsd", "base64"),
            ("c2FsdHNhbHQ", "c2Fs", "a salt has"),
        ):
            self.assertIn(old, good)
            self.assertIn(why, self.damage(f"x {good.replace(old, new)}"))
        self.assertIn("expected a name", self.damage("x"))
        self.assertIn("expected a name", self.damage(line(scram=True).strip() + " more"))
        self.assertIn("base64", self.damage(f"x {good} SCRAM-SHA-256$4096:!$a:b"))

    def test_nobodys(self) -> None:
        """The digest of nobody is as long, has the same parameters, and is sound."""
        check_argon2(nobodys_argon2(argon2_of("x")))
        self.assertNotEqual(argon2_of("x"), nobodys_argon2(argon2_of("x")))

    @LIGHT
    @given(
        st.lists(
            st.one_of(
                st.binary(),
                st.text(alphabet="a# \t$=,:argon2id0", max_size=40).map(str.encode),
                st.tuples(st.integers(0, 140), st.binary(max_size=2)).map(
                    lambda cut: _SOUND[: cut[0]] + cut[1] + _SOUND[cut[0] + 1 :]
                ),
            )
        ).map(b"\n".join)
    )
    def test_any_octets(self, octets: bytes) -> None:
        """Any octets give users whose lines are sound, and sentences that can be printed."""
        users = parse(octets)
        for name, user in users.by_name.items():
            self.assertEqual(name, user.name)
            check_argon2(user.argon2)
        for sentence in users.damaged:
            self.assertTrue(sentence.isprintable())
            self.assertTrue(sentence.startswith("line "))

    def test_same_file(self) -> None:
        """A file that did not change is not read again."""
        path = os.path.abspath(self.mktemp())
        with open(path, "w") as file:
            file.write(line())
        os.chmod(path, 0o600)
        read = PasswordFile(path)
        self.assertEqual([USER], list(read.read().by_name))
        self.assertIsNone(read.look())


_SOUND = line(scram=True).strip().encode()


class CheckTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = VirtualClock()
        self.executor = StepExecutor()
        self.argon2 = argon2_of("right")

    def checks(self, remember: float = 300.0) -> Argon2Checks:
        return Argon2Checks(self.clock, self.executor, remember)

    def test_two_at_a_time(self) -> None:
        """However many wait, two workers are busy; all are answered."""
        checks = self.checks()
        asked = [checks.check(self.argon2, f"wrong {n}") for n in range(MOST_WAITING)]
        while self.executor.calls:
            self.assertLessEqual(len(self.executor.calls), MOST_AT_ONCE)
            self.executor.work()
            self.executor.deliver()
        self.assertEqual([False] * MOST_WAITING, [self.successResultOf(a) for a in asked])

    def test_given_up(self) -> None:
        """Who gives up leaves the queue, and a check that runs keeps its place until it ends."""
        checks = self.checks()
        asked = [checks.check(self.argon2, f"wrong {n}") for n in range(4)]
        for number in (0, 3):
            asked[number].cancel()
            self.failureResultOf(asked[number], CancelledError)
        self.assertEqual(MOST_AT_ONCE, len(self.executor.calls))
        self.executor.run()
        self.assertIs(False, self.successResultOf(asked[1]))
        self.assertIs(False, self.successResultOf(asked[2]))

    def test_too_many(self) -> None:
        """Beyond a number of waiting ones a check is refused at once, as transient."""
        checks = self.checks()
        asked = [checks.check(self.argon2, str(n)) for n in range(MOST_AT_ONCE + MOST_WAITING)]
        fault = self.failureResultOf(checks.check(self.argon2, "x"), TransientFailure).value
        self.assertEqual((454, "4.7.0"), (fault.code, fault.enhanced))
        for one in asked:
            one.cancel()
            self.failureResultOf(one, CancelledError)
        again = checks.check(self.argon2, "right")
        self.executor.run()
        self.assertIs(True, self.successResultOf(again))

    def test_remembered(self) -> None:
        """A right password needs no second check for a time; a wrong one always does."""
        checks = self.checks(300.0)
        for password, is_right in (("right", True), ("wrong", False)):
            first = checks.check(self.argon2, password)
            self.executor.run()
            self.assertIs(is_right, self.successResultOf(first))
        self.clock.advance(299.999)
        self.assertIs(True, self.successResultOf(checks.check(self.argon2, "right")))
        self.assertNoResult(checks.check(self.argon2, "wrong"))
        self.assertNoResult(checks.check(argon2_of("right", b"othersalt"), "right"))
        self.clock.advance(0.001)
        self.assertNoResult(checks.check(self.argon2, "right"))

    def test_never_remembered(self) -> None:
        """With 0 each is checked."""
        checks = self.checks(0.0)
        for _ in range(2):
            asked = checks.check(self.argon2, "right")
            self.assertNoResult(asked)
            self.executor.run()
            self.assertIs(True, self.successResultOf(asked))

    def test_no_password_is_kept(self) -> None:
        """What is remembered is digests, and not more than a number of them."""
        checks = self.checks()
        for number in range(MOST_REMEMBERED + 3):
            checks._remembered(True, number.to_bytes(4, "big"))
        self.assertEqual(MOST_REMEMBERED, len(checks._known))
        asked = checks.check(self.argon2, "right")
        self.executor.run()
        self.assertIs(True, self.successResultOf(asked))
        self.assertTrue(all(b"right" not in mark for mark in checks._known))

    def test_stopped(self) -> None:
        """When the workers have stopped nothing is known, and that is transient."""
        self.executor.stop()
        fault = self.failureResultOf(self.checks().check(self.argon2, "x"), TransientFailure).value
        self.assertEqual((454, "4.7.0"), (fault.code, fault.enhanced))

    def test_no_memory(self) -> None:
        """What Argon2 cannot do is transient: a wrong password is something else."""
        checks = self.checks()
        # Sound by its form, and refused by Argon2 itself: lanes without memory.
        asked = checks.check(self.argon2.replace("m=8,t=1,p=1", "m=8,t=1,p=9"), "right")
        self.executor.run()
        fault = self.failureResultOf(asked, TransientFailure).value
        self.assertIn("Argon2", str(fault))


class ChallengeTests(FileTestCase):
    def test_fresh_nonce(self) -> None:
        """Two exchanges have two nonces, with at least 144 bits of our own in each."""
        surroundings = MemorySurroundings()
        self.write(line(scram=True))
        passwords = self.passwords(surroundings)
        nonces = set()
        for _ in range(2):
            said = settled(surroundings, passwords.begin(SCRAM, auth_peer()).step(b"n,,n=x,r=abc"))
            assert isinstance(said, Challenge)
            nonces.add(said.octets.split(b",")[0])
        self.assertEqual(2, len(nonces))
        self.assertTrue(all(len(nonce) == len(b"r=abc") + 24 for nonce in nonces))

    def test_last_verifier_gone(self) -> None:
        """When the last verifier goes while an exchange is under way it is refused, as others are."""
        surroundings = MemorySurroundings()
        self.write(line(scram=True))
        passwords = self.passwords(surroundings)
        exchange = passwords.begin(SCRAM, auth_peer())
        self.write(line())
        surroundings.advance(LOOK_SECONDS)
        said = settled(surroundings, exchange.step(b"n,,n=x,r=abc"))
        self.assertIsInstance(said, PermanentFailure)
