"""TLS as this process has it: certificates of its own, trust in others, what came of a handshake.

Law: every association shows the certificate of the virtual server, whichever node it runs on. What
cannot be used is refused by name at start; later the last good one stays, and it is said so.
Whether a peer is who it says is decided after the handshake, before anything else is said.

RFC 8446, RFC 6066 section 3 (SNI), RFC 6125 and RFC 9525 (names), RFC 7817 (names in mail).
pyOpenSSL and service_identity do the work; they are brought in when first needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from mta.association.tls_results import MISMATCH, result_of, words_of
from mta.association.tls_settings import CertificateSettings, TlsSettings
from mta.errors import NotProven, PermanentFailure, StartRefused
from mta.interfaces import IClock, ITlsAsking, ITlsNoted
from mta.model import ClientCertificate, TlsManner
from mta.telemetry import Telemetry

LOOK_SECONDS = 10.0
"""How often, at most, the files are looked at; only when somebody begins a handshake."""
SOON_SECONDS = 14 * 86400.0
"""A certificate that ends sooner is named in the log."""
LONGEST_NAME = 64
"""Characters of a common name (X.520 ub-common-name); what is longer is cut."""
_LABEL = re.compile(r"[a-z0-9_-]{1,63}|\*")


@implementer(ITlsNoted, ITlsAsking)
class Tls:
    """One for a process. @raise StartRefused: a file cannot be used, or none is for our name."""

    def __init__(
        self, settings: TlsSettings, network_name: str, clock: IClock, telemetry: Telemetry
    ) -> None:
        self._settings = settings
        self._network_name = network_name.lower()
        self._clock = clock
        self._telemetry = telemetry
        self._identities: list[_Identity] = []
        self._stamps: tuple[object, ...] = ()
        self._looked_at = 0.0
        self._openers: dict[tuple[TlsManner, bool], _Opener] = {}
        self._is_asking = False
        """Somebody asks clients who they are: contexts for that are made too."""
        if settings.certificates:
            self._stamps = _stamp(settings.certificates)
            self._identities = self._load()
            self._looked_at = clock.monotonic()
        if settings.trust is not None:
            self._opener(TlsManner(True))  # a file that is none is refused now

    @property
    def has_certificate(self) -> bool:
        return bool(self._identities)

    # --- our certificates ---

    def accepting(self) -> Any:
        """See ITls."""
        self._look_again()
        return _Accepting(self._identities[0].context)

    def asking(self) -> Any:
        """See ITlsAsking."""
        if not self._is_asking:
            self._is_asking = True
            self._identities = self._load()
        self._look_again()
        asking = self._identities[0].asking
        assert asking is not None, "contexts that ask were made with the others"
        return _Accepting(asking)

    def shown(self, handle: Any) -> ClientCertificate | None:
        """See ITlsAsking."""
        from cryptography.hazmat.primitives.hashes import SHA256

        found = handle.get_peer_certificate()
        if found is None:
            return None
        certificate = found.to_cryptography()
        return ClientCertificate(
            certificate.fingerprint(SHA256()).hex(),
            _common_name(certificate, "subject"),
            _common_name(certificate, "issuer"),
            handle.judgement.fault,
        )

    def _look_again(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        stamps = _stamp(self._settings.certificates)
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._identities = self._load()
        except StartRefused as fault:
            self._telemetry.notice("error", "tls", f"{fault}; the former certificate stays in use")
        else:
            self._telemetry.notice("info", "tls", "the certificates were read again")

    def _load(self) -> list[_Identity]:
        """@raise StartRefused."""
        found: list[_Identity] = []
        for pair in self._settings.certificates:
            names, ends = _read_names(pair.chain)
            same = [one for one in found if one.names == names]
            if same:  # another kind of key for the same names: OpenSSL chooses
                identity = same[0]
            else:
                identity = _Identity(names, self._context(), self._asking_context())
                found.append(identity)
            identity.take(pair)
            self._tell_end(pair.chain, ends)
        ours = [one for one in found if one.covers(self._network_name)]
        if not ours:
            listed = ", ".join(sorted(name for one in found for name in one.names))
            raise StartRefused(
                f"no certificate is for {self._network_name}",
                f"they are for {listed or 'no name at all'}",
                "every peer meets the network name: add a certificate for it to tls.certificates",
            )
        found.sort(key=lambda one: one is not ours[0])
        for one in found:
            one.context.set_tlsext_servername_callback(_Chooser(found, is_asking=False))
            if one.asking is not None:
                one.asking.set_tlsext_servername_callback(_Chooser(found, is_asking=True))
        return found

    def _tell_end(self, path: str, ends: float) -> None:
        left = ends - self._clock.wall()
        if left < SOON_SECONDS:
            when = "has expired" if left <= 0 else f"ends in {left / 86400:.0f} days"
            self._telemetry.notice("warning", "tls", f"{path} {when}")

    def _asking_context(self) -> Any:
        """None while nobody asks. What was proved in one association proves nothing in the next:
        a session would not be judged again. None is kept, and no ticket of another context fits.
        """
        from OpenSSL import SSL

        if not self._is_asking:
            return None
        context = self._context()
        context.set_session_id(b"mta asking")
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_options(SSL.OP_NO_TICKET)
        context.set_verify(SSL.VERIFY_PEER, _judge)
        authorities = self._settings.client_authorities
        if authorities is not None:
            self._load_authorities(context, authorities)
        return context

    def _context(self, minimum: str = "") -> Any:
        from OpenSSL import SSL

        context = SSL.Context(SSL.TLS_METHOD)
        oldest = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
        context.set_min_proto_version(oldest[minimum or self._settings.minimum])
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_session_id(b"mta")
        return context

    # --- others ---

    def opening(self, name: str, verify: bool) -> Any:
        """See ITls."""
        return self.opening_in(name, TlsManner(verify))

    def opening_in(self, name: str, manner: TlsManner) -> Any:
        """See ITlsManners."""
        return _Opening(self._opener(manner), name)

    def noted_in(self, name: str, manner: TlsManner) -> Any:
        """See ITlsNoted."""
        return _Opening(self._opener(manner, is_noted=True), name)

    def _opener(self, manner: TlsManner, *, is_noted: bool = False) -> Any:
        """A context for each manner: no session of one is a proof under another, and none is kept.

        @raise StartRefused: a file cannot be used.
        """
        opener = self._openers.get((manner, is_noted))
        if opener is None:
            pairs = self._shown_in(manner)
            opener = _Opener(self._make_opener(manner, pairs, is_noted), _stamp(pairs))
            opener.looked_at = self._clock.monotonic()
            self._openers[manner, is_noted] = opener
        elif manner.certificate:
            self._renew(opener, manner, is_noted)
        return opener.context

    def _shown_in(self, manner: TlsManner) -> tuple[CertificateSettings, ...]:
        """What a server that asks is shown."""
        wanted = manner.certificate
        if not wanted:
            return ()
        if isinstance(wanted, tuple):
            return (CertificateSettings(chain=wanted[0], key_file=wanted[1]),)
        if not self._identities:
            raise StartRefused(
                "certificate: own",
                "there is none",
                "give one for the network name in tls.certificates",
            )
        return tuple(self._identities[0].pairs)

    def _renew(self, opener: _Opener, manner: TlsManner, is_noted: bool) -> None:
        """The files may have changed."""
        now = self._clock.monotonic()
        if now - opener.looked_at < LOOK_SECONDS:
            return
        opener.looked_at = now
        pairs = self._shown_in(manner)
        stamps = _stamp(pairs)
        if stamps == opener.stamps:
            return
        opener.stamps = stamps
        try:
            opener.context = self._make_opener(manner, pairs, is_noted)
        except StartRefused as fault:
            text = f"{fault}; servers are shown the former certificate"
            self._telemetry.notice("error", "tls", text)

    def _make_opener(
        self, manner: TlsManner, pairs: Sequence[CertificateSettings], is_noted: bool
    ) -> Any:
        from OpenSSL import SSL

        context = self._context(manner.minimum)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        for pair in pairs:
            _, ends = _read_names(pair.chain)
            _use(context, pair)
            if manner.certificate != "own":  # of which it is told already
                self._tell_end(pair.chain, ends)
        if manner.verify or is_noted:
            if self._settings.trust is None:
                context.set_default_verify_paths()
            else:
                self._load_authorities(context, self._settings.trust)
            context.set_verify(SSL.VERIFY_PEER, _judge if is_noted else _demand)
        return context

    def _load_authorities(self, context: Any, path: str) -> None:
        from OpenSSL import SSL

        try:
            context.load_verify_locations(path)
        except SSL.Error as fault:
            is_trust = path == self._settings.trust
            raise StartRefused(
                f"tls.{'trust' if is_trust else 'client-trust'} {path} cannot be used",
                _words(fault),
                "it must hold certificates, PEM",
            ) from None

    def check_chain(self, handle: Any) -> None:
        """See ITlsNoted."""
        number = handle.judgement.number
        if number:
            text = "the certificate's chain is not good"
            raise NotProven(text, words_of(number), result=result_of(number))

    def check_name(self, handle: Any, name: str) -> None:
        """See ITls."""
        from service_identity import CertificateError, VerificationError
        from service_identity.pyopenssl import verify_hostname, verify_ip_address

        try:
            try:
                ip_address(name)
            except ValueError:
                verify_hostname(handle, name)
            else:
                verify_ip_address(handle, name)
        except (VerificationError, CertificateError) as fault:
            raise NotProven(
                f"the certificate is not for {name}",
                str(fault) or type(fault).__name__,
                result=MISMATCH,
            ) from None

    def check_names(self, handle: Any, names: tuple[str, ...]) -> None:
        """See ITlsManners."""
        shown = _names_of(handle.get_peer_certificate().to_cryptography())
        for name in names:
            if name.startswith("*."):
                if any(is_below(name, one) for one in shown):
                    return
                continue
            try:
                self.check_name(handle, name)
            except PermanentFailure:
                continue
            return
        raise NotProven(f"the certificate is not for {' or '.join(names)}", result=MISMATCH)

    def describe(self, handle: Any) -> str:
        """See ITls."""
        bits = handle.get_cipher_bits() or 0
        version, cipher = handle.get_protocol_version_name(), handle.get_cipher_name()
        return f"{version} with cipher {cipher} ({bits}/{bits} bits)"


class _Identity:
    """The names of a certificate, lower case, and the contexts that show it: `asking` that for
    clients who are asked for theirs.
    """

    def __init__(self, names: frozenset[str], context: Any, asking: Any) -> None:
        self.names = names
        self.context = context
        self.asking = asking
        self.pairs: list[CertificateSettings] = []

    def take(self, pair: CertificateSettings) -> None:
        """@raise StartRefused."""
        self.pairs.append(pair)
        for context in (self.context, self.asking):
            if context is not None:
                _use(context, pair)

    def covers(self, name: str) -> bool:
        """RFC 9525 6.3: a wildcard stands for exactly one label."""
        _, _, parent = name.partition(".")
        return name in self.names or (bool(parent) and f"*.{parent}" in self.names)


class _Chooser:
    """OpenSSL's SNI callback: who asks for a name that we have gets its certificate."""

    def __init__(self, identities: Sequence[_Identity], is_asking: bool) -> None:
        self._identities = identities
        self._is_asking = is_asking

    def __call__(self, connection: Any) -> None:
        asked = connection.get_servername()
        if not asked:
            return
        name = asked.decode("ascii", "replace").lower()
        for identity in self._identities:
            if identity.covers(name):
                connection.set_context(identity.asking if self._is_asking else identity.context)
                return


