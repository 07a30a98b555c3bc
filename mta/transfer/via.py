"""The association that outcomes came over, as settling and the log need to know it.

Law: facts that were learnt when it was opened; one object serves all messages that it carries.
"""

from __future__ import annotations

from mta.interfaces import IClock, IDeliversBy, INotifies, ISender
from mta.model import Connector, InDoubt
from mta.transfer.hops import Hop
from mta.transfer.settle import HandedOn


class Via:
    """The association that outcomes came over, or what stands in its place."""

    __slots__ = (
        "connecting",
        "connector",
        "handed_on",
        "hold_unknown",
        "kind",
        "peer",
        "relay",
        "slot",
        "source",
        "success",
        "vip",
    )

    def __init__(
        self,
        connector: str,
        kind: str,
        *,
        relay: str = "none",
        source: str = "",
        slot: str = "",
        peer: str = "",
        connecting: float = 0.0,
        hold_unknown: bool = False,
        vip: str = "",
        notifies: bool = False,
        delivers_by: bool = False,
    ) -> None:
        self.connector = connector
        self.kind = kind
        self.relay = relay
        self.source = source
        self.slot = slot
        self.peer = peer
        self.connecting = connecting
        """Seconds that opening it took; 0 from its second message on."""
        self.hold_unknown = hold_unknown
        self.vip = vip
        """The virtual server's address as peers see it; `source` is what was bound."""
        self.success = "relayed" if kind == "smtp" else "delivered"
        """Which report a sender gets who asked for one: SMTP only hands the message on. "": none of
        ours, the far end knows the wish and sends it."""
        if notifies:
            self.success = ""
        self.handed_on = HandedOn.NO
        """SMTP hands a message on; to somebody who keeps to its time, or not (RFC 2852)."""
        if kind == "smtp":
            self.handed_on = HandedOn.IN_TIME if delivers_by else HandedOn.UNTIMED


def via_of(
    connector: Connector, hop: Hop, sender: ISender, connecting: float, *, vip: str, clock: IClock
) -> Via:
    """`clock` is the queue's: what is left of a message's time is counted by it."""
    delivers_by = False
    if IDeliversBy.providedBy(sender):
        sender.keep_time(clock)
        delivers_by = sender.delivers_by
    return Via(
        connector.name,
        hop.kind.name,
        relay=sender.relay,
        source=sender.source,
        slot=sender.slot,
        peer=hop.peer,
        connecting=connecting,
        hold_unknown=connector.in_doubt is InDoubt.HOLD,
        vip=vip,
        notifies=INotifies.providedBy(sender) and sender.notifies,
        delivers_by=delivers_by,
    )
