"""The responder of an SMTP or LMTP association: octets in, events and octets out.

Law: a command is handed out only when the one before it has its reply, so replies come in order
whatever waits behind the hooks; content ends at CRLF.CRLF only; whatever a peer sends, memory is
bounded and the state is one of `State`.

How to drive it: `receive` octets, then call `next_event` until it answers None, and answer each
event that wants an answer (the first group below) by `answer` before the next; then send
`take_output()`. Commands that arrived together are thus answered in one write (RFC 2920).

RFC 5321 (SMTP), RFC 2033 (LMTP), RFC 2920 (PIPELINING), RFC 1870 (SIZE), RFC 6152 (8BITMIME),
RFC 2034 (ENHANCEDSTATUSCODES), RFC 3207 (STARTTLS), RFC 3461 (DSN), RFC 6531 (SMTPUTF8), RFC 8689
(REQUIRETLS), RFC 9422 (LIMITS), RFC 4865 (FUTURERELEASE), RFC 2852 (DELIVERBY), RFC 6710
(MT-PRIORITY), RFC 1845 (CHECKPOINT, of which only whole transactions are kept).
RFC 4954 (AUTH) is server_auth.py's, XCLIENT's attributes are xclient.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from mta.errors import LocalProtocolError
from mta.model import Reply
from mta.wire.smtp import server_replies as said
from mta.wire.smtp.content import ContentReader
from mta.wire.smtp.events import (
    Chunk,
    Data,
    End,
    Event,
    Helo,
    Mail,
    Rcpt,
    Reset,
    StartTls,
    UnknownCommand,
    Xclient,
)
from mta.wire.smtp.grammar import (
    CHECKPOINT_PARAMETERS,
    MAIL_PARAMETERS,
    Checks,
    Refused,
    check_requiretls,
    parse_helo,
    parse_mail,
    parse_rcpt,
    refusal,
)
from mta.wire.smtp.limits import Limits
from mta.wire.smtp.notification import NOTIFICATION_MAIL, NOTIFICATION_RCPT
from mta.wire.smtp.offers import Offer
from mta.wire.smtp.reply import render
from mta.wire.smtp.server_auth import NO_AUTH, Authentication, AuthTerms, check_auth
from mta.wire.smtp.states import TABLE, Role, Security, State, Verb, out_of_place
from mta.wire.smtp.xclient import ANNOUNCEMENT, parse_xclient

_NO_COMMANDS = frozenset(
    (Verb.END, Verb.CHUNK, Verb.REPEAT, Verb.CHALLENGE, Verb.RESPONSE, Verb.UNKNOWN)
)
_VERBS = {verb.value.encode(): verb for verb in Verb if verb not in _NO_COMMANDS}
_OF_BROWSERS = frozenset((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"HTTP/1.1"))
"""A web page can make a browser send these to port 25, with SMTP commands behind them."""
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t"
_DATA = Data()

_MAIL: Checks = {**MAIL_PARAMETERS, **NOTIFICATION_MAIL}
_MAIL_WITH_NAMES: Checks = {**CHECKPOINT_PARAMETERS, **NOTIFICATION_MAIL}

_KNOWN = 355
"""RFC 1845's reply to MAIL: what follows is the offset at which the content is to go on."""
_STARTTLS_OFFERED = frozenset((Security.OFFERED, Security.REQUIRED))
_OF_THEIR_OWN = frozenset((Verb.AUTH, Verb.RESPONSE, Verb.UNKNOWN))
"""Answered by other rules than the table's."""
_OF_CONTENT = frozenset((Verb.END, Verb.BDAT, Verb.CHUNK))
_IN_TRANSACTION = frozenset((State.MAIL, State.RECIPIENTS, State.KNOWN, State.CHUNKS, State.FAILED))
_IN_CHUNKS = frozenset((State.CHUNKS, State.FAILED))
_WITH_ADDRESS = frozenset((Verb.MAIL, Verb.RCPT, Verb.VRFY, Verb.EXPN))


class Privileges(NamedTuple):
    """What not every client has."""

    checkpoint: bool = False
    relays: bool = False
    xclient: bool = False


