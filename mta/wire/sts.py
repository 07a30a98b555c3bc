"""MTA-STS: the record that announces a policy, the policy itself, and which servers it names.

Law: pure, and any octets end in a policy or in a reason why there is none. What the grammar does
not allow is no policy; what it allows and nobody knows is passed over. A field that may stand once
counts where it stands first.

RFC 8461 3.1 (record), 3.2 (policy), 4.1 (names of servers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mta.model import StsMode, StsPolicy

LARGEST_OCTETS = 64 * 1024
"""Of a policy (RFC 8461 3.3)."""
LONGEST_AGE = 31_557_600
"""Seconds: the most that a policy may say (RFC 8461 3.2)."""

_ANNOUNCES = re.compile(rb"v=STSv1[ \t]*;")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"
_RECORD_FIELD = re.compile(rb"(%s)=([!-:<>-~]+)" % _NAME.encode())
_ID = re.compile(rb"[A-Za-z0-9]{1,32}")
_POLICY_FIELD = re.compile(rf"({_NAME}):[ \t]*(.*)")
_VALUE = re.compile("[!-~\x80-\U0010ffff](?:[ -~\x80-\U0010ffff]*[!-~\x80-\U0010ffff])?")
_AGE = re.compile("[0-9]{1,10}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_MX = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_LONGEST_NAME = 255


def record_name(domain: str) -> str:
    """Where the TXT record of a domain is."""
    return f"_mta-sts.{domain}"


def policy_host(domain: str) -> str:
    """Who has the policy of a domain, and whom its certificate has to be for."""
    return f"mta-sts.{domain}"


def announced(records: Iterable[bytes]) -> str:
    """The id of the policy that TXT records announce; "": none, more than one, or a wrong one."""
    ours = [record for record in records if _ANNOUNCES.match(record)]
    if len(ours) != 1:
        return ""
    fields = [field.strip(b" \t") for field in ours[0].split(b";")][1:]
    if fields and not fields[-1]:
        fields.pop()  # a final ; says nothing
    found = ""
    for field in fields:
        parts = _RECORD_FIELD.fullmatch(field)
        if parts is None:
            return ""
        if parts[1] == b"id" and not found:
            if not _ID.fullmatch(parts[2]):
                return ""
            found = parts[2].decode("ascii")
    return found


def parse_policy(octets: bytes) -> StsPolicy:
    """@raise ValueError: what is wrong with it, in words."""
    if len(octets) > LARGEST_OCTETS:
        raise ValueError(f"it has more than {LARGEST_OCTETS} octets")
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    fields: dict[str, str] = {}
    exchangers: list[str] = []
    for each in text.split("\n"):
        line = each.removesuffix("\r").rstrip(" \t")
        if not line:
            continue  # the grammar has no empty lines, but many policies end with one
        parts = _POLICY_FIELD.fullmatch(line)
        if parts is None or not _VALUE.fullmatch(parts[2]):
            raise ValueError("a line of it is no field")
        if parts[1] == "mx":
            exchangers.append(_mx(parts[2]))
        else:
            fields.setdefault(parts[1], parts[2])
    if fields.get("version") != "STSv1":
        raise ValueError("its version is not STSv1")
    try:
        mode = StsMode(fields.get("mode", ""))
    except ValueError:
        raise ValueError("its mode is none of enforce, testing, none") from None
    age = fields.get("max_age", "")
    if not _AGE.fullmatch(age) or int(age) > LONGEST_AGE:
        raise ValueError(f"its max_age is no number up to {LONGEST_AGE}")
    if mode is not StsMode.NONE and not exchangers:
        raise ValueError("it names no mx")
    return StsPolicy(mode, tuple(dict.fromkeys(exchangers)), int(age))


def _mx(value: str) -> str:
    if len(value) > _LONGEST_NAME or not _MX.fullmatch(value):
        raise ValueError("an mx of it is no name of a host")
    return value.lower()


def names(policy: StsPolicy, host: str) -> bool:
    """The policy names this mail exchanger. `*.` stands for exactly one label."""
    host = host.rstrip(".").lower()
    first, _, above = host.partition(".")
    return host in policy.mx or (bool(first and above) and f"*.{above}" in policy.mx)


def is_plain_text(content_type: str) -> bool:
    """Of an HTTP field Content-Type; its parameters say nothing (RFC 8461 3.2)."""
    return content_type.partition(";")[0].strip(" \t").lower() == "text/plain"
