"""The configuration blocks of the kinds smtp and lmtp: listeners and connectors.

Law: every default has its reason in its description, and none is laxer than RFC 5321 asks for.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mta.association.tls_settings import CertificateSettings, TlsExceptionSettings
from mta.association.tls_terms import Word
from mta.settings import (
    Boolean,
    Count,
    Duration,
    Fingerprint,
    Network,
    Port,
    SecretFileSetting,
    Settings,
    Size,
    misplaced,
)
from mta.wire.smtp.client_states import Timeouts
from mta.wire.smtp.limits import Limits
from mta.wire.smtp.priority import PriorityTerms

# --- listeners --------------------------------------------------------------------------------


class ListenerLimits(Settings):
    """The `limits:` of a listener."""

    connections: Count = Field(
        default=1000, description="Open connections of this listener; more are told 421."
    )
    connections_per_client: Count = Field(
        default=500, description="Of these, from one client address; more are told 421."
    )
    recipients: Count = Field(
        default=1000,
        description="Recipients of one transaction, announced by LIMITS (RFC 9422); more are told "
        "452 and come in the next (RFC 5321 4.5.3.1.8 asks for 100 at least).",
    )
    size: Size = Field(
        default=25 * 2**20, description="Of one message; announced by SIZE. 0: no limit."
    )
    line: Size = Field(
        default=998,
        description="Octets of a line of content without CRLF (RFC 5321 4.5.3.1.6: 998). "
        "A message with a longer line is refused with 554 5.6.0. 0: no limit.",
    )
    errors: Count = Field(
        default=20,
        description="Refused commands since the last accepted message; then 421. Refused "
        "recipients of a transaction that has accepted ones do not count.",
    )
    commands: int = Field(
        default=0, ge=0, description="Commands of one connection; then 421. 0: no limit."
    )
    backlog: Count = Field(default=1024, description="Connections that wait to be accepted.")


class ListenerTimeouts(Settings):
    """The `timeouts:` of a listener."""

    command: Duration = Field(
        default=300.0, description="For the next whole command (RFC 5321 4.5.3.2.7: 5 minutes)."
    )
    block: Duration = Field(
        default=180.0, description="Between two pieces of content (RFC 5321: 3 minutes)."
    )
    proxy: Duration = Field(
        default=5.0, description="For the whole header of a load balancer in `proxy-from`."
    )
    handshake: Duration = Field(
        default=60.0, description="For TLS to be negotiated, once it was begun."
    )
    transaction: Duration = Field(
        default=3600.0,
        description="From MAIL to the final dot, so that a client that sends an octet now and "
        "then cannot hold a connection for ever.",
    )


class PrioritySettings(Settings):
    """The `mt-priority:` of a listener."""

    offer: Boolean = Field(
        default=True,
        description="Let clients that may relay say how urgent a message is, -9 to 9: it overtakes"
        " lesser mail for the same destination (MT-PRIORITY, RFC 6710). Where MAIL says nothing the"
        " field MT-Priority does (RFC 6758); it is taken out. no: neither counts, the field stays.",
    )
    profile: Literal["none", "MIXER", "STANAG4406", "NSEP"] = Field(
        default="none",
        description="The assignment policy to announce (RFC 6710 section 8). All 19 values are told"
        " apart whatever it is.",
    )
    limit: int = Field(
        default=9,
        ge=-9,
        le=9,
        description="The most that a client in `relay-from` can ask for. Who asks for more gets"
        " this, and is told 2.3.6.",
    )
    user_limit: int = Field(
        default=9,
        ge=-9,
        le=9,
        description="The same for a client that has said who it is (AUTH).",
    )

    def of_machine(self) -> PriorityTerms | None:
        if not self.offer:
            return None
        return PriorityTerms(b"" if self.profile == "none" else self.profile.encode())


class LmtpListenerSettings(Settings):
    """A `listeners:` block of kind lmtp, and what one of kind smtp has in common with it."""

    name: str = Field(default="", description="For logs and metrics; by default kind:port.")
    port: Port = Field(default=25, description="On every address of the virtual server.")
    relay_from: tuple[Network, ...] | None = Field(
        default=None,
        description="Networks whose clients may send to any routable recipient; by default "
        "loopback and our own virtual addresses.",
    )
    proxy_from: tuple[Network, ...] = Field(
        default=(),
        description="Load balancers: from these networks, and only these, a PROXY header (version 1"
        " or 2) must come first. Who may relay, limits and the log go by the client that it names,"
        " whatever it names: list single addresses of machines that are yours.",
    )
    xclient_from: tuple[Network, ...] = Field(
        default=(),
        description="Proxies and tests: these networks, and only these, are offered XCLIENT, and"
        " speak in the place of a client that they name. It is the client from then on: for who may"
        " relay, limits, policies and the log. With LOGIN it is that user, whatever `auth` says:"
        " list single addresses of machines that are yours.",
    )
    tls: Literal["none", "offer", "require", "implicit"] = Field(
        default="offer",
        description="none | offer: STARTTLS, where `tls.certificates` are given | require: no MAIL"
        " before it | implicit: TLS before the greeting, as on port 465.",
    )
    client_certificates: Literal["none", "ask", "require"] = Field(
        default="none",
        description="Under TLS, ask clients for a certificate: none | ask: the log and Received say"
        " what it is worth, `relay-certificates` what it is good for | require: whoever shows"
        " neither one from an authority in `tls.client-trust` nor one of `relay-certificates` is"
        " told 421 4.7.1 (with `tls: require` or implicit).",
    )
    relay_certificates: tuple[Fingerprint, ...] = Field(
        default=(),
        description="Fingerprints (SHA-256) of certificates whose clients may send to any routable"
        " recipient: `openssl x509 -noout -fingerprint -sha256 -in FILE`. Neither their dates nor"
        " their authority counts.",
    )
    banner: str = Field(
        default="",
        max_length=400,
        pattern=r"^[ -~]*$",
        description="What follows the network name and ESMTP in the greeting.",
    )
    bare_newline: Literal["reject", "normalise"] = Field(
        default="reject",
        description="Content with a CR or LF that is not part of CRLF: reject it with 550 5.5.2, "
        "or normalise each to CRLF. Neither ends the content.",
    )
    future_release: Duration = Field(
        default=604800.0,
        le=31_536_000.0,
        description="How long a client that may relay can ask us to keep its message before it goes"
        " (FUTURERELEASE, RFC 4865); the queue's lifetime begins then. 0: it is not offered.",
    )
    deliver_by: Boolean = Field(
        default=True,
        description="Offer DELIVERBY (RFC 2852) to clients that may relay: a message with BY=600;R"
        " comes back when it is not delivered in ten minutes; with BY=600;N its sender is told.",
    )
    deliver_by_least: Duration = Field(
        default=0.0,
        le=999_999_999.0,
        description="The least time that a message with BY=...;R must have, in whole seconds; it is"
        " announced, and less is refused with 555. 0s: any time.",
    )
    mt_priority: PrioritySettings = Field(
        default_factory=PrioritySettings,
        description="How urgent clients may say that their messages are.",
    )
    requiretls: Boolean = Field(
        default=True,
        description="Offer REQUIRETLS (RFC 8689) under TLS: a message whose client says it goes on"
        " under TLS alone, to servers whose certificate was verified and that offer it too, or"
        " comes back with 5.7.30.",
    )
    vrfy: Literal["noncommittal", "off"] = Field(
        default="noncommittal",
        description="VRFY: noncommittal: 252, which tells nobody who exists (RFC 5321 7.3) | off:"
        " 502.",
    )
    early_talkers: Literal["accept", "refuse"] = Field(
        default="accept",
        description="Clients that talk before they were greeted, as much that sends spam does:"
        " refuse them by 554 in place of the greeting. The policy greet-delay gives them the time.",
    )
    chunking: Boolean = Field(
        default=True,
        description="Offer CHUNKING and BINARYMIME (RFC 3030): clients may send content as it is,"
        " by BDAT. What a next hop does not take is converted, or returned where it cannot be.",
    )
    limits: ListenerLimits = Field(
        default_factory=ListenerLimits, description="What clients may use."
    )
    timeouts: ListenerTimeouts = Field(
        default_factory=ListenerTimeouts, description="How long clients may take."
    )

    @model_validator(mode="after")
    def _somebody_is_asked(self) -> Self:
        wanted = self.client_certificates
        if wanted == "none":
            if self.relay_certificates:
                words = "nobody is asked for one: say `client-certificates: ask`, or require"
                raise misplaced(("relay-certificates",), self.relay_certificates, words)
        elif self.tls == "none" or (wanted == "require" and self.tls == "offer"):
            words = f"{wanted}: without TLS nobody shows one, and `tls: {self.tls}` lets clients be"
            words += " without; say `tls: require`, or implicit"
            raise misplaced(("client-certificates",), wanted, words)
        return self

    @field_validator("proxy_from", "xclient_from")
    @classmethod
    def _somebody(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for network in value:
            if not network.prefixlen:
                raise ValueError(
                    f"{network} is everybody, and everybody could name himself 127.0.0.1: list the"
                    " addresses of the load balancers, or proxies"
                )
        return value

    def of_machine(self) -> Limits:
        limits = self.limits
        return Limits(
            size_octets=limits.size,
            recipients=limits.recipients,
            errors=limits.errors,
            commands=limits.commands,
            line_octets=limits.line,
            normalise_newlines=self.bare_newline == "normalise",
            vrfy=self.vrfy != "off",
            refuse_early=self.early_talkers == "refuse",
        )


Auth = Literal["none", "tls", "clear"]


class SmtpListenerSettings(LmtpListenerSettings):
    """A `listeners:` block of kind smtp."""

    auth: Auth = Field(
        default="none",
        description="Whether clients may say who they are, and then relay: none | tls: under TLS |"
        " clear: without TLS too, where the network itself is closed. Needs the block `auth`.",
    )
    checkpoint_from: tuple[Network, ...] = Field(
        default=(),
        description="Bridgeheads that are offered CHECKPOINT (RFC 1845): they may name their"
        " transactions, and what they send again after a crash is taken once. Nobody else is: what"
        " a client names is remembered for it.",
    )


class SubmissionListenerSettings(LmtpListenerSettings):
    """A `listeners:` block of kind submission: where users and programs hand mail in (RFC 6409)."""

    port: Port = Field(
        default=587, description="On every address of the virtual server; 465 with `tls: implicit`."
    )
    relay_from: tuple[Network, ...] = Field(
        default=(), description="Networks whose clients need not say who they are."
    )
    tls: Literal["none", "offer", "require", "implicit"] = Field(
        default="require",
        description="require: nothing before STARTTLS | implicit: TLS before the greeting, as on"
        " port 465 | offer, none: with `auth: clear` only.",
    )
    auth: Auth = Field(
        default="tls",
        description="How clients say who they are: tls: under TLS | clear: without it too, where"
        " the network itself is closed | none: not at all, so that relay-from alone decides.",
    )
    senders: Literal["any", "login"] = Field(
        default="any",
        description="Under which address a user may write: any | login: under his login's alone"
        " (`alice@example.org`; `alice` may write as alice of any domain). Null is everybody's.",
    )


# --- connectors -------------------------------------------------------------------------------


class ConnectorTimeouts(Settings):
    """The `timeouts:` of a connector."""

    connect: Duration = Field(default=30.0, description="For the TCP connection to be made.")
    greeting: Duration = Field(
        default=300.0, description="For the 220 (RFC 5321 4.5.3.2.1: 5 minutes) and reply to EHLO."
    )
    envelope: Duration = Field(
        default=300.0, description="For each reply to MAIL, RCPT and RSET (RFC 5321: 5 minutes)."
    )
    data: Duration = Field(
        default=120.0, description="For the reply to DATA (RFC 5321 4.5.3.2.4: 2 minutes)."
    )
    block: Duration = Field(
        default=180.0,
        description="For the peer to take a piece of the content (RFC 5321: 3 minutes).",
    )
    final_dot: Duration = Field(
        default=600.0,
        description="For the reply to the final dot (RFC 5321: 10 minutes). Less means "
        "duplicates at slow receivers.",
    )
    quit: Duration = Field(default=5.0, description="For the reply to QUIT; nothing hangs on it.")

    def of_machine(self) -> Timeouts:
        return Timeouts(
            greeting=self.greeting,
            hello=self.greeting,
            mail=self.envelope,
            rcpt=self.envelope,
            data=self.data,
            block=self.block,
            dot=self.final_dot,
            reset=self.envelope,
            quit=self.quit,
        )


class WireConnectorSettings(Settings):
    """What `smtp` and `lmtp` connectors have in common."""

    timeouts: ConnectorTimeouts = Field(
        default_factory=ConnectorTimeouts, description="How long the peer may take."
    )
    tls: Word = Field(
        default="opportunistic",
        description="none | opportunistic: STARTTLS where it is offered, plainly where that fails |"
        " dane: where signed TLSA records say who the server is, it has to prove it and mail waits"
        " until then; elsewhere opportunistic (RFC 7672; needs `resolver.dnssec`) |"
        " require: mail waits rather than go without it | verify: and its certificate must be for"
        " the server's name, from an authority in `tls.trust`.",
    )
    tls_exceptions: tuple[TlsExceptionSettings, ...] = Field(
        default=(),
        description="Destinations for which something else than `tls` holds; the most specific"
        " alone counts. With `delivery: mx` a destination is the domain of the mail, with"
        " bridgeheads the name of the bridgehead.",
    )
    priority_field: Boolean = Field(
        default=True,
        description="Tell the priority of a message by the field MT-Priority where the server does"
        " not offer MT-PRIORITY (RFC 6758). Messages without a priority get none.",
    )

    certificate: Literal["own"] | CertificateSettings | None = Field(
        default=None,
        description="What servers are shown that ask for a certificate: own: that of the virtual"
        " server, from `tls.certificates` | {chain: ..., key-file: ...}: another, as there. The"
        " files are read again when they change. Without it, nothing.",
    )

    @field_validator("tls_exceptions")
    @classmethod
    def _distinct(cls, value: tuple[TlsExceptionSettings, ...]) -> tuple[TlsExceptionSettings, ...]:
        seen = set()
        for index, each in enumerate(value):
            if each.domain in seen:
                words = f"{each.domain}: an exception for it stands above already"
                raise misplaced((index, "domain"), each.domain, words)
            seen.add(each.domain)
        return value

    @model_validator(mode="after")
    def _somebody_sees_it(self) -> Self:
        if self.certificate and {self.tls, *(e.tls for e in self.tls_exceptions)} == {"none"}:
            raise misplaced(("certificate",), self.certificate, "nobody sees it with `tls: none`")
        return self

    def shown(self) -> str | tuple[str, str]:
        """See TlsManner."""
        found = self.certificate
        if isinstance(found, CertificateSettings):
            return (found.chain, found.key_file)
        return found or ""


class AuthSettings(Settings):
    """The `auth:` of a connector."""

    user: str = Field(
        min_length=1,
        max_length=255,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="The name that the servers know us by.",
    )
    password_file: SecretFileSetting = Field(
        description="A file that holds the password alone, which others cannot read. It is read for"
        " each association."
    )
    mechanisms: tuple[Literal["SCRAM-SHA-256", "PLAIN", "LOGIN"], ...] = Field(
        default=("SCRAM-SHA-256", "PLAIN", "LOGIN"),
        min_length=1,
        description="Those that may be used. The strongest of these that the server offers is used;"
        " the default begins with the strongest.",
    )
    plaintext: Literal["refuse", "allow"] = Field(
        default="refuse",
        description="refuse: without TLS nothing is said of it, and mail waits | allow: whoever"
        " listens may have the password.",
    )


_MERE_WISHES = {"none", "opportunistic", "dane"}
"""Under these something may be sent without TLS."""


class SmtpConnectorSettings(WireConnectorSettings):
    """What an `smtp` connector has besides the keys that all connectors have."""

    mta_sts: Boolean = Field(
        default=False,
        description="With `delivery: mx`: ask each domain for its policy (MTA-STS, RFC 8461), over"
        " HTTPS from this node. Where one is enforced its mail goes only to servers that it names"
        " and that prove, by a certificate from an authority in `tls.trust`, to be them; else it"
        " waits. DANE and `tls-exceptions` stand before it.",
    )

    auth: AuthSettings | None = Field(
        default=None,
        description="Say who we are before any mail (RFC 4954): a smarthost. With `tls: verify`, or"
        " `require`. A server that does not let us in gets no mail: it waits, and a warning tells.",
    )

    checkpoint: Boolean = Field(
        default=False,
        description="The bridgeheads are our own kind: name each transaction (RFC 1845) where"
        " CHECKPOINT is offered, so that a resend after a crash brings nothing twice.",
    )

    @model_validator(mode="after")
    def _policies_can_be_met(self) -> SmtpConnectorSettings:
        if self.mta_sts and self.tls == "none":
            words = "true: `tls: none` can meet no policy; say `tls: opportunistic`, or dane"
            raise misplaced(("mta-sts",), self.mta_sts, words)
        return self

    @model_validator(mode="after")
    def _no_password_in_the_clear(self) -> SmtpConnectorSettings:
        if self.auth is None or self.auth.plaintext == "allow":
            return self
        words = (
            "auth with `tls: {}`: the password could go out without TLS; say `tls: verify` (or"
            " require), or `plaintext: allow` in auth where nobody can listen"
        )
        if self.tls in _MERE_WISHES:
            raise ValueError(words.format(self.tls))
        for index, each in enumerate(self.tls_exceptions):
            if each.tls in _MERE_WISHES:
                raise misplaced(("tls-exceptions", index, "tls"), each.tls, words.format(each.tls))
        return self


class LmtpConnectorSettings(WireConnectorSettings):
    """What an `lmtp` connector has besides the keys that all connectors have."""

    path: str | None = Field(
        default=None,
        description="A UNIX socket of this node (instead of bridgeheads): /run/dovecot/lmtp.",
        pattern=r"^/",
        max_length=107,
    )
