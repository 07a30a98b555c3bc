"""The built-in policy `dkim`: our domains' mail leaves with a signature.

Law: nothing is signed for a client that may not relay, and only for the domain of the one address
in From. What cannot be signed goes on as it is, with one line that says why; nobody is refused
here. What is signed is what is stored: the fields that stand before the content too, as far as they
are there when this policy is asked. So it stands behind all that change content (ISigner).

RFC 6376 (5.1: who may be signed for, 5.3: only text has lines), RFC 8463, RFC 8301.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic import Field, field_validator
from zope.interface import implementer

from mta.interfaces import ISigner, IStoredForm, ISurroundings, ITransaction
from mta.model import ContentForm
from mta.policy.dkim_keys import Keyring, SigningSettings
from mta.settings import Settings
from mta.wire.dkim import BodyHash, draft, parse_fields
from mta.wire.mime.author import author_domain
from mta.wire.mime.texts import TextScan
from mta.wire.smtp.content import unstuffed

_NOTE: Final = "dkim"
_NOBODY: Final = "it has no From field"


class DkimSettings(Settings):
    """The keys of a `dkim` policy."""

    domains: tuple[SigningSettings, ...] = Field(
        min_length=1,
        description="Whose messages are signed, a block for each key: {domain: example.org,"
        " selector: s1, key-file: /etc/mta/dkim/s1.pem, subdomains: false}. Keys are PEM, RSA from"
        " 2048 bits on or Ed25519; the files are read again when they change.",
    )

    @field_validator("domains")
    @classmethod
    def _once(cls, domains: tuple[SigningSettings, ...]) -> tuple[SigningSettings, ...]:
        names = [f"{one.selector}._domainkey.{one.domain}" for one in domains]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} is given twice: each key has a selector of its own")
        return domains


@dataclass(slots=True)
class _Message:
    """One that is to be signed, so far. `text` is kept of content that came as it is."""

    keys: tuple[SigningSettings, ...]
    body: BodyHash
    text: TextScan | None = None


@implementer(ISigner)
class Dkim:
    """Asked about every message; costs one that is not signed three calls and its From field."""

    name = "dkim"
    hooks = frozenset({"headers", "body", "end"})

    def __init__(self, settings: DkimSettings, surroundings: ISurroundings) -> None:
        self._clock = surroundings.clock
        self._telemetry = surroundings.telemetry
        self._keyring = Keyring(settings.domains, surroundings.clock, surroundings.telemetry)
        self._signed = surroundings.telemetry.counter(
            "mta_dkim_signed_total", "Messages that got a DKIM signature of ours."
        )

    def on(self, hook: str, transaction: ITransaction) -> None:
        if not transaction.admitted:
            return
        if hook == "headers":
            self._begin(transaction)
            return
        message = transaction.notes.get(_NOTE)
        if message is None:
            return
        if hook == "body":
            message.body.take(transaction.chunk)
            if message.text is not None:
                message.text.feed(transaction.chunk)
        else:
            self._sign(transaction, message)

    def _begin(self, transaction: ITransaction) -> None:
        """Is it one of ours? Then its body is hashed as it comes."""
        transaction.notes.pop(_NOTE, None)
        form = IStoredForm(transaction)
        is_stuffed = form.content_form is ContentForm.DOT_STUFFED
        try:
            if not form.header_is_whole:
                raise ValueError("its header is longer than header-limit")
            header = unstuffed(transaction.headers) if is_stuffed else transaction.headers
            authors = [f.value for f in parse_fields(header) if f.name == b"from"]
            if len(authors) != 1:
                raise ValueError(f"it has {len(authors)} From fields" if authors else _NOBODY)
            keys = self._keyring.find(author_domain(authors[0]))
            if not keys:
                return
            if (transaction.parameters.get(b"BODY") or b"").upper() == b"BINARYMIME":
                raise ValueError("it is BINARYMIME, and only lines can be signed")
        except ValueError as reason:
            self._unsigned(transaction, str(reason))
            return
        message = _Message(keys, BodyHash(is_stuffed))
        if not is_stuffed:
            message.text = TextScan()
            message.text.feed(transaction.headers + b"\r\n")
        transaction.notes[_NOTE] = message

    def _sign(self, transaction: ITransaction, message: _Message) -> None:
        form = IStoredForm(transaction)
        if message.text is not None:
            message.text.finish()
            if not message.text.is_text:
                self._unsigned(transaction, "it is no text, and only lines can be signed")
                return
        header = transaction.headers
        if form.content_form is ContentForm.DOT_STUFFED:
            header = unstuffed(header)
        try:
            fields = parse_fields(form.stands_before + header)
        except ValueError as reason:
            self._unsigned(transaction, str(reason))
            return
        body_hash, moment = message.body.finish(), int(self._clock.wall())
        for settings in message.keys:
            key = self._keyring.key(settings)
            unfinished = draft(
                algorithm=key.algorithm,
                domain=settings.domain.encode(),
                selector=settings.selector.encode(),
                moment=moment,
                fields=fields,
                body_hash=body_hash,
            )
            signature = key.sign(unfinished.signed)
            transaction.add_header(b"DKIM-Signature", unfinished.finished(signature))
        self._signed.inc()

    def _unsigned(self, transaction: ITransaction, reason: str) -> None:
        transaction.notes.pop(_NOTE, None)
        self._telemetry.notice("info", "dkim", f"not signed: {reason}", transaction.queue_id)
