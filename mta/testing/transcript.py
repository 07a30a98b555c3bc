"""Transcripts: SMTP dialogues as a person at a terminal would type and read them.

Law: a transcript is golden. Running it answers the very text of the file, or somebody has changed
what is said on the wire. `python -m mta.testing.transcript --rewrite [FILE ...]` writes what is
said now; only keep that if you know why it differs.

A transcript begins with comments and `key: value` settings up to an empty line:
    side: responder (we answer) or initiator (we ask)      role: smtp or lmtp
    limit: recipients=2                                     the responder's Limits
    offer: checkpoint                                       what not every client is offered; also
                                                            chunking, starttls (a must: starttls!),
                                                            auth (under TLS), auth-clear (always),
                                                            deliver-by, deliver-by=SECONDS,
                                                            xclient (always) and xclient-once,
                                                            priority, priority=PROFILE, and
                                                            unknown: such commands are told
    hook: rcpt <a@example.org> 550 5.1.1 No such user       what a hook answers instead of "go on";
                                                            `-` where there is no enhanced code;
                                                            auth, and response <what it holds>;
                                                            unknown <its first word>;
                                                            xclient, and presented <its HELO> for
                                                            what greets whom XCLIENT has named
    tls: never, if offered or always                        what the initiator wants
    auth: USER PASSWORD [MECHANISM ...] [plaintext]         its credentials, and how they may go
Then lines, each with who speaks:
    C: EHLO x     the client, with CRLF; `C.` without CRLF
    S: 220 x      the server, likewise
    A: prepare 1 <a@x> <b@y> <c@y>      what our own side is told to do (initiator only);
       options: size=100 8bit binary chunked
       transid=1@x (a new named transaction) resend=1@x (the same again)
       utf8 (its header needs SMTPUTF8) ret=FULL envid=QQ1 priority=3 by=600;RT (what is left of
       its time), and behind a recipient notify=SUCCESS,DELAY orcpt=rfc822;x
    E: ...        the events of the machine
Lines of the far end that follow one another arrive in one piece.
Escapes: \\r \\n \\0 \\t \\\\ \\xNN; `x\\*1000` is 1000 times `x`. Any other backslash is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mta.model import Address, Envelope, Outcome, Recipient, Reply, Requires
from mta.wire.sasl_client import EXCHANGES, Credentials, derive
from mta.wire.smtp import client_states as told
from mta.wire.smtp import events
from mta.wire.smtp.client import Initiator
from mta.wire.smtp.client_auth import Authentication
from mta.wire.smtp.deliver_by import DeliverBy, parse_by
from mta.wire.smtp.grammar import parse_path
from mta.wire.smtp.limits import Limits
from mta.wire.smtp.notification import notify_of
from mta.wire.smtp.offers import Offer
from mta.wire.smtp.priority import PriorityTerms
from mta.wire.smtp.server import Privileges, Responder
from mta.wire.smtp.server_auth import NO_AUTH, AuthTerms
from mta.wire.smtp.server_chunks import ChunkingResponder
from mta.wire.smtp.states import Role, Security, State
from mta.wire.smtp.xclient import Attributes

Splitter = Callable[[bytes], Sequence[bytes]]
"""How what arrives together is cut into pieces."""


def whole(data: bytes) -> Sequence[bytes]:
    return (data,)


def every(octets: int) -> Splitter:
    """Pieces of `octets` octets."""
    return lambda data: [data[i : i + octets] for i in range(0, len(data), octets)]


@dataclass(slots=True)
class Transcript:
    """One parsed file: settings, and the steps that are not answers of the machine."""

    head: str
    settings: dict[str, list[str]] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_responder(self) -> bool:
        return self.settings.get("side", ["responder"])[0] == "responder"

    @property
    def role(self) -> Role:
        return Role[self.settings.get("role", ["smtp"])[0].upper()]


def parse(text: str) -> Transcript:
    head, _, body = text.partition("\n\n")
    transcript = Transcript(head)
    for line in head.splitlines():
        if line.startswith("#"):
            continue
        key, _, value = line.partition(":")
        transcript.settings.setdefault(key.strip(), []).append(value.strip())
    spoken = ("C",) if transcript.is_responder else ("S", "A")
    for line in body.splitlines():
        mark, text = line[:2], line[3:]
        if not line or line.startswith("#"):
            transcript.steps.append(("#", line))
        elif mark[:1] in spoken:
            transcript.steps.append((mark, text))
        elif mark in {"C:", "S:", "E:", "C.", "S."}:
            transcript.steps.append(("", ""))  # an answer: what follows it is another piece
        else:
            raise ValueError(f"not a line of a transcript: {line!r}")
    return transcript


def lines_of_far_end(transcript: Transcript) -> list[bytes]:
    """What the peer says, line by line as octets."""
    return [
        _octets(line) + (b"\r\n" if kind.endswith(":") else b"")
        for kind, line in transcript.steps
        if kind[:1] in ("C", "S")
    ]


def run(text: str, splitter: Splitter = whole) -> str:
    """The whole transcript as it reads when it is run now."""
    transcript = parse(text)
    runner = _Responding(transcript) if transcript.is_responder else _Initiating(transcript)
    lines = [transcript.head, ""]
    lines += runner.begin()
    for kind, group in _groups(transcript.steps):
        if not kind:
            continue
        if kind == "#":
            lines += group
            continue
        lines += [f"{kind} {line}" if line else kind for line in group]
        if kind == "A:":
            lines += runner.act(group[0])
        else:
            end = b"\r\n" if kind.endswith(":") else b""
            data = b"".join(_octets(line) + end for line in group)
            lines += runner.feed(data, splitter)
    return "\n".join(lines) + "\n"


def _groups(steps: list[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Steps that belong together: what is said in one piece, or one action."""
    group: list[str] = []
    present = ""
    for kind, line in steps:
        if group and (kind != present or kind == "A:"):
            yield present, group
            group = []
        present = kind
        group.append(line)
    if group:
        yield present, group


