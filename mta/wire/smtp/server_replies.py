"""What a responder says of its own accord.

Law: a client reads what to do, nothing of our insides. RFC 5321 4.2, RFC 3463.
"""

from __future__ import annotations

from mta.model import Reply
from mta.wire.smtp.content import Fault
from mta.wire.smtp.limits import Limits
from mta.wire.smtp.states import Verb

OK = b"250 2.0.0 Ok\r\n"
USUAL = {
    Verb.MAIL: b"250 2.1.0 Ok\r\n",
    Verb.RCPT: b"250 2.1.5 Ok\r\n",
    Verb.DATA: b"354 End data with <CR><LF>.<CR><LF>\r\n",
    Verb.AUTH: b"235 2.7.0 Authentication successful\r\n",
    Verb.STARTTLS: b"220 2.0.0 Ready to start TLS\r\n",
    Verb.XCLIENT: b"",
    Verb.END: OK,
}
"""In wire form. What XCLIENT hears is the greeting."""

NOT_CRLF = Reply(500, "5.5.2", (b"A command ends in CR LF",))
TOO_LONG = Reply(500, "5.5.2", (b"The line is too long",))
RUBBISH = Reply(500, "5.5.2", (b"That is no command",))
UNKNOWN = Reply(500, "5.5.1", (b"Command not recognised",))
WRONG_ROLE = Reply(500, "5.5.1", (b"That greeting belongs to another protocol",))
NO_ARGUMENT = Reply(501, "5.5.4", (b"This command takes no argument",))
NOT_OFFERED = Reply(502, "5.5.1", (b"Command not implemented",))
VRFY = Reply(252, "2.0.0", (b"Cannot say, but will take mail for it and try",))
NOT_AUTHORIZED = Reply(550, "5.7.0", (b"Not for you to say who your client is",))
STARTTLS_FIRST = Reply(530, "5.7.0", (b"Say STARTTLS first",))
TLS_FIRST = Reply(538, "5.7.11", (b"That needs TLS, and there is none here",))
EHLO_FIRST = Reply(503, "5.5.1", (b"Say EHLO first",))
KNOWN_ALREADY = Reply(503, "5.5.1", (b"You have said who you are",))
NO_MECHANISM = Reply(504, "5.5.4", (b"That mechanism is not offered",))
NO_BASE64 = Reply(501, "5.5.2", (b"That is no base64",))
GIVEN_UP = Reply(501, "5.7.0", (b"Authentication given up",))
RESPONSE_TOO_LONG = Reply(500, "5.5.6", (b"The response is too long",))
TOO_MANY_FAILURES = Reply(421, "4.7.0", (b"Too many failed authentications",))
BEHIND_STARTTLS = Reply(421, "5.5.1", (b"Nothing may follow STARTTLS before its reply",))
HELP = Reply(214, "2.0.0", (b"See RFC 5321",))
EARLY = Reply(554, "5.5.0", (b"You spoke before you were greeted",))
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", (b"Too many recipients, send the rest separately",))
TOO_MANY_ERRORS = Reply(421, "4.7.0", (b"Too many errors",))
TOO_MANY_COMMANDS = Reply(421, "4.7.0", (b"Too many commands on one connection",))
BROWSER = Reply(421, "4.7.0", (b"This is a mail server",))
NEEDS_BDAT = Reply(503, "5.5.1", (b"BODY=BINARYMIME needs BDAT",))
_FAULTS = {
    Fault.BARE_NEWLINE: Reply(
        550, "5.5.2", (b"The content has a bare CR or LF; lines end in CR LF",)
    ),
    Fault.NUL: Reply(550, "5.6.0", (b"The content has a NUL octet",)),
}


def of_fault(fault: Fault, limits: Limits) -> Reply:
    """What a content is told that cannot be taken."""
    if fault is Fault.TOO_BIG:
        text = b"The message is bigger than %d octets" % limits.size_octets
        return Reply(552, "5.3.4", (text,))
    if fault is Fault.LINE_TOO_LONG:
        text = b"The content has a line of more than %d octets" % limits.line_octets
        return Reply(554, "5.6.0", (text,))
    return _FAULTS[fault]
