"""A catcher of mail: takes everything, and tells who brought what, from where, and when.

    python -m mta.testing.catcher HOST:PORT

Law: a message counts as arrived when its final dot was read, whether or not the reply to it could
be given: whoever sent it may have to send it again, and that is what must be seen. It is the
foreign server of sink.py on real TCP. Events are told as load.py tells them.

| what | besides |
|---|---|
| connected | `source`: the far end's address, mail or not |
| caught | `id`: the Subject; `queue_id` of the topmost Received field; `source`, `helo` |
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
_QUEUE_ID = re.compile(rb"^Received:[^;]*?\bid ([0-9A-Za-z]+)", re.MULTILINE)


class Catcher(Sink):
    """Keeps nothing itself, so that it can run for hours."""

    def __init__(self, tell: Tell, name: bytes = b"catcher.example.net") -> None:
        super().__init__(name)
        self._tell = tell

    def came(self, source: str, port: int) -> None:
        self._tell("connected", source=source)

    def told(self, line: bytes) -> None:
        pass

    def took(self, sunk: Sunk) -> None:
        head = sunk.content.partition(b"\r\n\r\n")[0]
        self._tell(
            "caught",
            id=_found(_SUBJECT, head),
            queue_id=_found(_QUEUE_ID, head),
            source=sunk.source,
            helo=sunk.helo.decode("ascii", "replace"),
        )


def _found(pattern: re.Pattern[bytes], head: bytes) -> str:
    match = pattern.search(head)
    return match[1].strip().decode("ascii", "replace") if match else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("listen", help="HOST:PORT")
    given = parser.parse_args()
    host, _, port = given.listen.rpartition(":")
    out = os.fdopen(sys.stdout.fileno(), "w", buffering=1, encoding="ascii", closefd=False)
    network = RealNetwork()
    write: Callable[[str], object] = out.write
    network.serve(host.strip("[]"), int(port), Catcher(telling(write)).build)
    network.run(network.stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
