"""Whether a filter answers: what is said when it ceases to, and what clients hear meanwhile.

Law: one line when it begins, with the reason and what becomes of mail, and one when it is over.
"""

from __future__ import annotations

from typing import Final

from mta.model import Reply
from mta.telemetry import Telemetry

REPLIES: Final = {
    "tempfail": Reply(451, "4.7.1", (b"Service unavailable, try again later",)),
    "reject": Reply(550, "5.7.1", (b"Service unavailable",)),
    "accept": None,
}
_MEANWHILE: Final = {
    "tempfail": "mail is answered 451",
    "reject": "mail is refused with 550",
    "accept": "mail passes unfiltered",
}


class Outage:
    """Of one filter, which all associations share. `reply` is what a message gets that it did not
    answer.
    """

    def __init__(self, where: str, on_failure: str, telemetry: Telemetry) -> None:
        self.reply = REPLIES[on_failure]
        self._where = where
        self._meanwhile = _MEANWHILE[on_failure]
        self._telemetry = telemetry
        self._lasts = False
        self._is_warned = False
        self._failures = telemetry.counter(
            "mta_filter_failures_total",
            "Times that a mail filter was away, silent, or answered wrongly.",
            filter=where,
        )

    def failed(self, reason: str, queue_id: str) -> None:
        self._failures.inc()
        if not self._lasts:
            self._lasts = True
            text = f"filter {self._where}: {reason}; until it answers, {self._meanwhile}"
            self._telemetry.notice("warning", "milter", text, queue_id)

    def worked(self) -> None:
        """It has decided about a message."""
        if self._lasts:
            self._lasts = False
            self._telemetry.notice("info", "milter", f"filter {self._where} answers again")

    def warn(self, beyond: str) -> None:
        """It speaks of changes that it was not granted: said once, not for each association."""
        if beyond and not self._is_warned:
            self._is_warned = True
            text = (
                f"filter {self._where} may want {beyond}, which is not granted; where it does,"
                f" {self._meanwhile}: configure the filter to do without"
            )
            self._telemetry.notice("info", "milter", text)
