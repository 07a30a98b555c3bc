"""Accepts messages: gives every inbound association its reception, whatever its kind.

Law: a message passes the relay rule, the policies and the loop check, in this order, and then
becomes ours in `mta.transfer.acceptance` or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zope.interface import implementer

from mta.interfaces import (
    IAuthenticator,
    IClock,
    IPolicy,
    IReceptionHost,
    IRouting,
    ISpool,
    ITenure,
)
from mta.model import Address, PeerInfo, VirtualServer
from mta.policy.certificates import CertificateRule
from mta.policy.new_body import Bounds
from mta.policy.priority import PriorityRule
from mta.policy.relay import Network, is_admitted
from mta.policy.submission import SubmissionRule
from mta.policy.transaction import Association
from mta.telemetry import Telemetry
from mta.transfer.certified import CertifiedReception
from mta.transfer.desk import Desk
from mta.transfer.reception import Reception
from mta.transfer.repeats import Repeats
from mta.transfer.reservation import Queue
from mta.transfer.settings import IntakeSettings

__all__ = ["Intake", "IntakeSettings"]


@implementer(IReceptionHost)
class Intake:
    """One for a tenure or for a process; `stop` when it will not be used again.

    `admit` maps a listener's name to its `relay-from` networks; a listener that is not in it
    admits nobody. `submission` has the rules of those listeners where mail is handed in, `bounds`
    what a message of each may be, `certificates` the rules of those that ask clients for theirs,
    `priorities` of those that take any. `queue` is told of each message that becomes ours, before
    its commit and after its reply. Intakes that follow one another in one process share `repeats`.
    """

    def __init__(  # noqa: PLR0917 - one argument a collaborator
        self,
        spool: ISpool,
        routing: IRouting,
        policies: Sequence[IPolicy],
        queue: Queue,
        clock: IClock,
        telemetry: Telemetry,
        settings: IntakeSettings,
        postmaster: Address,
        server: VirtualServer,
        repeats: Repeats | None = None,
        authenticator: IAuthenticator | None = None,
    ) -> None:
        self.admit: Mapping[str, tuple[Network, ...]] = {}
        self.submission: Mapping[str, SubmissionRule] = {}
        self.certificates: Mapping[str, CertificateRule] = {}
        self.priorities: Mapping[str, PriorityRule] = {}
        self._desk = Desk(
            spool,
            routing,
            policies,
            queue,
            clock,
            telemetry,
            settings,
            postmaster,
            server,
            repeats or Repeats(),
            authenticator,
        )

    @property
    def bounds(self) -> Mapping[str, Bounds]:
        return self._desk.bounds

    @bounds.setter
    def bounds(self, bounds: Mapping[str, Bounds]) -> None:
        self._desk.bounds = bounds

    def reception(self, tenure: ITenure, peer: PeerInfo) -> Reception:
        """Its methods may raise Fenced or TenureRevoked: abort the association, say nothing."""
        asks = self.certificates.get(peer.listener)
        if asks is not None:
            return CertifiedReception(self._desk, tenure, peer, self._associate, asks)
        return Reception(self._desk, tenure, peer, self._associate)

    def _associate(self, peer: PeerInfo) -> Association:
        admitted = is_admitted(peer, self.admit.get(peer.listener, ()))
        vip = self._desk.external.get(peer.local_host, peer.local_host)
        rule = self.submission.get(peer.listener)
        return Association(peer, admitted, vip, rule, self.priorities.get(peer.listener))

    def stop(self) -> None:
        """Cancel what policies still do for messages gone by."""
        self._desk.chain.stop()
