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
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from zope.interface import implementer

from mta.association.tls_settings import CertificateSettings, TlsSettings
from mta.errors import PermanentFailure, StartRefused
from mta.interfaces import IClock, ITlsManners
from mta.model import TlsManner
from mta.telemetry import Telemetry

LOOK_SECONDS = 10.0
"""How often, at most, the files are looked at; only when somebody begins a handshake."""
SOON_SECONDS = 14 * 86400.0
"""A certificate that ends sooner is named in the log."""
_LABEL = re.compile(r"[a-z0-9_-]{1,63}|\*")


@implementer(ITlsManners)
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
        self._openers: dict[TlsManner, Any] = {}
        if settings.certificates:
            self._stamps = self._stamp()
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

    def _look_again(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        stamps = self._stamp()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._identities = self._load()
        except StartRefused as fault:
            self._telemetry.notice("error", "tls", f"{fault}; the former certificate stays in use")
        else:
            self._telemetry.notice("info", "tls", "the certificates were read again")

    def _stamp(self) -> tuple[object, ...]:
        found: list[object] = []
        for pair in self._settings.certificates:
            for path in (pair.chain, pair.key_file):
                try:
                    stat = os.stat(path)
                except OSError as fault:
                    found.append(fault.errno)
                else:
                    found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(found)

    def _load(self) -> list[_Identity]:
        """@raise StartRefused."""
        from OpenSSL import SSL

        found: list[_Identity] = []
        for pair in self._settings.certificates:
            names, ends = _read_names(pair.chain)
            same = [one for one in found if one.names == names]
            if same:  # another kind of key for the same names: OpenSSL chooses
                _use(same[0].context, pair)
            else:
                context = SSL.Context(SSL.TLS_METHOD)
                self._configure(context)
                _use(context, pair)
                found.append(_Identity(names, context))
            left = ends - self._clock.wall()
            if left < SOON_SECONDS:
                when = "has expired" if left <= 0 else f"ends in {left / 86400:.0f} days"
                self._telemetry.notice("warning", "tls", f"{pair.chain} {when}")
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
            one.context.set_tlsext_servername_callback(_Chooser(found))
        return found

    def _configure(self, context: Any, minimum: str = "") -> None:
        from OpenSSL import SSL

        oldest = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
        context.set_min_proto_version(oldest[minimum or self._settings.minimum])
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_session_id(b"mta")

    # --- others ---

    def opening(self, name: str, verify: bool) -> Any:
        """See ITls."""
        return _Opening(self._opener(TlsManner(verify)), name)

    def opening_in(self, name: str, manner: TlsManner) -> Any:
        """See ITlsManners."""
        return _Opening(self._opener(manner), name)

    def _opener(self, manner: TlsManner) -> Any:
        """A context for each manner: no session of one is a proof under another, and none is kept.

        @raise StartRefused: `tls.trust` cannot be used.
        """
        from OpenSSL import SSL

        context = self._openers.get(manner)
        if context is not None:
            return context
        context = SSL.Context(SSL.TLS_METHOD)
        self._configure(context, manner.minimum)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        if manner.verify:
            self._trust(context)
            context.set_verify(SSL.VERIFY_PEER, lambda _c, _x, _e, _d, is_ok: bool(is_ok))
        self._openers[manner] = context
        return context

    def _trust(self, context: Any) -> None:
        from OpenSSL import SSL

        trust = self._settings.trust
        try:
            if trust is None:
                context.set_default_verify_paths()
            else:
                context.load_verify_locations(trust)
        except SSL.Error as fault:
            raise StartRefused(
                f"tls.trust {trust} cannot be used", _words(fault), "it must hold certificates, PEM"
            ) from None

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
            raise PermanentFailure(
                f"the certificate is not for {name}", str(fault) or type(fault).__name__
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
        raise PermanentFailure(f"the certificate is not for {' or '.join(names)}")

    def describe(self, handle: Any) -> str:
        """See ITls."""
        bits = handle.get_cipher_bits() or 0
        version, cipher = handle.get_protocol_version_name(), handle.get_cipher_name()
        return f"{version} with cipher {cipher} ({bits}/{bits} bits)"


class _Identity:
    """The names of a certificate, lower case, and the context that shows it."""

    def __init__(self, names: frozenset[str], context: Any) -> None:
        self.names = names
        self.context = context

    def covers(self, name: str) -> bool:
        """RFC 9525 6.3: a wildcard stands for exactly one label."""
        _, _, parent = name.partition(".")
        return name in self.names or (bool(parent) and f"*.{parent}" in self.names)


class _Chooser:
    """OpenSSL's SNI callback: who asks for a name that we have gets its certificate."""

    def __init__(self, identities: Sequence[_Identity]) -> None:
        self._identities = identities

    def __call__(self, connection: Any) -> None:
        asked = connection.get_servername()
        if not asked:
            return
        name = asked.decode("ascii", "replace").lower()
        for identity in self._identities:
            if identity.covers(name):
                connection.set_context(identity.context)
                return


@implementer(IOpenSSLServerConnectionCreator)
class _Accepting:
    """For Twisted's startTLS."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def serverConnectionForTLS(self, _protocol: object) -> Any:
        from OpenSSL import SSL

        return SSL.Connection(self._context, None)


@implementer(IOpenSSLClientConnectionCreator)
class _Opening:
    """For Twisted's startTLS."""

    def __init__(self, context: Any, name: str) -> None:
        self._context = context
        self._name = name

    def clientConnectionForTLS(self, _protocol: object) -> Any:
        from OpenSSL import SSL

        connection = SSL.Connection(self._context, None)
        try:
            ip_address(self._name)
        except ValueError:
            if self._name:  # RFC 6066 section 3: no literal addresses
                connection.set_tlsext_host_name(self._name.encode("ascii", "replace"))
        return connection


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
    args = getattr(reason, "args", ())
    if args and isinstance(args[0], list):
        return _words(reason)
    return str(reason) or type(reason).__name__
