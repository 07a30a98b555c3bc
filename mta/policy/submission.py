"""What a submission listener asks of its clients, beyond the relay rule.

Law: nobody hands in mail there who has not said who he is, unless relay-from knows him. With
`senders: login` a user writes under his own address alone; reports and notices, whose sender is
null, are everybody's.

RFC 6409 4.3 (530 before AUTH), 6.1 (whose address it is).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mta.model import Address, Reply
from mta.policy.relay import refusal

WHO: Final = Reply(530, "5.7.0", (b"Authentication required",))


@dataclass(frozen=True, slots=True)
class SubmissionRule:
    """Of one listener."""

    own_senders: bool = False
    """`senders: login`."""

    def decide(self, user: str, admitted: bool, sender: Address) -> Reply | None:
        """`user`: who the client is, "" for a client that relay-from admits."""
        if not admitted:
            return WHO
        if self.own_senders and user and sender.text and not is_own(user, sender):
            return refusal(553, "5.7.1", sender, b"Sender address is not that of your login")
        return None


def is_own(user: str, sender: Address) -> bool:
    """`alice@example.org` writes as that alone; `alice` as alice of any domain."""
    login = user.encode().lower()
    text = sender.text.lower()
    return text == login if b"@" in login else sender.local.lower() == login
