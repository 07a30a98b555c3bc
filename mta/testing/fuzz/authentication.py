"""What clients, servers and Dovecot say while somebody proves who he is; files of passwords."""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from random import Random

from mta.auth.password_file import parse
from mta.errors import PermanentFailure, RemoteProtocolError
from mta.model import Authenticated, Challenge
from mta.testing.fuzz.octets import pieces_of
from mta.testing.fuzz.target import Broken, Target, either, ensure, same
from mta.wire import sasl, sasl_client, scram
from mta.wire.dovecot_auth import LONGEST_LINE, DovecotAuth, Request, escape, unescape
from mta.wire.saslprep import prepare
from mta.wire.strict64 import decode

_PASSWORD = "pencil"  # of nobody
_VERIFIER = scram.verifier_for(_PASSWORD, b"0123456789abcdef", scram.LEAST_ITERATIONS)
_TABS = (b"\t", b"\n", b"\r", b"\0", b"\x01", b"\x01t", b"=", b",", b" ")


class Dovecot(Target):
    """Whatever Dovecot's socket says comes to one answer, to waiting, or breaks the protocol by
    name, and a line of it is held. Cutting changes nothing. Nothing of a client makes two words.
    """

    name = "dovecot"
    spices = (
        *_TABS,
        *(b"OK\t1\tuser=a\n", b"FAIL\t1\ttemp\n", b"CONT\t1\t\n", b"DONE\n", b"MECH\tPLAIN\n"),
        *(b"VERSION\t1\t2\n", b"user=", b"code=temp_fail", b"x" * 17_000, b"\xff"),
    )

    def hold(self, rng: Random, number: int) -> None:
        data = self.octets(rng)
        said = self.octets(rng, 300)
        same(
            _dovecot([data], said),
            _dovecot(pieces_of(rng, data), said),
            "pieces change what Dovecot means",
        )
        escaped = escape(said)
        ensure(not set(escaped) & set(b"\0\t\r\n"), "an escaped value makes another word")
        same(unescape(escaped), said, "an escaped value is another")


def _dovecot(pieces: list[bytes], said: bytes) -> object:
    request = Request("PLAIN", True, "192.0.2.1", 25, "192.0.2.2", 4000)
    machine = DovecotAuth(7, request, said)
    answers: list[object] = []
    for piece in pieces:
        try:
            answer = machine.receive(piece)
        except RemoteProtocolError:
            ensure(machine.is_over, "the protocol was broken, and it goes on")
            return "broken"
        is_bounded = machine.is_over or len(machine._input) <= LONGEST_LINE
        ensure(is_bounded, "more than a line is kept")
        if answer is None:
            continue
        if isinstance(answer, Challenge) and len(answers) < 3:
            # The client needs time: what came behind the challenge was not asked for.
            answers.append(answer.octets)
            continue
        if isinstance(answer, Authenticated):
            ensure(answer.user.isprintable(), "who was let in has no name")
        answers.append(repr(answer))
        ensure(machine.is_over, "it was answered, and it goes on")
    output = machine.take_output()
    ensure(output.count(b"\n") in (2, 3), f"it was told {output!r}")
    return answers, machine.is_over, output


class SaslServer(Target):
    """Any octets at any step of PLAIN, LOGIN and SCRAM end in a challenge, in names and passwords,
    or in a refusal, and nobody is let in whose password was not proven.
    """

    name = "sasl-server"
    spices = (
        *(b"\0", b"n,,n=", b"y,,", b"p=tls-unique,,", b",a=", b",r=", b",p=", b"c=biws", b"=2C"),
        *(b"=3D", b"=", b",", b"\xff", "é".encode(), "\u00ad".encode(), b"x" * 1100, b"\r\n"),
    )

    def hold(self, rng: Random, number: int) -> None:
        for kind in (sasl.Plain, sasl.Login):
            self._simple(rng, kind())
        self._scram(rng)

    def _simple(self, rng: Random, machine: sasl.Plain | sasl.Login) -> None:
        response: bytes | None = None if rng.random() < 0.5 else self.octets(rng, 3000)
        for _ in range(3):
            found = either(partial(machine.respond, response), PermanentFailure)
            if not isinstance(found, Challenge):
                if isinstance(found, sasl.Credentials):
                    ensure(found.user and found.password, "an empty name or password")
                return
            response = self.octets(rng, 3000)
        raise Broken("it goes on asking")

    def _scram(self, rng: Random) -> None:
        """A client that knows the password, or does not, and whose words are changed."""
        machine = scram.Scram()
        knows = rng.random() < 0.7
        nonce = b"rOprNGfwEbeRWgbNEkqO"
        user = sasl_client.Scram(sasl_client.Credentials("user", _PASSWORD, nonce))
        first = user.begin()
        is_changed = rng.random() < 0.7
        if is_changed:
            first = self.octets(rng, 3000)
        wanted = either(lambda: machine.respond(first), PermanentFailure)
        if not isinstance(wanted, scram.Wanted):
            return
        ensure(wanted.user, "an empty name is asked for")
        challenge = machine.challenge(_VERIFIER, b"3rfcNHYJY1ZVvWVs7j")
        final = self.octets(rng, 3000)
        is_proof = False
        if knows and not is_changed:
            salt = user.answer(challenge.octets)
            assert isinstance(salt, sasl_client.Salt)
            final = user.derived(_KEY)
            is_proof = True
            if rng.random() < 0.5:
                at = rng.randrange(len(final))
                other = final[:at] + bytes((final[at] ^ 1 << rng.randrange(7),)) + final[at + 1 :]
                is_proof, final = other == final, other
        found = either(lambda: machine.respond(final), PermanentFailure)
        ensure(isinstance(found, Challenge) == is_proof, f"{final!r} is a proof: {found!r}")
        if is_proof:
            ensure(isinstance(machine.respond(b""), scram.Proven), "a proof does not let in")