class _Opener:
    """The context of one manner, and how the files looked of which it was made."""

    def __init__(self, context: Any, stamps: tuple[object, ...]) -> None:
        self.context = context
        self.stamps = stamps
        self.looked_at = 0.0


class _Judgement:
    """What OpenSSL found of the chain that the other end shows, in one handshake."""

    __slots__ = ("_is_through", "number")

    def __init__(self) -> None:
        self.number = 0
        """Of the first fault; 0: none."""
        self._is_through = False

    def found(self, number: int, depth: int, is_ok: bool) -> None:
        if not is_ok:
            self.number = self.number or number
        elif not depth:
            self._is_through = True

    @property
    def fault(self) -> str:
        if self.number:
            return words_of(self.number)
        return "" if self._is_through else "it was not judged"


def _judge(connection: Any, _certificate: object, number: int, depth: int, is_ok: int) -> bool:
    """OpenSSL's callback for each certificate of a chain that is only looked at. The handshake goes
    on, whatever it is: who may do what is for others to say, and in words that a client can read.
    """
    connection.judgement.found(number, depth, bool(is_ok))
    return True


def _demand(connection: Any, _certificate: object, number: int, depth: int, is_ok: int) -> bool:
    """The same of a chain that has to be good: what is not ends the handshake."""
    connection.judgement.found(number, depth, bool(is_ok))
    return bool(is_ok)


