"""The role of one VRRP instance: its newest word, and whether who said it still lives. Pure.

Law: a role holds only while the very process that said it lives and runs; without a word, or with
one whose speaker is gone, there is no role, and why is said. Words come by the FIFO, and where it
says nothing (it speaks only on a change) from records of the same living processes: the newest
wins.
"""

from __future__ import annotations

from collections.abc import Sequence

from mta.cluster.processes import Family
from mta.cluster.vrrp import Notification, Record, Role

SETTLE_SECONDS = 2.0
"""What the notify script said for longer than this, and the FIFO did not, it will not say."""

_NOTHING_SAID = (
    "the role is not known: the FIFO has said nothing since keepalived or this process started, "
    "and no record holds what this keepalived said before"
)


class SpokenRole:
    """`why_not` is "" exactly while a living, running keepalived has said MASTER last."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.boot_id = ""
        self._silence = "it was not looked at yet"
        self._family: Family | str = "it was not looked for yet"
        self._word: Notification | None = None
        self._by: Family | None = None
        self._at = 0.0
        self._doubt = _NOTHING_SAID
        self.complaint = ""
        """Something is set up wrongly, though a role is known; "" for nothing."""

    # --- what is known --------------------------------------------------------------------------

    @property
    def why_not(self) -> str:
        """Why this node is not MASTER."""
        return self.fault or (
            "" if self.role is Role.MASTER else f"keepalived says {self.role.value}, not MASTER"
        )

    @property
    def fault(self) -> str:
        """Why no role is known at all; "" when one is, whichever."""
        if self._silence:
            return f"keepalived is not heard: {self._silence}"
        if isinstance(self._family, str):
            return f"keepalived is not seen: {self._family}"
        if self._family.stopped:
            return f"keepalived is stopped (process {self._family.stopped[0]})"
        if self._word is None:
            return self._doubt
        if self._word.role is Role.UNKNOWN:
            return f"keepalived says a word about {self.instance} that is not known here"
        return ""

    @property
    def role(self) -> Role:
        return Role.UNKNOWN if self._word is None or self.fault else self._word.role

    @property
    def is_gone(self) -> bool:
        """Nobody is there who would take the addresses away: keepalived is dead, or stopped."""
        family = self._family
        return bool(self._silence) or isinstance(family, str) or bool(family.stopped)

    @property
    def record(self) -> Record | None:
        """The newest word, to be kept for a restart; None without one, or without its speaker."""
        if self._word is None or self._by is None:
            return None
        by = self._by
        return Record(self._word, self._at, self.boot_id, by.keepalived, by.children)

    # --- what happens ---------------------------------------------------------------------------

    def silent(self, why: str) -> None:
        """The FIFO has no writer: whatever was said, its speaker is gone."""
        self._silence = why
        self._forget(_NOTHING_SAID)

    def heard(
        self, words: Sequence[Notification], family: Family | str, now: float
    ) -> Notification | None:
        """Words of the FIFO, which has a writer: the last one about our instance is the role. A
        word that took the role of MASTER away is answered, also when a later one gave it back.
        """
        self._silence = ""
        self._family = family
        ours = [w for w in words if w.name == self.instance and not w.is_group]
        if not ours:
            return None
        was_master = self.why_not == ""
        self._word, self._at = ours[-1], now
        self._by = family if isinstance(family, Family) else None
        self.complaint = ""
        return next((w for w in ours if was_master and w.role is not Role.MASTER), None)

    def overflowed(self) -> None:
        """The FIFO was full when it was read: keepalived's newest words may have been dropped."""
        self._forget(
            "the role is not known: the FIFO was full, so that keepalived's last word is lost"
        )

    def looked(self, family: Family | str, records: Sequence[Record], now: float) -> None:
        """What is seen of keepalived's processes now, and what was written down of its words."""
        self._family = family
        if isinstance(family, str):
            return
        if self._word is not None:
            if self._by is None:
                self._by = family  # the FIFO had a writer ever since: it is who spoke
            elif not _lives(self._by, family):
                self._forget("the role is not known: the keepalived that spoke has ended")
        living = [record for record in records if self._is_of(record, family)]
        if not living:
            return
        newest = max(living, key=lambda one: one.at)
        said = newest.notification
        if self._word is not None:
            is_news = newest.at > self._at and said.role is not self._word.role
            if not is_news or now - newest.at < SETTLE_SECONDS:
                return
            self.complaint = (
                f"the notify script has heard {said.role.value} and the FIFO has not: does another "
                "program read it?"
            )
        self._word, self._at = said, newest.at
        self._by = Family(newest.keepalived, newest.children)

    def _is_of(self, record: Record, family: Family) -> bool:
        """It is about our instance, and was said by processes that live."""
        said = record.notification
        is_ours = said.name == self.instance and not said.is_group
        speakers = Family(record.keepalived, record.children)
        return is_ours and record.boot_id == self.boot_id and _lives(speakers, family)

    def _forget(self, why: str) -> None:
        self._word = self._by = None
        self._doubt = why


def _lives(speakers: Family, family: Family) -> bool:
    """Keepalived and each of those children are still the same lives."""
    if speakers.keepalived != family.keepalived or not speakers.children:
        return False
    return speakers.children <= family.children
