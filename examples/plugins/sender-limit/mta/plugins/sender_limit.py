"""One sender reaches so many recipients in an hour; the others are asked to come again later."""

from collections import Counter

from pydantic import Field
from zope.interface import implementer

from mta.interfaces import IPolicy
from mta.model import Reply
from mta.plugins.factory import PluginFactory
from mta.settings import Count, Duration, Settings


class SenderLimitSettings(Settings):
    recipients: Count = Field(default=500, description="Recipients that one sender may reach.")
    window: Duration = Field(default=3600.0, description="In how long a time.")


@implementer(IPolicy)
class SenderLimit:
    hooks = frozenset({"rcpt"})

    def __init__(self, settings, surroundings):
        self._settings = settings
        self._monotonic = surroundings.clock.monotonic
        self._seen = Counter()
        self._ends = 0.0

    def on(self, hook, transaction):
        now, sender = self._monotonic(), transaction.sender.text.lower()
        if now >= self._ends:  # one window for all senders: nothing grows for longer than that
            self._seen.clear()
            self._ends = now + self._settings.window
        if not sender:
            return None  # reports come from the null sender and are never held up
        if self._seen[sender] >= self._settings.recipients:
            return Reply(452, "4.5.3", (b"You have written to many people; try again later",))
        self._seen[sender] += 1
        return None


sender_limit = PluginFactory("sender-limit", IPolicy, SenderLimitSettings, SenderLimit)
