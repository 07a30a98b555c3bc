"""DKIM before Debian's opendkim: what arrives elsewhere verifies, and what was changed does not."""

from __future__ import annotations

import base64
import os
import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tests.rig.ground import UNPACKED, expect, peer_environment, run
from tests.rig.node import Rig
from tests.rig.peers import Client, Sink

HEADER = (
    "From: =?utf-8?q?M=C3=BCller?= <a@example.org>\r\nTo: b@example.com\r\nSubject: %s\r\n"
    " folded\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 8bit\r\n\r\n"
)
BODY = "Grüße  an alle \r\n%s a dot\r\n\t\r\n\r\nEnd\r\n\r\n\r\n"


def scenario_opendkim_verifies(rig: Rig) -> None:
    """By DATA, by BDAT and from a program of the node: both signatures pass, and fail once changed."""
    keys = generate_private_key(65537, 2048), Ed25519PrivateKey.generate()
    configuration, extra = _publish(rig, *keys)
    sink = Sink(rig).start()
    rig.online(extra=extra)
    client = Client(rig)
    client.hello()
    envelope = b"MAIL FROM:<a@example.org> BODY=8BITMIME", b"RCPT TO:<b@example.com>"
    for line in (*envelope, b"DATA"):
        client.say(line)
    client.socket.sendall((HEADER % "data" + BODY % "..").encode() + b".\r\n")
    said = [client.reply()]
    for line in envelope:
        client.say(line)
    content = (HEADER % "bdat" + BODY % ".").encode()
    client.socket.sendall(b"BDAT %d LAST\r\n%b" % (len(content), content))
    said.append(client.reply())
    expect(all(line.startswith(b"250") for line in said), f"we said {said}")
    client.close()
    rig.command("send", "--from", "a@example.org", "--to", "b@example.com", "--body", "short")
    sink.wait(3)
    for name in sorted(os.listdir(sink.directory)):
        path = os.path.join(sink.directory, name)
        with open(path, encoding="utf-8") as file:
            text = file.read().lstrip("\n")
        for change, result in (("", "pass"), ("End" if "End" in text else "short", "fail")):
            with open(path + ".eml", "w", encoding="utf-8") as file:
                file.write(text.replace(change, "Ende") if change else text)
            found = _verify(configuration, path + ".eml")
            expect(
                found == {"rsa-sha256": result, "ed25519-sha256": result},
                f"opendkim says {found} of {path}, {change!r} changed",
            )
    rig.note("3 messages, 6 signatures")


def _publish(rig: Rig, rsa: RSAPrivateKey, small: Ed25519PrivateKey) -> tuple[str, str]:
    """opendkim's configuration, with the records in a file; and our policy."""
    directory = os.path.join(rig.directory, "dkim")
    os.makedirs(directory)
    lines, domains = [], []
    for selector, key, kind in (("s1", rsa, "rsa"), ("s2", small, "ed25519")):
        path = os.path.join(directory, f"{selector}.pem")
        with open(path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        form = PublicFormat.SubjectPublicKeyInfo
        public = key.public_key().public_bytes(Encoding.DER, form)
        record = base64.b64encode(public if kind == "rsa" else public[-32:]).decode()
        lines.append(f"{selector}._domainkey.example.org v=DKIM1; k={kind}; p={record}\n")
        domains.append(f"      - {{domain: example.org, selector: {selector}, key-file: {path}}}")
    names, configuration = (os.path.join(directory, name) for name in ("dns", "opendkim.conf"))
    with open(names, "w", encoding="ascii") as file:
        file.writelines(lines)
    with open(configuration, "w", encoding="ascii") as file:
        file.write(f"Mode v\nSyslog no\nTestDNSData {names}\n")
    policy = "\n".join(["policies:", "  - policy: dkim", "    domains:", *domains])
    return configuration, policy


def _verify(configuration: str, path: str) -> dict[str, str]:
    """Each signature's algorithm, and what opendkim says of it; it asks nobody."""
    libraries = peer_environment()["LD_LIBRARY_PATH"] + ":" + os.path.join(UNPACKED, "usr/lib")
    program = os.path.join(UNPACKED, "usr/sbin/opendkim")
    done = run(
        ["env", f"LD_LIBRARY_PATH={libraries}", program, "-x", configuration, "-vvv", "-t", path]
    )
    results = re.findall(r"dkim=(\w+) [^;]*?header\.a=([\w-]+)", done.stdout)
    return {algorithm: result for result, algorithm in results}