_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|\*\d+|.)")
_SHORT = {"r": b"\r", "n": b"\n", "0": b"\0", "t": b"\t", "\\": b"\\"}


def _octets(line: str) -> bytes:
    result, at = b"", 0
    for found in _ESCAPE.finditer(line):
        result += line[at : found.start()].encode()
        at = found.end()
        escape = found[1]
        if escape.startswith("*"):
            result += result[-1:] * (int(escape[1:]) - 1)
        elif escape.startswith("x"):
            result += bytes.fromhex(escape[1:])
        else:
            result += _SHORT.get(escape, found[0].encode())
    return result + line[at:].encode()


def _shown(octets: bytes) -> str:
    text = octets.decode("latin-1").encode("unicode_escape").decode()
    return text if len(text) <= 120 else f"{text[:50]}... ({len(octets)} octets)"


def _said(mark: str, output: bytes) -> list[str]:
    *lines, rest = output.split(b"\r\n")
    said = [f"{mark}: {_shown(line)}" for line in lines]
    return [*said, f"{mark}. {_shown(rest)}"] if rest else said


def _terms(offers: Sequence[str]) -> AuthTerms:
    if not {"auth", "auth-clear"} & set(offers):
        return NO_AUTH
    return AuthTerms(("SCRAM-SHA-256", "PLAIN", "LOGIN"), in_clear="auth-clear" in offers)


def _offered(offers: Sequence[str]) -> list[Offer]:
    made: list[Offer] = []
    for word, _, value in (offer.partition("=") for offer in offers):
        if word == "deliver-by":
            made.append(DeliverBy(int(value or 0)))
        elif word == "priority":
            made.append(PriorityTerms(value.encode()))
    return made


