"""Content in chunks and content that is converted, between us and what Debian ships."""

from __future__ import annotations

import email
import os
import re
from email.message import Message

from tests.rig.ground import PEER, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink
from tests.rig.postfix import Postfix

OCTETS = b".\r\n.\n\0\r\xff\r\n.\r\nQUIT\r\n" * 2000
TEXT = "Grüße\r\n.\r\n..\r\nQUIT\r\n".encode()
WRITTEN = TEXT.replace(b"\r\n", b"\n").rstrip()
"""As smtp-sink writes it, but for the line ends behind it."""
MIME = b"MIME-Version: 1.0\r\nContent-Type: %b\r\nContent-Transfer-Encoding: %b\r\n\r\n"


def scenario_bdat_to_postfix(rig: Rig) -> None:
    """Postfix takes BDAT from us where a content is opaque, and binary bodies as base64."""
    sink = Sink(rig, port=2626).start()
    Postfix(
        rig,
        f"{PEER}:25",
        myhostname="postfix.example.net",
        inet_interfaces=PEER,
        inet_protocols="ipv4",
        mynetworks="10.9.0.0/24",
        relayhost=f"[{PEER}]:2626",
        smtpd_tls_security_level="none",
        smtp_tls_security_level="none",
    ).start()
    rig.online()
    text = MIME % (b"text/plain; charset=utf-8", b"8bit") + TEXT
    binary = MIME % (b"application/octet-stream", b"binary") + OCTETS
    client = _client(rig)
    said = [
        _bdat(client, "text", text, b"8BITMIME"),
        _bdat(client, "binary", binary, b"BINARYMIME"),
        # In one piece: two messages, the second behind the last chunk of the first.
        _bdat(client, "one", text, b"8BITMIME", wait=False),
        _bdat(client, "two", text, b"8BITMIME", wait=False),
    ]
    for _ in range(2 * 4):
        said.append(client.reply())
    client.close()
    expect(all(line[:3] in (b"250", b"") for line in said), f"refused: {said}")
    sink.wait(4)
    arrived = {message["Subject"]: message for message in _messages(sink)}
    for name in ("text", "one", "two"):
        body = arrived[name].get_payload(decode=True)
        expect(body.rstrip() == WRITTEN, f"{name} arrived as {body!r}")
    expect(arrived["binary"]["Content-Transfer-Encoding"] == "base64", "binary is not base64")
    expect(arrived["binary"].get_payload(decode=True) == OCTETS, "the octets are others")
    # Postfix says so of what came by BDAT, and "queued as" alone of what came by DATA.
    wait_until(
        lambda: len(re.findall(r"Ok: \d+ bytes queued as", rig.log())) == 3, 10,
        "Postfix did not take 3 messages by BDAT",
    )  # fmt: skip
    expect("Ok: queued as" in rig.log(), "what was converted did not go by DATA")
    rig.note("3 messages by BDAT, 1 converted and by DATA")


def scenario_without_8bitmime(rig: Rig) -> None:
    """A server without 8BITMIME gets ASCII that decodes to what was sent; what is signed comes back."""
    sink = Sink(rig).start("-8")
    rig.online()
    client = _client(rig)
    text = MIME % (b"text/plain; charset=utf-8", b"8bit") + TEXT
    large = MIME % (b"application/octet-stream", b"binary") + OCTETS * 20
    signed = (
        b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n"
        + TEXT
        + b"--b--\r\n"
    )
    for name, content, body in (
        ("text", text, b"8BITMIME"),
        ("large", large, b"BINARYMIME"),
        ("signed", signed, b"8BITMIME"),
    ):
        said = _bdat(client, name, content, body)
        expect(said.startswith(b"250"), f"{name} was answered {said!r}")
    client.close()
    sink.wait(3)
    arrived = {message["Subject"]: message for message in _messages(sink)}
    for name in arrived:
        expect(arrived[name].as_bytes().isascii(), f"{name} has octets above 127")
    body = arrived["text"].get_payload(decode=True)
    expect(body.rstrip() == WRITTEN, f"the text arrived as {body!r}")
    expect(arrived["large"].get_payload(decode=True) == OCTETS * 20, "the octets are others")
    expect("signed" not in arrived, "what was signed was changed")
    report = next(m for m in arrived.values() if m.get_content_type() == "multipart/report")
    expect("Status: 5.6.3" in str(report), "the report does not say 5.6.3")


def _client(rig: Rig) -> Client:
    client = Client(rig)
    client.reply()
    offered = client.say(b"EHLO client.example.net")
    for word in (b"CHUNKING", b"BINARYMIME", b"8BITMIME"):
        expect(word in offered, f"{word.decode()} is not offered")
    return client


def _bdat(client: Client, name: str, content: bytes, body: bytes, *, wait: bool = True) -> bytes:
    """One message in two chunks, all in one piece; the last reply."""
    content = f"Subject: {name}\r\n".encode() + content
    half = len(content) // 2
    client.socket.sendall(
        b"MAIL FROM:<sender@example.net> BODY=%b\r\n"
        b"RCPT TO:<user@example.com>\r\n"
        b"BDAT %d\r\n%bBDAT %d LAST\r\n%b"
        % (body, half, content[:half], len(content) - half, content[half:])
    )
    said = b""
    for _ in range(4 if wait else 0):
        said = client.reply()
    return said


def _messages(sink: Sink) -> list[Message]:
    """What smtp-sink wrote, as octets; its own lines are header fields."""
    found = []
    for name in sorted(os.listdir(sink.directory)):
        with open(os.path.join(sink.directory, name), "rb") as file:
            found.append(email.message_from_bytes(file.read().lstrip()))
    return found
