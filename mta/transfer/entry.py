"""One inbound association in the spool's journal: whom a new owner resets, and who may have missed
the last reply.

Law: it is open from the first reply until its far end is known to have gone; what the tenure's end
closed stays open. It has the socket's ends, not the client's: behind a balancer a new owner would
reset a stranger. spool.md section 6.
"""

from __future__ import annotations

from mta.errors import SpoolError
from mta.interfaces import ITenure
from mta.model import PeerInfo
from mta.transfer.desk import Desk


class Entry:
    """Not synced: it rides on what is written next, or on a heartbeat."""

    __slots__ = ("_desk", "_peer", "_tenure", "is_written")

    def __init__(self, desk: Desk, tenure: ITenure, peer: PeerInfo) -> None:
        self._desk = desk
        self._tenure = tenure
        self._peer = peer
        self.is_written = False

    def write(self) -> None:
        """It is open, and nothing that was accepted on it so far waits for its client to read."""
        self.is_written = True
        self._desk.spool.open_association(self._peer.association, self._peer.ends, True)

    def end(self, stage: str) -> None:
        """It is over; in order where `stage` is ""."""
        if not self.is_written:
            return
        desk, name = self._desk, self._peer.association
        try:
            if self._tenure.is_live:
                desk.spool.close_association(name)
                if not stage:
                    # It has recorded what became of its last transaction before it says QUIT.
                    desk.spool.forget_last(name)
            elif desk.associations is not None:
                # What the tenure's end closed stays open in the journal: its reset may never
                # have reached the peer (the address or the link was gone), and its last reply
                # neither.
                desk.associations.leave_association(name)
        except SpoolError:
            pass  # lost with the epoch: its successor takes it for open, which is the truth
