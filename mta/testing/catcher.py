"""A catcher of mail: takes everything, and tells who brought what, from where, and when.

    python -m mta.testing.catcher HOST:PORT [--by NAME]

Law: a message counts as arrived when its final dot was read, whether or not the reply to it could
be given: whoever sent it may have to send it again, and that is what must be seen. It is the
foreign server of sink.py on real TCP. Events are told as load.py tells them.

| what | besides |
|---|---|
| connected | `source`: the far end's address, mail or not |
| caught | `id`: the Subject; `queue_id` of the topmost Received field; `source`, `helo` |

With `--by` the `queue_id` is that of NAME's Received field, and `via` that of the topmost one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable

from mta.testing.load import Tell, telling
from mta.testing.real_network import RealNetwork
from mta.testing.sink import Sink, Sunk

_SUBJECT = re.compile(rb"^Subject: *([^\r\n]*)", re.MULTILINE | re.IGNORECASE)
_RECEIVED = re.compile(rb"^Received:[^;]*?\bby ([^ \r\n]+)[^;]*?\bid ([0-9A-Za-z]+)", re.MULTILINE)


class Catcher(Sink):
    """Keeps nothing itself, so that it can run for hours. `by` is whose queue ids are told."""

    def __init__(self, tell: Tell, name: bytes = b"catcher.example.net", by: bytes = b"") -> None:
        super().__init__(name)
        self._tell = tell
        self._by = by

    def came(self, source: str, port: int) -> None:
        self._tell("connected", source=source)

    def told(self, line: bytes) -> None:
        pass

    def took(self, sunk: Sunk) -> None:
        head = sunk.content.partition(b"\r\n\r\n")[0]
        subject = _SUBJECT.search(head)
        received = _RECEIVED.findall(head)
        mine = [queue_id for by, queue_id in received if by == self._by or not self._by]
        self._tell(
            "caught",
            id=_text(subject[1].strip()) if subject else "",
            queue_id=_text(mine[0]) if mine else "",
            source=sunk.source,
            helo=_text(sunk.helo),
            **({"via": _text(received[0][1])} if self._by and received else {}),
        )


def _text(octets: bytes) -> str:
    return octets.decode("ascii", "replace")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("listen", help="HOST:PORT")
    parser.add_argument("--by", default="", help="whose Received field names the message")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    out = os.fdopen(sys.stdout.fileno(), "w", buffering=1, encoding="ascii", closefd=False)
    network = RealNetwork()
    write: Callable[[str], object] = out.write
    network.serve(host.strip("[]"), int(port), Catcher(telling(write), by=given.by.encode()).build)
    network.run(network.stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
