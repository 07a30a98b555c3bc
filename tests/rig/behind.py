"""A bridgehead of our own kind behind the pair: it takes their mail and gives it to the catcher.

Law: it is the product, with a spool of its own, and is killed like any other. Whatever it does
twice by itself is not counted against the pair (`Catch.via`).
"""

from __future__ import annotations

import os

from tests.rig.ground import PEER, PEER6, VIRTUAL, VIRTUAL6, Ground, expect, wait_until
from tests.rig.node import Mta

NAME = "behind.example.org"
LAST_HOP = (PEER, NAME)
"""What the catcher sees."""


def connector(checkpoint: bool) -> str:
    """The pair's, towards it."""
    return f"""
    - name: hub
      kind: smtp
      checkpoint: {str(checkpoint).lower()}
      bridgeheads: ["{PEER}:25"]
      concurrency: 20
      address-spaces: [{{domain: "*", cost: 10}}]
    """


class Behind(Mta):
    """Standalone, in the peer's namespace; offers CHECKPOINT to the virtual addresses."""

    def __init__(self, ground: Ground) -> None:
        directory = os.path.join(ground.directory, "behind")
        os.makedirs(directory)
        super().__init__(ground, "peer", directory, "behind")
        self.log_prefix = "behind-"
        self.control, self.submit = "/run/behind.control", "/run/behind.submit"

    def online(self) -> None:
        self.configure(
            name=NAME,
            addresses=f'[{PEER}, "{PEER6}"]',
            resource="standalone",
            cluster="grace: 1s",
            listener=f'checkpoint-from: [{VIRTUAL}/32, "{VIRTUAL6}/128"]',
            connectors=f"""
            - name: catcher
              kind: smtp
              bridgeheads: ["{PEER}:2525"]
              concurrency: 20
              address-spaces: [{{domain: "*", cost: 10}}]
            """,
            queue="lifetime: 1h\nbackoff: [1s]\ndestination-retry: 1s",
            spool=os.path.join(self.home, "spool"),
            store="reserve: 32MiB\nsegment-size: 8MiB\ninitialise: true",
        )
        self.start()

    def start(self) -> None:
        self.start_mta(wait=False)
        wait_until(
            lambda: self.greeting(PEER).startswith(b"220"), 20, "the bridgehead behind is silent"
        )

    def kill(self) -> None:
        """kill -9, and up again on the same spool: a takeover from its former self."""
        self.process().kill()
        self.start()

    def repeats(self) -> int:
        """Transactions that it did not take twice, by its log."""
        return self.log().count("taken before as ")

    def check_order(self) -> None:
        super().check_order()
        expect(self.process().is_running, "the bridgehead behind has ended")
