"""Who speaks in the place of whom: what XCLIENT says, made a client of this house.

Law: only who is in `xclient-from` is believed, and each command anew: from then on the client is
who it names, also for that question. The socket's own ends stay known (`PeerInfo.via`), and no
address that is named becomes one of ours: where the client connected to stands in the log, and
nowhere else.

Postfix's XCLIENT_README; the machine is wire/smtp/server.py.
"""

from __future__ import annotations

from dataclasses import replace

from mta.model import PeerInfo
from mta.telemetry import Telemetry
from mta.wire.smtp.xclient import Attributes
from mta.wire.text import printable


def client_of(upstream: PeerInfo, said: Attributes) -> PeerInfo:
    """The client that is named. What a command leaves out stays as it was: several add up."""
    return replace(
        upstream,
        host=upstream.host if said.host is None else said.host,
        port=upstream.port if said.port is None else said.port,
        name=upstream.name if said.name is None else said.name,
        via=upstream.ends,
    )


def tell(telemetry: Telemetry, upstream: PeerInfo, client: PeerInfo, said: Attributes) -> None:
    """One line of the log: an audit trail goes on under another name."""
    text = f"{upstream.association}: XCLIENT from {upstream.label}"
    text += f": client={client.label}:{client.port}"
    for key, value in (
        ("proto", said.protocol),
        ("helo", f"<{printable(said.helo)}>" if said.helo else ""),
        ("sasl_username", said.login),
        ("destination", said.destination_host),
        ("destination_port", said.destination_port),
    ):
        if value:
            text += f", {key}={value}"
    telemetry.notice("info", "smtpd", text)