@implementer(IOpenSSLServerConnectionCreator)
class _Accepting:
    """For Twisted's startTLS."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def serverConnectionForTLS(self, _protocol: object) -> Any:
        from OpenSSL import SSL

        connection: Any = SSL.Connection(self._context, None)
        connection.judgement = _Judgement()  # its app data is Twisted's
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class _Opening:
    """For Twisted's startTLS."""

    def __init__(self, context: Any, name: str) -> None:
        self._context = context
        self._name = name
        self._judgement = _Judgement()

    @property
    def result(self) -> str:
        """Of a handshake that failed: RFC 8460's word for it."""
        return result_of(self._judgement.number)

    def clientConnectionForTLS(self, _protocol: object) -> Any:
        from OpenSSL import SSL

        connection: Any = SSL.Connection(self._context, None)
        connection.judgement = self._judgement
        try:
            ip_address(self._name)
        except ValueError:
            if self._name:  # RFC 6066 section 3: no literal addresses
                connection.set_tlsext_host_name(self._name.encode("ascii", "replace"))
        return connection


def _stamp(pairs: Iterable[CertificateSettings]) -> tuple[object, ...]:
    """Changes when one of the files does."""
    found: list[object] = []
    for pair in pairs:
        for path in (pair.chain, pair.key_file):
            try:
                stat = os.stat(path)
            except OSError as fault:
                found.append(fault.errno)
            else:
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def _use(context: Any, pair: CertificateSettings) -> None:
    """@raise StartRefused."""
    from OpenSSL import SSL

    try:
        context.use_certificate_chain_file(pair.chain)
        context.use_privatekey_file(pair.key_file)
        context.check_privatekey()
    except SSL.Error as fault:
        raise StartRefused(
            f"the certificate {pair.chain} with the key {pair.key_file} cannot be used",
            _words(fault),
            "chain holds the certificate first, PEM; key-file its private key without a passphrase",
        ) from None