class _Responding:
    """We answer: the machine of wire/smtp/server.py, with hooks that answer at once."""

    def __init__(self, transcript: Transcript) -> None:
        limits: dict[str, Any] = {}
        for pair in transcript.settings.get("limit", []):
            key, _, value = pair.partition("=")
            limits[key] = int(value)
        self._hooks: dict[tuple[str, bytes], Reply] = {}
        for hook in transcript.settings.get("hook", []):
            self._learn(hook)
        offers = transcript.settings.get("offer", [])
        machine = ChunkingResponder if "chunking" in offers else Responder
        security = Security.OFFERED if "starttls" in offers else Security.NONE
        if "starttls!" in offers:
            security = Security.REQUIRED
        self._machine = machine(
            b"mx.example.org",
            transcript.role,
            Limits(**limits),
            checkpoint="checkpoint" in offers,
            security=security,
            auth=_terms(offers),
            relays="auth" not in offers and "auth-clear" not in offers,
            offers=_offered(offers),
            xclient=bool({"xclient", "xclient-once"} & set(offers)),
            tells_unknown="unknown" in offers,
        )
        self._presents_again = "xclient" in offers
        self._content = b""

    def _learn(self, hook: str) -> None:
        verb, *words = hook.split()
        about = words.pop(0)[1:-1].encode() if words[0].startswith("<") else b""
        code, enhanced, *text = words
        lines = (" ".join(text).encode(),)
        self._hooks[verb, about] = Reply(int(code), "" if enhanced == "-" else enhanced, lines)

    def begin(self) -> list[str]:
        self._machine.greet(self._hooks.get(("connect", b"")))
        return self._outcome()

    def feed(self, data: bytes, splitter: Splitter) -> list[str]:
        happened: list[str] = []
        output = b""
        for piece in splitter(data):
            self._machine.receive(piece)
            lines = self._outcome()
            happened += [line for line in lines if line.startswith("E:")]
            output += self._last
        return happened + _said("S", output)

    def _outcome(self) -> list[str]:
        machine = self._machine
        lines = []
        while (event := machine.next_event()) is not None:
            shown = self._event(event)
            if shown:
                lines.append(f"E: {shown}")
        self._last = machine.take_output()
        return lines + _said("S", self._last)

    def act(self, action: str) -> list[str]:
        raise ValueError(f"a responder is told nothing: {action!r}")

    def _event(self, event: events.Event) -> str:
        answer = self._machine.answer
        hooks = self._hooks
        match event:
            case events.Helo(name, protocol):
                answer(hooks.get(("helo", name)))
                return f"helo {name.decode()} {protocol}"
            case events.StartTls():
                answer(hooks.get(("starttls", b"")))
                if self._machine.state is State.HANDSHAKE:
                    self._machine.secured()
                    return "starttls, and TLS is there"
                return "starttls"
            case events.Auth(mechanism, initial):
                answer(hooks.get(("auth", b"")))
                return f"auth {mechanism}" + ("" if initial is None else f" <{_shown(initial)}>")
            case events.AuthResponse(response):
                answer(hooks.get(("response", response or b"")))
                return "no response" if response is None else f"response <{_shown(response)}>"
            case events.Xclient(said, protocol):
                refused = hooks.get(("xclient", b""))
                answer(refused)
                if refused is None:
                    self._machine.welcome(Privileges(relays=True, xclient=self._presents_again))
                    self._machine.greet(hooks.get(("presented", said.helo)))
                return f"xclient {_attributes(said)} {protocol}"
            case events.Mail(sender, parameters):
                answer(hooks.get(("mail", sender.text)))
                return f"mail <{sender}>{_parameters(parameters)}"
            case events.Rcpt(recipient, parameters):
                answer(hooks.get(("rcpt", recipient.text)))
                return f"rcpt <{recipient}>{_parameters(parameters)}"
            case events.UnknownCommand(line):
                answer(hooks.get(("unknown", line.partition(b" ")[0])))
                return f"unknown <{_shown(line)}>"
            case events.Data(is_chunked):
                self._content = b""
                answer(hooks.get(("data", b"")))
                return "bdat" if is_chunked else "data"
            case events.Chunk(data):
                self._content += data
                return ""
            case events.End(fault):
                content = self._content
                answer(hooks.get(("end", b"")))
                # What came before a fault depends on the pieces and is thrown away in any case.
                return f"fault {fault.text}" if fault is not None else f"content {_shown(content)}"
            case events.Rejected(stage, reply):
                return f"rejected {stage}: {reply.code}"
            case events.Reset():
                return "reset"
        return "quit" if isinstance(event, events.Quit) and event.polite else "closed"


def _attributes(said: Attributes) -> str:
    return " ".join(
        f"{name}={value.decode() if isinstance(value, bytes) else value}"
        for name in Attributes.__slots__
        if (value := getattr(said, name)) not in (None, "", b"")
    )