_KEY = sasl_client.derive(_PASSWORD.encode(), _VERIFIER.salt, _VERIFIER.iterations)


class SaslClient(Target):
    """Whatever a server says to PLAIN, LOGIN or SCRAM, the client answers or breaks off by name. It
    does not derive more than it may, and only a server that signs what was said has proved itself.
    """

    name = "sasl-client"
    spices = (
        *(b"r=", b",s=", b",i=4096", b",i=", b"v=", b"e=other-error", b"=", b",", b"m=x,", b"\xff"),
        *(b"rOprNGfwEbeRWgbNEkqO", b"999999999999", b"0", b"x" * 1100, b"\0"),
    )

    def hold(self, rng: Random, number: int) -> None:
        credentials = sasl_client.Credentials("user", _PASSWORD, b"rOprNGfwEbeRWgbNEkqO")
        for kind in sasl_client.EXCHANGES.values():
            exchange = kind(credentials)
            exchange.begin()
            for _ in range(rng.randint(1, 4)):
                challenge = self.octets(rng, 3000)
                found = either(partial(exchange.answer, challenge), RemoteProtocolError)
                if isinstance(found, BaseException):
                    break
                if isinstance(found, sasl_client.Salt):
                    ensure(
                        sasl_client.FEWEST_ROUNDS <= found.rounds <= sasl_client.MOST_ROUNDS,
                        f"{found.rounds} rounds would be done",
                    )
                    ensure(found.salt, "an empty salt")
                    exchange.derived(_KEY)
            ensure(exchange.betrays(b"x" + _PASSWORD.encode()), "it hears not its own password")
            if kind is sasl_client.Scram:
                ensure(not exchange.is_proven, "a server has proved itself that knows nothing")


class Saslprep(Target):
    """Any text comes to its one form or is refused. The form is its own form, holds no character
    that is forbidden, and base64 is read as its alphabet alone has it.
    """

    name = "saslprep"
    spices = tuple(
        text.encode()
        for text in (
            "\u00ad",
            "\u00a0",
            "ª",
            "Ⅸ",
            "\u0627",
            "1",
            "\u0007",
            "\u2028",
            "\U000e0001",
            "ﷺ",
            "\u0221",
        )
    )

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng, 400)
        text = octets.decode("utf-8", rng.choice(("replace", "surrogateescape", "ignore")))
        if rng.random() < 0.05:
            text = "".join(chr(rng.randrange(0x110000)) for _ in range(8))
        for is_query in (False, True):
            found = either(partial(prepare, text, is_query=is_query), ValueError)
            if isinstance(found, str):
                same(prepare(found, is_query=is_query), found, "the form has another form")
        encoded = decode(octets)
        if encoded is not None:
            same(len(b64encode(encoded)), len(octets), "base64 that nobody would write is read")


class Passwords(Target):
    """Any file is users and sentences about what is damaged. A name is one user's at most, what may
    be asked of Argon2 and SCRAM is bounded, and no sentence repeats more of a line than its name.
    """

    name = "passwords"
    spices = (
        *(b"\n", b" ", b"#", b"$", b"$argon2id$v=19$m=65536,t=3,p=4$", b"SCRAM-SHA-256$4096:"),
        *(
            b":",
            b"=",
            b",",
            b"m=999999999",
            b"\xff",
            "é".encode(),
            "\u0661".encode(),
            b"\0",
            b"\r\n",
        ),
    )

    def hold(self, rng: Random, number: int) -> None:
        octets = self.octets(rng)
        users = parse(octets)
        for name, user in users.by_name.items():
            same(name, user.name, "a user under another's name")
            same(prepare(name), name, "a name that is not prepared")
            if user.verifier is not None:
                ensure(
                    scram.LEAST_ITERATIONS <= user.verifier.iterations <= scram.MOST_ITERATIONS,
                    "more rounds than may be asked for",
                )
                same(scram.parse_verifier(str(user.verifier)), user.verifier, "it reads as another")
        for sentence in users.damaged:
            ensure(sentence.isprintable(), "a sentence cannot be printed")
        ensure(
            len(users.by_name) + len(users.damaged) <= octets.count(b"\n") + 1, "users of nothing"
        )