def _read_names(path: str) -> tuple[frozenset[str], float]:
    """The DNS names of the first certificate, and when it ends (wall). @raise StartRefused."""
    from cryptography import x509

    try:
        with open(path, "rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read())
    except OSError as fault:
        raise StartRefused(
            f"the certificate {path} cannot be read", fault.strerror or str(fault),
            "the user that the MTA runs as must be able to read it",
        ) from None  # fmt: skip
    except ValueError as fault:
        raise StartRefused(f"{path} holds no certificate", str(fault), "PEM is wanted") from None
    return _names_of(certificate), certificate.not_valid_after_utc.timestamp()


def _names_of(certificate: Any) -> frozenset[str]:
    """Its DNS names, in lower case."""
    from cryptography import x509

    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):  # ValueError: a peer's, and damaged
        names = []
    return frozenset(name.lower() for name in names)


def _common_name(certificate: Any, whose: str) -> str:
    """Of its `subject` or `issuer`; "" where there is none, or it is damaged."""
    from cryptography.x509.oid import NameOID

    try:
        found = getattr(certificate, whose).get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return ""
    return str(found[0].value)[:LONGEST_NAME] if found else ""


def is_below(pattern: str, shown: str) -> bool:
    """Whether a name of a certificate lies below *.example.com; that itself does, too."""
    above, tail = shown[: 1 - len(pattern)], shown[1 - len(pattern) :]
    return tail == pattern[1:] and all(_LABEL.fullmatch(label) for label in above.split("."))


def _words(fault: Any) -> str:
    """OpenSSL's errors are lists of (library, function, reason)."""
    found = [str(entry[-1]) for entry in (fault.args[0] if fault.args else ()) if entry]
    return "; ".join(found) or type(fault).__name__


def handshake_fault(reason: BaseException | None) -> str:
    """Why a handshake came to nothing, in words."""
    return alert_of(reason) or str(reason) or type(reason).__name__


def alert_of(reason: BaseException | None) -> str:
    """Why TLS ended a connection, behind the handshake too: with version 1.3 a server that does not
    want our certificate says so there. "" where it was not TLS.
    """
    args = getattr(reason, "args", ())
    return _words(reason) if args and isinstance(args[0], list) else ""
