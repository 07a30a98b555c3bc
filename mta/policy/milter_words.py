"""What a filter is told of a client and its message: macros and parameters, by Sendmail's names.

Law: what is not known is not named. Programs of this node are what Postfix says of them: localhost.

Sendmail's operations guide (macros); RFC 3461 4.1, 4.2 (NOTIFY, ORCPT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from mta.interfaces import IRefusedRecipient, ISaslMechanism, ITransaction
from mta.model import Address, Notify, PeerInfo, Recipient

_SOFTWARE = b"mta"


def parameters_of_mail(parameters: Mapping[bytes, bytes | None]) -> list[bytes]:
    return [key if value is None else key + b"=" + value for key, value in parameters.items()]


def parameters_of_rcpt(recipient: Recipient) -> list[bytes]:
    said = [
        flag.name.encode() for flag in Notify if flag and flag in recipient.notify and flag.name
    ]
    found = [b"NOTIFY=" + b",".join(said)] if said else []
    return found + ([b"ORCPT=" + recipient.original] if recipient.original else [])


@dataclass(frozen=True, slots=True)
class Told:
    """`client` is a name, an IP address as text, and a port; the others are macros of a stage."""

    client: tuple[bytes, str, int]
    connect: dict[bytes, bytes]
    helo: dict[bytes, bytes]
    mail: dict[bytes, bytes]
    rcpt: dict[bytes, bytes]
    content: dict[bytes, bytes]


class Words:
    """`network_name` is the virtual server's."""

    def __init__(self, network_name: str) -> None:
        self._network_name = network_name.encode()

    def of(self, transaction: ITransaction) -> Told:
        peer = transaction.peer
        client = _client(peer)
        name, host, port = client
        connect = {
            b"j": self._network_name,
            b"v": _SOFTWARE,
            b"{daemon_name}": peer.listener.encode(),
            b"{daemon_addr}": peer.local_host.encode(),
            b"{daemon_port}": b"%d" % peer.local_port,
            b"{client_name}": name if peer.uid is not None else peer.name.encode() or b"unknown",
            b"{client_addr}": host.encode(),
            b"{client_port}": b"%d" % port,
        }
        content = {b"i": transaction.queue_id.encode()} if transaction.queue_id else {}
        recipient = transaction.recipient
        return Told(
            client,
            connect,
            _session(peer),
            {**content, **_user(transaction), **_mailbox(b"mail", transaction.sender)},
            {**content, **({} if recipient is None else _recipient(transaction, recipient))},
            content,
        )


def _client(peer: PeerInfo) -> tuple[bytes, str, int]:
    if peer.uid is not None:
        return b"localhost", "127.0.0.1", 0
    try:
        address = ip_address(peer.host)
    except ValueError:
        return peer.name.encode() or b"unknown", "", 0
    if address.version == 6:
        address = address.ipv4_mapped or address
    literal = f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"
    return peer.name.encode() or literal.encode(), str(address), peer.port


def _session(peer: PeerInfo) -> dict[bytes, bytes]:
    """`TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)` in three macros."""
    if not peer.tls:
        return {}
    version, _, rest = peer.tls.partition(" with cipher ")
    cipher, _, bits = rest.partition(" (")
    return {
        b"{tls_version}": version.encode(),
        b"{cipher}": cipher.encode(),
        b"{cipher_bits}": bits.partition("/")[0].encode(),
    }


def _user(transaction: ITransaction) -> dict[bytes, bytes]:
    if not transaction.user:
        return {}
    mechanism = ISaslMechanism(transaction).mechanism
    return {b"{auth_type}": mechanism.encode(), b"{auth_authen}": transaction.user.encode()}


def _recipient(transaction: ITransaction, recipient: Recipient) -> dict[bytes, bytes]:
    """Of one that is not taken they say why (SMFIP_RCPT_REJ)."""
    refusal = IRefusedRecipient(transaction).refusal
    if refusal is None:
        return _mailbox(b"rcpt", recipient.address)
    words = {b"mailer": b"error", b"host": refusal.enhanced.encode(), b"addr": refusal.lines[0]}
    return {b"{rcpt_%b}" % name: value for name, value in words.items()}


def _mailbox(kind: bytes, address: Address) -> dict[bytes, bytes]:
    """Sendmail's {mail_addr}, {mail_host} and {mail_mailer}, or those of RCPT."""
    return {
        b"{%b_addr}" % kind: address.text,
        b"{%b_host}" % kind: address.domain,
        b"{%b_mailer}" % kind: b"esmtp",
    }
