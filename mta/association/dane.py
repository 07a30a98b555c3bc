"""DANE for SMTP: what is demanded of one association, and whether a server has proved who it is.

Law: a server whose way was proven by DNSSEC is never spoken to with less than its TLSA records
demand. What could not be looked up, or is bogus, is no answer: that server is not used, and mail
waits. Where the way is not proven nothing is looked up, and TLS is a wish.

RFC 7672 2.1.1 and 2.2 (decisions), 3.1.1 (DANE-EE), 3.1.2 (DANE-TA), 3.2 (names); RFC 7671 5.2.
pyOpenSSL does the work; it is brought in when first needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from mta.association.tls_results import UNTRUSTED, result_of
from mta.errors import MTAError, NotProven, PermanentFailure, StartRefused, TransientFailure
from mta.interfaces import IClock, ISecureResolver, ISurroundings, ITls
from mta.model import NextHop, Tlsa
from mta.wire.dane import (
    Demand,
    Shown,
    anchors_told,
    demanded,
    is_anchor,
    is_end_entity,
)


class Demanded(NamedTuple):
    """Of one association. `name` is what the server is asked for by SNI (RFC 7672 3.2.1)."""

    demand: Demand
    name: str
    records: tuple[Tlsa, ...] = ()
    names: tuple[str, ...] = ()
    """What a certificate from an authority in the records has to bear, one of them."""


class Dane:
    """Belongs to a connector with `tls: dane`. @raise StartRefused: the resolver cannot tell."""

    def __init__(self, surroundings: ISurroundings) -> None:
        resolver = ISecureResolver(surroundings.resolver, None)
        if resolver is None or not resolver.validates:
            raise StartRefused(
                "tls: dane needs a resolver that tells which answers were validated",
                "this one does not",
                "name a validating name server on loopback: resolver: {servers: [127.0.0.1],"
                " dnssec: true}",
            )
        self._resolver = resolver
        self._count = surroundings.telemetry.counter

    async def demanded(self, hop: NextHop) -> Demanded:
        """@raise TransientFailure: it could not be found out."""
        name = hop.name or hop.host
        proven = hop.proven
        if proven is None:
            return Demanded(Demand.WISH, name)
        for base in proven.bases:
            try:
                answer = await self._resolver.tlsa(base, hop.port)
            except TransientFailure as failure:
                self._tally("unknown")
                raise TransientFailure(
                    hop.relay, f"DANE: {failure.what}: {failure.why}", enhanced="4.7.0"
                ) from None
            demand, records = demanded(answer)
            if demand is not Demand.WISH:
                self._tally("usable" if records else "unusable")
                names = tuple(dict.fromkeys((base, *proven.domains)))
                return Demanded(demand, base, records, names)
        self._tally("none")
        return Demanded(Demand.WISH, name)

    def _tally(self, records: str) -> None:
        self._count(
            "mta_dane_servers_total",
            "Servers whose way DNSSEC proved, by what their TLSA records were.",
            records=records,
        ).inc()


class Proof(NamedTuple):
    """Whether a server is the one that its TLSA records are for."""

    records: tuple[Tlsa, ...]
    names: tuple[str, ...]
    tls: ITls
    clock: IClock

    def check(self, handle: Any) -> None:
        """After a handshake in which nobody was asked. @raise PermanentFailure: it is another."""
        chain = list(handle.get_peer_cert_chain() or ())
        if not chain:
            raise NotProven("DANE: the server showed no certificate", result=UNTRUSTED)
        first = _shown(chain[0])
        if first is None:
            what = "DANE: the server's certificate cannot be read"
            raise NotProven(what, result=UNTRUSTED)
        if is_end_entity(self.records, first):
            return
        self._check_authority(chain)
        fault: MTAError | None = None
        for name in self.names:
            try:
                self.tls.check_name(handle, name)
            except PermanentFailure as wrong:
                fault = fault or wrong
            else:
                return
        assert fault is not None, "there is a base domain"
        raise fault

    def _check_authority(self, chain: Sequence[Any]) -> None:
        """The chain leads to an authority in the records, and is good today."""
        from OpenSSL import crypto

        further = ((one, _shown(one)) for one in chain[1:])
        anchors = [one for one, shown in further if shown and is_anchor(self.records, shown)]
        for octets in anchors_told(self.records):
            try:
                anchors.append(crypto.load_certificate(crypto.FILETYPE_ASN1, octets))
            except (crypto.Error, ValueError):
                continue  # the zone took something else for a certificate; it matches nothing
        if not anchors:
            raise NotProven("DANE: no TLSA record is for the certificate", result=UNTRUSTED)
        store = crypto.X509Store()
        for anchor in anchors:
            store.add_cert(anchor)
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        store.set_time(datetime.fromtimestamp(self.clock.wall(), UTC))
        try:
            crypto.X509StoreContext(store, chain[0], chain[1:]).verify_certificate()
        except crypto.X509StoreContextError as wrong:
            number = wrong.errors[0] if wrong.errors else 0
            raise NotProven(
                "DANE: the certificate's chain is not good", str(wrong), result=result_of(number)
            ) from None


def _shown(certificate: Any) -> Shown | None:
    """None: of a form or with a key that OpenSSL passes on and cryptography does not know."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        found = certificate.to_cryptography()
        key = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # it raises many kinds for what a server may show; none may pass
        return None
    return Shown(found.public_bytes(Encoding.DER), key)