class _Initiating:
    """We ask: the machine of wire/smtp/client.py."""

    def __init__(self, transcript: Transcript) -> None:
        asked = transcript.settings.get("tls", ["never"])[0]
        self._machine = Initiator(
            b"bridgehead.example.org",
            transcript.role,
            secrecy=told.Secrecy(asked),
            authentication=_authentication(transcript.settings.get("auth", [""])[0]),
        )
        self._key: told.DeriveKey | None = None

    def begin(self) -> list[str]:
        return []

    def feed(self, data: bytes, splitter: Splitter) -> list[str]:
        happened: list[told.Event] = []
        for piece in splitter(data):
            happened += self._machine.receive(piece)
        return self._outcome(happened)

    def act(self, action: str) -> list[str]:
        machine = self._machine
        verb, _, rest = action.partition(" ")
        match verb:
            case "prepare":
                tag, sender, *recipients = re.findall(r"<[^>]*>|[^ ]+", rest)
                options = [r for r in recipients if not r.startswith("<")]
                sizes = [int(o[5:]) for o in options if o.startswith("size=")]
                left = [o[3:] for o in options if o.startswith("by=")]
                named = [o for o in options if o.startswith(("transid=", "resend="))]
                name = named[0].partition("=")[2].encode() if named else b""
                to = [r for r in recipients if r.startswith("<")]
                return self._outcome(
                    machine.prepare(
                        tag,
                        _address(sender, True),
                        [(i, _address(r, False)) for i, r in enumerate(to)],
                        sizes[0] if sizes else 100,
                        "8bit" in options,
                        transid=b"<%b>" % name if name else b"",
                        is_resend=bool(named) and named[0].startswith("resend="),
                        binary="binary" in options,
                        chunked="chunked" in options,
                        envelope=_envelope(_address(sender, True), recipients),
                        seconds_left=parse_by(left[0].encode()).seconds if left else 0.0,
                    )
                )
            case "content" | "opaque":
                machine.content(_octets(rest), opaque=verb == "opaque")
                return self._outcome([])
            case "finish":
                machine.finish()
                return self._outcome([])
            case "withdraw":
                return self._outcome(machine.withdraw())
            case "secured":
                machine.secured()
                return self._outcome([])
            case "derived":
                assert self._key is not None, "nobody asked for a key"
                machine.derived(derive(*self._key))
                return self._outcome([])
            case "quit":
                return self._outcome(machine.quit())
            case "lost":
                return self._outcome(machine.connection_lost())
            case "expire":
                return self._outcome(machine.expire())
        raise ValueError(f"no such action: {action!r}")

    def _outcome(self, happened: list[told.Event]) -> list[str]:
        lines = [f"E: {self._event(event)}" for event in happened]
        return lines + _said("C", self._machine.take_output())

    def _event(self, event: told.Event) -> str:
        match event:
            case told.Opened():
                known = sorted(self._machine.extensions)
                return f"opened {b' '.join(known).decode()}".rstrip()
            case told.Prepared(tag, outcomes) | told.Committed(tag, outcomes):
                verb = type(event).__name__.lower()
                return "; ".join([f"{verb} {tag}", *map(_outcome, outcomes)])
            case told.StartTls():
                return "start TLS"
            case told.DeriveKey(rounds=rounds):
                self._key = event
                return f"derive a key in {rounds} rounds"
            case told.NotAuthenticated(reply):
                return f"not authenticated {reply.text}"
            case told.Unfit(tag, reply):
                return f"unfit {tag}: {reply.text}"
            case told.NotSent(tag, reply):
                return f"not sent {tag}: {reply.text}"
            case told.Withdrawn(tag):
                return f"withdrawn {tag}"
            case told.Refused(reply):
                return f"refused {reply.text}"
        assert isinstance(event, told.Ended)
        return f"ended {'politely' if event.polite else 'abortively'}: {event.reason}"


def _address(path: str, is_reverse: bool) -> Address:
    return parse_path(path.encode(), is_reverse=is_reverse, utf8=True)[0]


def _authentication(words: str) -> Authentication | None:
    """The nonce is that of RFC 7677 section 3."""
    if not words:
        return None
    user, password, *more = words.split(" ")
    return Authentication(
        Credentials(user, password, b"rOprNGfwEbeRWgbNEkqO"),
        {word for word in more if word != "plaintext"} or EXCHANGES.keys(),
        "plaintext" in more,
    )


def _envelope(sender: Address, words: Sequence[str]) -> Envelope:
    """`words` are recipients and options, in the order of the transcript."""
    recipients: list[Recipient] = []
    asked: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if word.startswith("<"):
            recipients.append(Recipient(_address(word, False)))
        elif key == "notify":
            recipients[-1] = replace(recipients[-1], notify=notify_of(value.encode()))
        elif key == "orcpt":
            recipients[-1] = replace(recipients[-1], original=value.encode())
        else:
            asked[key] = value
    requires = Requires.UTF8 if "utf8" in asked else Requires.NOTHING
    if "by" in asked:
        by = parse_by(asked["by"].encode())
        requires |= by.returns * Requires.IN_TIME | by.traces * Requires.TRACE
    return Envelope(
        sender,
        tuple(recipients),
        envelope_id=asked.get("envid", "").encode(),
        ret_full=asked["ret"] == "FULL" if "ret" in asked else None,
        requires=requires,
        deliver_by=0.0 if "by" in asked else None,
        priority=int(asked.get("priority", "0")),
    )


def _outcome(outcome: Outcome) -> str:
    later = " (next transfer)" if outcome.next_transfer else ""
    return f"{outcome.recipient} {outcome.kind.value}{later} {outcome.reply.text}"


def _parameters(parameters: dict[bytes, bytes | None]) -> str:
    return "".join(
        f" {key.decode()}" + (f"={value.decode()}" if value is not None else "")
        for key, value in parameters.items()
    )


def main(arguments: Sequence[str]) -> int:
    """Compare, or with --rewrite write. Answers 1 when a transcript differs."""
    is_rewriting = "--rewrite" in arguments
    named = [Path(a) for a in arguments if not a.startswith("-")]
    differing = 0
    for path in named or sorted(Path("tests/transcripts").glob("*.txt")):
        text = path.read_text()
        result = run(text)
        if result == text:
            continue
        differing += 1
        print(f"{path}: {'rewritten' if is_rewriting else 'differs (--rewrite to keep it)'}")
        if is_rewriting:
            path.write_text(result)
    return 0 if is_rewriting or not differing else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
