"""What a reception answers to what it refuses by itself, not for a policy or the store."""

from __future__ import annotations

from typing import Final

from mta.model import Reply

LOOP: Final = Reply(554, "5.4.6", (b"Too many hops, this message is in a loop",))
OVERTAKEN: Final = Reply(
    451, "4.5.0", (b"Another connection has brought this transaction since, try again later",)
)
COMPLETE: Final = Reply(
    554, "5.5.1", (b"That transaction is complete, nothing but the final dot may follow",)
)
BARE_SENDER: Final = Reply(553, "5.1.7", (b"Sender address needs a domain",))
