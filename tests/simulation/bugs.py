"""Known bugs, to be put into the product for a while: a simulation that does not find them is none.

Law: each is one of the wrong halves of the law's pairs (spool.md, The one rule), made by exchanging
lines of the real code. A line that is no longer there is an error and not a bug that was not found.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mta.spool import recovery
from mta.spool.committer import Committer, Unit
from mta.spool.journal import Entry
from mta.spool.log import LogSpool
from mta.spool.records import DONE
from mta.spool.recovery import Recovered
from mta.spool.segment import path_of, read_header


@dataclass(frozen=True)
class Bug:
    """In the function `name` of `place`, `right` becomes `wrong`."""

    what: str
    place: Any
    name: str
    right: str
    wrong: str


class NotThere(AssertionError):
    """The code has changed: the bug must be put in another way."""


BUGS = {
    "skip-a-re-read": Bug(
        "a commit is acknowledged without a look at the epoch",
        Committer,
        "_commit",
        "if not self._own.is_current():",
        "if False:",
    ),
    "act-before-own-checkpoint": Bug(
        "a taker goes online while its checkpoint is still being written",
        LogSpool,
        "seal",
        'return self._blocking(write, f"ckpt/{own.epoch}.0 cannot be written").addCallback(sealed)',
        'self._blocking(write, "later").addErrback(lambda _: None); sealed(1 << 12);'
        " return succeed(None)",
    ),
    "read-an-older-log-again": Bug(
        "a taker reads every log that lies there, not only its predecessor's",
        recovery,
        "recover",
        "_follow(directory, made, sync)",
        "_follow(directory, made, sync); read_every_log(directory, made)",
    ),
    "destroy-before-the-re-read": Bug(
        "what a batch makes dead is destroyed before the look at the epoch",
        Committer,
        "_commit",
        "if not self._own.is_current():",
        "if destroy_dead(self._directory, units) or not self._own.is_current():",
    ),
}


def read_every_log(directory: Any, made: Recovered) -> None:
    replay = recovery.Replay(made.ledger)
    for epoch, number in sorted(recovery._segment_names(directory)):
        if epoch < made.predecessor:
            fd = directory.disk.open(path_of(directory, epoch, number), 0)
            segment = read_header(directory.disk, fd, epoch, number)
            if segment is not None:
                link = recovery._Link(segment, fd, segment.size, True)
                recovery._read_link(directory, made, replay, link)
            directory.disk.close(fd)


def destroy_dead(directory: Any, units: list[Unit]) -> None:
    for unit in units:
        entry = getattr(unit.apply, "__self__", None)
        if not isinstance(entry, Entry):
            continue
        ledger = entry._owned.ledger
        for kind, name, *_ in unit.records:
            big = ledger.bigs.get(ledger.index.find(name.decode())) if kind == DONE else None
            if big is not None:
                directory.disk.unlink(directory.join("big", big.name))


@contextmanager
def put_in(bug: Bug) -> Iterator[None]:
    """While it lasts the product has this bug. @raise NotThere."""
    function = getattr(bug.place, bug.name, None)
    if function is None:
        raise NotThere(f"{bug.place.__name__}.{bug.name} is gone")
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(bug.right) != 1:
        raise NotThere(f"{bug.place.__name__}.{bug.name} has no single {bug.right!r}")
    module = sys.modules[function.__module__]
    names = {**vars(module), "read_every_log": read_every_log, "destroy_dead": destroy_dead}
    exec(compile(source.replace(bug.right, bug.wrong), f"<{bug.what}>", "exec"), names)
    # Who has imported the function by its name has it from elsewhere: there too.
    places = [bug.place]
    if inspect.ismodule(bug.place):
        places += [m for m in list(sys.modules.values()) if vars(m).get(bug.name) is function]
    for place in places:
        setattr(place, bug.name, names[bug.name])
    try:
        yield
    finally:
        for place in places:
            setattr(place, bug.name, function)
