"""Which named transactions (RFC 1845) are being received, so that no two bring the same message.

Law: of two associations that bring the same transaction the newer one may go on, for its client
has given the older one up; but not while the older one commits: that is waited for, and what came
of it decides. No state of a message lives here, nor what was completed: the spool knows that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from twisted.internet.defer import Deferred

Key = tuple[str, str]
"""The client's name in EHLO, in lower case, and its transaction's."""
Result = TypeVar("Result")


def key_of(helo: bytes, parameters: Mapping[bytes, bytes | None]) -> Key:
    """`helo` as the client said it; `parameters` of its MAIL, with TRANSID."""
    name = parameters[b"TRANSID"] or b""
    client = helo.lower().decode("ascii", "backslashreplace")
    return client, name.decode("ascii", "backslashreplace")


class Repeats:
    """One for all intakes of a process: a reload must not let a transaction pass twice."""

    def __init__(self) -> None:
        self._holders: dict[Key, object] = {}
        self._waiting: dict[Key, list[Deferred[None]]] = {}
        """The keys whose commit is under way, and who waits for its end."""

    def claim(self, key: Key, holder: object) -> Deferred[None] | None:
        """It is `holder` that receives it from now on. A Deferred: not yet; ask again when it has
        fired, and the spool before. Who cancels it waits no longer.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            self._holders[key] = holder
            return None
        ended: Deferred[None] = Deferred(waiting.remove)
        waiting.append(ended)
        return ended

    def may_commit(self, key: Key, holder: object) -> bool:
        """False: a newer association has brought it. True: `settled` must follow."""
        if self._holders.get(key) is not holder:
            return False
        self._waiting[key] = []
        return True

    def settled(self, result: Result, key: Key) -> Result:
        """The commit has ended, one way or the other: with `result`, which is handed on."""
        self._holders.pop(key, None)
        for ended in tuple(self._waiting.pop(key, ())):
            if not ended.called:
                ended.callback(None)
        return result

    def give_up(self, key: Key, holder: object) -> None:
        """Nothing came of it. Harmless when another holds it, or a commit is under way."""
        if key not in self._waiting and self._holders.get(key) is holder:
            del self._holders[key]