class Responder(Authentication):
    """One association's protocol, from the greeting to the end."""

    extensions: tuple[bytes, ...] = ()
    """What a further machine offers (server_chunks.py)."""
    further_checks: ClassVar[Checks] = {}
    """Of the parameters of MAIL that it knows, or knows better."""

    def __init__(
        self,
        name: bytes,
        role: Role = Role.SMTP,
        limits: Limits | None = None,
        banner: bytes = b"",
        *,
        checkpoint: bool = False,
        security: Security = Security.NONE,
        auth: AuthTerms = NO_AUTH,
        relays: bool = False,
        offers: Sequence[Offer] = (),
        requiretls: bool = False,
        xclient: bool = False,
        tells_unknown: bool = False,
    ) -> None:
        """`name` is the virtual server's network name; `banner` what follows it in the greeting;
        with `checkpoint` (not LMTP's) this client may name its transactions. `security` is that of
        the beginning: PRESENT where TLS comes before the greeting. A client that `relays`, or has
        said who it is, is offered `offers` too; `requiretls` every client is, under TLS. With
        `xclient` it may say in whose place it speaks. With `tells_unknown` a command that is not
        known is an event; without, and between chunks, it is answered here.
        """
        greeting = b"220 %b %b%b\r\n" % (
            name,
            b"LMTP" if role is Role.LMTP else b"ESMTP",
            b" " + banner if banner else b"",
        )
        super().__init__(role, limits or Limits(), greeting, auth)
        self.security = security
        self.helo = b""
        self.protocol = role.value
        self._name = name
        self._offers_checkpoint = checkpoint
        self._relays = relays
        self._offers = offers
        self._requiretls = requiretls
        self._offers_xclient = xclient
        self._tells_unknown = tells_unknown
        self._presented: Xclient | None = None
        """By the last XCLIENT."""
        self._hello, self._mail_parameters = self._offer()
        self._is_binary = False
        self._after = State.START
        self._commands = 0
        self._recipients_said = 0
        self._has_utf8 = False
        """MAIL said SMTPUTF8."""
        self._content = ContentReader(
            self._limits.size_octets, self._limits.line_octets, self._limits.normalise_newlines
        )

    def _offer(self) -> tuple[bytes, Checks]:
        """EHLO's reply, and the parameters of MAIL that go with it."""
        checks = _MAIL_WITH_NAMES if self._offers_checkpoint else _MAIL
        if self.further_checks:
            checks = {**checks, **self.further_checks}
        if self._terms.mechanisms:
            checks = {**checks, b"AUTH": check_auth}
        if self._may_require:
            checks = {**checks, b"REQUIRETLS": check_requiretls}
        for offer in self._made:
            checks = {**checks, **offer.checks}
        return self._announcement(), checks

    @property
    def _made(self) -> Sequence[Offer]:
        return self._offers if self._relays or self.is_authenticated else ()

    @property
    def _may_require(self) -> bool:
        return self._requiretls and self.security is Security.PRESENT

    def _identified(self) -> None:
        self._hello, self._mail_parameters = self._offer()

    def _announcement(self) -> bytes:
        limit, may_secure = self._limits.size_octets, self.security in _STARTTLS_OFFERED
        words = (
            self._name,
            b"PIPELINING",
            b"SIZE %d" % limit if limit else b"SIZE",
            b"8BITMIME",
            b"SMTPUTF8",
            b"DSN",
            *self._limits.words,
            *self.extensions,
            *((b"STARTTLS",) if may_secure else ()),
            *self._auth_words,
            *((b"REQUIRETLS",) if self._may_require else ()),
            *(offer.word for offer in self._made),
            *((b"CHECKPOINT",) if self._offers_checkpoint else ()),
            *((ANNOUNCEMENT,) if self._offers_xclient else ()),
            b"ENHANCEDSTATUSCODES",
        )
        return b"".join(
            b"250%b%b\r\n" % (b" " if word is words[-1] else b"-", word) for word in words
        )

    def secured(self, *, relays: bool = False) -> None:
        """TLS is there, and nothing that was said before counts (RFC 3207 section 4.2). `relays`:
        the client may relay, by what it has shown.
        """
        self.security = Security.PRESENT
        self._relays |= relays
        self.helo = b""
        self.is_authenticated = False
        self._hello, self._mail_parameters = self._offer()
        if self.state is State.HANDSHAKE:
            self.state = State.START

    def welcome(self, privileges: Privileges) -> None:
        """The client that XCLIENT named is another than before."""
        self._offers_checkpoint, self._relays, self._offers_xclient = privileges
        self._hello, self._mail_parameters = self._offer()

    @property
    def is_swallowing(self) -> bool:
        """Content comes that cannot be taken any more: it is read to its end without events."""
        return self.state is State.CONTENT and self._content.fault is not None

    # -- answers

    def answer(self, reply: Reply | None) -> None:
        """Answer the event handed out last. None: the usual positive reply.

        In the LMTP role the answer to End stands for every accepted recipient. An End that had a
        fault is answered by that fault if `reply` does not refuse it. 355 to Mail: this named
        transaction is complete, and its content takes nothing but the final dot. 334 to Auth and
        AuthResponse: the next challenge. None to Xclient: nothing is said before `greet`.
        """
        verb = self._awaiting
        if verb is None:
            raise LocalProtocolError("nothing was asked that this would answer")
        if verb in _OF_CONTENT:
            if verb is not Verb.END:
                self._answer_chunk(verb, reply)
                return
            if self._content.fault is not None and (reply is None or reply.is_positive):
                reply = self._fault()
            if self.role is Role.LMTP:
                self.answer_each([reply] * self.recipients_accepted)
                return
        elif verb in _OF_THEIR_OWN:
            if verb is Verb.UNKNOWN:
                self._answer_unknown(reply)
            else:
                self._answer_auth(reply)
            return
        self._awaiting = None
        if reply is None:
            self._accepted(verb)
            usual = said.USUAL.get(verb)
            self._output.append(self._hello_reply() if usual is None else usual)
        elif reply.is_positive:
            if verb is Verb.MAIL and reply.code == _KNOWN:
                self._after = TABLE[State.IDLE, Verb.REPEAT].after
            self._accepted(verb)
            self._output.append(render(reply))
        else:
            self._refused(verb, reply)

    def answer_each(self, replies: Sequence[Reply | None]) -> None:
        """LMTP's answer to End: one reply for each accepted recipient, in their order."""
        if self._awaiting is not Verb.END or len(replies) != self.recipients_accepted:
            raise LocalProtocolError("LMTP needs one reply for each accepted recipient")
        self._awaiting = None
        self._accepted(Verb.END)
        for reply in replies:
            self._output.append(said.OK if reply is None else render(reply))
            if reply is not None and reply.code == 421:
                self._close(polite=False)
                return

    def _hello_reply(self) -> bytes:
        return self._hello if self.protocol != "SMTP" else b"250 %b\r\n" % self._name

    def _accepted(self, verb: Verb) -> None:
        """The table's transition, and what the machine keeps of the transaction."""
        self.state = self._after
        if verb is Verb.END:
            self._forget()
            self._errors = 0
            return
        self.counts[verb][0] += 1
        if verb is Verb.RCPT:
            self.recipients_accepted += 1
        elif verb is Verb.DATA:
            self._content.begin()
        elif verb is Verb.XCLIENT:
            self._begin_anew()

    def _refused(self, verb: Verb, reply: Reply) -> None:
        if verb is Verb.END:
            self.state = State.IDLE
            self._forget()
        elif verb is Verb.MAIL:
            self._forget()
        # A list with some bad addresses is no attack; guessing addresses from nothing is.
        is_error = reply.is_permanent and not (verb is Verb.RCPT and self.recipients_accepted)
        self._say_no(reply, is_error)

    def _forget(self) -> None:
        self.sender = b""
        self.recipients_accepted = 0
        self._recipients_said = 0

    def _content_event(self) -> Event | None:
        buffer = self._buffer
        if self._at >= len(buffer):
            return None
        if self._at:
            buffer = buffer[self._at :]
        piece, used = self._content.take(buffer)
        if used < 0:
            self._buffer = b""
            self._at = 0
            return Chunk(piece) if piece else None
        self._buffer = buffer
        self._at = used
        self._awaiting = Verb.END
        self._after = TABLE[State.CONTENT, Verb.END].after
        self._last = Verb.END
        content = self._content
        end = End(None if content.fault is None else self._fault(), content.size_octets)
        if piece:
            self._queued.append(end)
            return Chunk(piece)
        return end

    def _fault(self) -> Reply | None:
        fault = self._content.fault
        return None if fault is None else said.of_fault(fault, self._limits)

    def _command(self, line: bytes) -> Event | None:
        """One command line without CRLF: an event to answer, or None when it is dealt with."""
        self._commands += 1
        if self._limits.commands and self._commands > self._limits.commands:
            self._reject("UNKNOWN", said.TOO_MANY_COMMANDS)
            return None
        word, _, argument = line.partition(b" ")
        verb = _VERBS.get(word) or _VERBS.get(word.upper())
        if verb is None:
            return self._unknown(line, word)
        if line.translate(None, _PRINTABLE) and not _is_utf8_path(verb, line):
            self._reject(verb.value, said.RUBBISH)
            return None
        self._last = verb
        count = self.counts.get(verb)
        if count is None:
            self.counts[verb] = [0, 1]
        else:
            count[1] += 1
        row = TABLE.get((self.state, verb))
        if row is None:
            self._out_of_place(verb, argument)
            return None
        try:
            event = _ACTIONS[row.action](self, verb, argument)
        except Refused as refused:
            self._reject(verb.value, refused.reply, argument)
            return None
        if event is None:
            return None
        self._awaiting = verb
        self._after = row.after
        if self._queued:  # Reset comes before the new Helo
            self._queued.append(event)
            return None
        return event

    def _out_of_place(self, verb: Verb, argument: bytes) -> None:
        self._reject(verb.value, out_of_place(self.state, verb, self.role))

    def _unknown(self, line: bytes, word: bytes) -> Event | None:
        self.counts.setdefault(None, [0, 0])[1] += 1
        if word.upper() in _OF_BROWSERS:
            self._reject("UNKNOWN", said.BROWSER)
        elif line.translate(None, _PRINTABLE):
            self._reject("UNKNOWN", said.RUBBISH)
        elif self._tells_unknown and self.state not in _IN_CHUNKS:
            self._awaiting = Verb.UNKNOWN
            return UnknownCommand(line)
        else:
            self._reject("UNKNOWN", said.UNKNOWN)
        return None

    def _answer_unknown(self, reply: Reply | None) -> None:
        """Nobody keeps an association alive by what no server has to understand, whoever finds
        friendly words for it: it counts as an error always.
        """
        self._awaiting = None
        if reply is None:
            self._reject("UNKNOWN", said.UNKNOWN)
        else:
            self._say_no(reply, True)

    # -- commands (the actions of TABLE)

    def _do_hello(self, verb: Verb, argument: bytes) -> Event | None:
        if (verb is Verb.LHLO) is not (self.role is Role.LMTP):
            raise refusal(said.WRONG_ROLE)
        name = parse_helo(argument)
        self.helo = name
        if verb is not Verb.LHLO:
            is_plain = verb is Verb.HELO
            self.protocol = "SMTP" if is_plain else self._extended(self.is_authenticated)
        hello = Helo(name, self.protocol)
        if self.state in _IN_TRANSACTION:
            self.state = State.IDLE
            self._forget()
            # The transaction is void even if the new name is refused (RFC 5321 4.1.4).
            self._queued.append(Reset())
        return hello

    def _do_mail(self, verb: Verb, argument: bytes) -> Event | None:
        if self.security is Security.REQUIRED:
            raise refusal(said.STARTTLS_FIRST)
        sender, parameters = parse_mail(argument, self._mail_parameters)
        if b"HOLDFOR" in parameters and b"HOLDUNTIL" in parameters:
            raise Refused(501, "5.5.4", b"HOLDFOR or HOLDUNTIL, not both")
        size = parameters.get(b"SIZE")
        if size is not None and 0 < self._limits.size_octets < int(size):
            text = b"The message is bigger than %d octets" % self._limits.size_octets
            raise Refused(552, "5.3.4", text)
        self.sender = sender.text
        self._is_binary = parameters.get(b"BODY") == b"BINARYMIME"
        self._has_utf8 = b"SMTPUTF8" in parameters
        return Mail(sender, parameters)

    def _do_rcpt(self, verb: Verb, argument: bytes) -> Event | None:
        self._recipients_said += 1
        if self._recipients_said > self._limits.recipients:
            if self._recipients_said == self._limits.recipients + 1:
                self._reject(verb.value, said.TOO_MANY_RECIPIENTS, argument)
            else:
                self._say_no(said.TOO_MANY_RECIPIENTS, False)  # one line in the log is enough
            return None
        recipient, parameters = parse_rcpt(argument, NOTIFICATION_RCPT, utf8=self._has_utf8)
        return Rcpt(recipient, parameters)

    def _do_starttls(self, verb: Verb, argument: bytes) -> Event | None:
        self._no_argument(argument)
        if self.security not in _STARTTLS_OFFERED:
            raise refusal(said.NOT_OFFERED)
        if self._at < len(self._buffer):
            # Somebody in the middle put commands of his own before the client's (RFC 3207 6);
            # no honest client speaks here.
            self._reject(verb.value, said.BEHIND_STARTTLS)
            return None
        return StartTls()

    def _do_xclient(self, verb: Verb, argument: bytes) -> Event | None:
        if not self._offers_xclient:
            raise refusal(said.NOT_AUTHORIZED)
        client, protocol = parse_xclient(argument), self.role.value
        if self.role is Role.SMTP and client.protocol == "ESMTP":
            protocol = self._extended(bool(client.login))
        presented = self._presented = Xclient(client, protocol)
        return presented

    def _begin_anew(self) -> None:
        """With the client that XCLIENT has named. What only the last of several said is its name in
        HELO, its protocol and its user (Postfix); TLS is the connection's and stays.
        """
        assert self._presented is not None, "its event was handed out"
        client, self.protocol = self._presented
        self.helo = client.helo
        self.is_authenticated = bool(client.login)
        self._greeted = State.IDLE if client.helo else State.START

    def _extended(self, is_authenticated: bool) -> str:
        """RFC 3848."""
        secure = "S" if self.security is Security.PRESENT else ""
        return f"ESMTP{secure}{'A' if is_authenticated else ''}"

    def _do_data(self, verb: Verb, argument: bytes) -> Event | None:
        if argument:
            self._no_argument(argument)
        if self._is_binary:
            raise refusal(said.NEEDS_BDAT)
        return _DATA

    def _do_bdat(self, verb: Verb, argument: bytes) -> Event | None:
        raise refusal(said.NOT_OFFERED)

    def _chunk_event(self) -> Event | None:
        raise LocalProtocolError("a chunk that was not offered")

    def _answer_chunk(self, verb: Verb, reply: Reply | None) -> None:
        raise LocalProtocolError("a chunk that was not offered")

    def _do_rset(self, verb: Verb, argument: bytes) -> Event | None:
        self._no_argument(argument)
        in_transaction = self.state in _IN_TRANSACTION
        self.state = TABLE[self.state, verb].after
        self._forget()
        self._count_and_say(verb, said.OK)
        if in_transaction:
            self._queued.append(Reset())
        return None

    def _do_noop(self, verb: Verb, argument: bytes) -> Event | None:
        self._count_and_say(verb, said.OK)
        return None

    def _do_vrfy(self, verb: Verb, argument: bytes) -> Event | None:
        if not self._limits.vrfy:
            raise refusal(said.NOT_OFFERED)
        words = argument.split()
        if not words:
            raise Refused(501, "5.5.4", b"Syntax: VRFY address")
        if not argument.isascii() and words[-1].upper() != b"SMTPUTF8":
            raise Refused(553, "5.6.7", b"An address with UTF-8 needs the parameter SMTPUTF8")
        self._count_and_say(verb, render(said.VRFY))
        return None

    def _do_expn(self, verb: Verb, argument: bytes) -> Event | None:
        self._reject(verb.value, said.NOT_OFFERED)
        return None

    def _do_help(self, verb: Verb, argument: bytes) -> Event | None:
        self._count_and_say(verb, render(said.HELP))
        return None

    def _do_quit(self, verb: Verb, argument: bytes) -> Event | None:
        self._count_and_say(verb, b"221 2.0.0 %b closing\r\n" % self._name)
        self._close(polite=True)
        return None

    def _no_argument(self, argument: bytes) -> None:
        if argument.strip():
            raise refusal(said.NO_ARGUMENT)


_ACTIONS: dict[str, Callable[[Responder, Verb, bytes], Event | None]] = {
    "hello": Responder._do_hello,
    "starttls": Responder._do_starttls,
    "auth": Responder._do_auth,
    "xclient": Responder._do_xclient,
    "mail": Responder._do_mail,
    "rcpt": Responder._do_rcpt,
    "data": Responder._do_data,
    "bdat": lambda machine, verb, argument: machine._do_bdat(verb, argument),
    "rset": Responder._do_rset,
    "noop": Responder._do_noop,
    "vrfy": Responder._do_vrfy,
    "expn": Responder._do_expn,
    "help": Responder._do_help,
    "quit": Responder._do_quit,
}


def _is_utf8_path(verb: Verb, line: bytes) -> bool:
    """Commands that take an address may hold 8 bits, and look at them themselves."""
    if verb not in _WITH_ADDRESS:
        return False
    return not line.translate(None, _PRINTABLE + bytes(range(0x80, 0x100)))
