"""The association that outcomes came over, as settling and the log need to know it.

Law: facts that were learnt when it was opened; one object serves all messages that it carries.
"""

from __future__ import annotations

from collections.abc import Mapping

from mta.interfaces import IAssociationKind, IClock, IDeliversBy, INotifies, ISender, ITenure
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


class Vias:
    """Of one dispatch. `clock` is the queue's: what is left of a message's time goes by it."""

    def __init__(
        self,
        tenure: ITenure,
        connectors: Mapping[str, tuple[Connector, IAssociationKind]],
        clock: IClock,
    ) -> None:
        self._connectors = connectors
        self._clock = clock
        self._vip = str(tenure.addresses[0].external)
        self._externals = {str(a.bind): str(a.external) for a in tenure.addresses}

    def of(self, hop: Hop, sender: ISender, connecting: float) -> Via:
        connector = self._connectors[hop.hop.connector][0]
        delivers_by = False
        if IDeliversBy.providedBy(sender):
            sender.keep_time(self._clock)
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
            vip=self._externals.get(sender.source, self._vip),
            notifies=INotifies.providedBy(sender) and sender.notifies,
            delivers_by=delivers_by,
        )
