"""What lives only while a tenure does: listeners, intake, routing, connectors, dispatch.

Law: nothing of mail exists before `start(tenure)`, and `stop` leaves nothing running. Part of the
composition: `service` builds one and gives it to the ownership driver, which knows nothing of mail.

A reload swaps intake and dispatch under a running tenure: associations that are open finish with
what they began with; the next one meets the new configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IProtocol
from zope.interface import implementer

from mta.admin.settings import AdminSettings
from mta.admin.submit import LISTENER as SUBMIT
from mta.admin.submit import SubmissionHost
from mta.association.smtp_listener import build_submission_responder
from mta.association.smtp_settings import LmtpListenerSettings, SubmissionListenerSettings
from mta.config.schema import Config, ListenerBlock
from mta.errors import ClusterNotInitialised, MTAError
from mta.interfaces import (
    IAssociationKind,
    IAuthenticator,
    IDrains,
    IExplains,
    IListenerKind,
    IPolicy,
    IReception,
    IReceptionHost,
    IRevocable,
    IRouting,
    IRoutingBuilder,
    ISpool,
    ISurroundings,
    ITenant,
    ITenure,
)
from mta.model import (
    Connector,
    Envelope,
    IPAddress,
    MessageState,
    PeerInfo,
    Recovery,
    Route,
    VirtualServer,
)
from mta.policy.certificates import CertificateRule
from mta.policy.chain import check_order
from mta.policy.new_body import Bounds
from mta.policy.priority import PriorityRule
from mta.policy.submission import SubmissionRule
from mta.transfer.dispatch import Dispatch
from mta.transfer.doubts import DoubtLog
from mta.transfer.hops import domains
from mta.transfer.intake import Intake
from mta.transfer.repeats import Repeats
from mta.transfer.reservation import Reservation
from mta.transfer.trust import TrustedClock

Network = IPv4Network | IPv6Network
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
RELOAD_DRAIN_SECONDS = 30.0
"""How long transfers that were open at a reload may finish under the former configuration."""


@implementer(IReceptionHost)
class _Front:
    """What listeners hold: always the present intake."""

    def __init__(self) -> None:
        self.intake: Intake | None = None

    def reception(self, tenure: ITenure, peer: PeerInfo) -> IReception:
        if self.intake is None:
            raise ClusterNotInitialised("no mail is accepted now")
        return self.intake.reception(tenure, peer)


@implementer(ITenant)
class Bridgehead:
    """One virtual server's mail, while it is ours. `create` builds a plugin from its block."""

    def __init__(
        self,
        config: Config,
        spool: ISpool,
        surroundings: ISurroundings,
        create: Callable[[Any], Any],
    ) -> None:
        self._config = config
        self._spool = spool
        self._surroundings = surroundings
        self._create = create
        self._front = _Front()
        self._tenure: ITenure | None = None
        self._dispatch: Dispatch | None = None
        self._former: dict[Dispatch, None] = {}
        self._doubt_log = DoubtLog(surroundings.telemetry)
        self._repeats = Repeats()
        self._clock = TrustedClock(surroundings.clock, self._trusted, self._doubted)
        self.recovery: Callable[[], Recovery | None] = lambda: None
        """What the ownership driver found at the takeover; set by whoever built both."""
        self._judged: Recovery | None = None
        self._listeners: dict[str, IListenerKind] = {
            block.name: IListenerKind(create(block)) for block in config.listeners
        }
        self._authenticator = None if config.auth is None else IAuthenticator(create(config.auth))
        self._open: list[IRevocable] = []
        self.listening: tuple[str, ...] = ()
        self._take(config)

    def _take(self, config: Config) -> None:
        """Build what routing, connectors and policies of `config` are. @raise MTAError: refused."""
        connectors = {
            block.name: (block.connector, IAssociationKind(self._create(block)))
            for block in config.connectors
        }
        builder = IRoutingBuilder(self._create(config.routing))
        routing = IRouting(builder.build(tuple(pair[0] for pair in connectors.values())))
        policies = [IPolicy(self._create(block)) for block in config.policies]
        check_order(policies)
        self._config = config
        self._connectors: dict[str, tuple[Connector, IAssociationKind]] = connectors
        self.routing = routing
        self._policies = policies

    # --- ITenant --------------------------------------------------------------------------------

    def start(self, tenure: ITenure) -> Deferred[None]:
        """Listen, then let the queue move (cluster.md section 4: nothing moves before)."""
        self._tenure = tenure
        found = self.recovery()
        if found is not None and found is not self._judged:
            self._judged = found  # once a takeover: a resume under the same epoch asks no more
            if found.clock_suspect:
                self._clock.suspect(found.clock_suspect, found.last_stamp)
        self._assemble(tenure)
        shown: list[str] = []
        try:
            for block in self._config.listeners:
                ports = self._listeners[block.name].listen(tenure, self._front)
                self._open.extend(ports)
                port = getattr(block.settings, "port", 0)
                shown.extend(f"{block.kind} on {a}, port {port}" for a in tenure.addresses)
        except MTAError:
            self._end("a listener could not be opened")
            raise
        self.listening = tuple(shown)
        assert self._dispatch is not None
        return Deferred.fromCoroutine(self._move(self._dispatch))

    async def _move(self, dispatch: Dispatch) -> None:
        """Let the queue move, once everything is recorded that was under way before: after a
        suspension under the same epoch the last transfers' outcomes may not be on disk yet.
        """
        await self._spool.journal((), ())
        if self._dispatch is dispatch:
            dispatch.start()

    def suspend(self, reason: str) -> None:
        self._end(reason)

    def drain(self, deadline: float) -> Deferred[None]:
        """Stop listening; finish what is open, inbound and outbound."""
        self._close_ports()
        listeners = self._listeners.values()
        waited = [IDrains(kind).drain() for kind in listeners if IDrains.providedBy(kind)]
        if self._dispatch is not None:
            waited.append(self._dispatch.drain(deadline))
        return gatherResults(waited, consumeErrors=True).addCallback(lambda _: None)

    def stop(self, reason: str) -> None:
        self._end(reason)

    # --- inside ---------------------------------------------------------------------------------

    def _assemble(self, tenure: ITenure) -> None:
        config, surroundings = self._config, self._surroundings
        self._dispatch = dispatch = Dispatch(
            tenure,
            self._spool,
            self.routing,
            self._connectors,
            surroundings.resolver,
            self._clock,
            surroundings.telemetry,
            config.queue,
            config.postmaster,
            self.is_ourselves,
            doubt_log=self._doubt_log,
        )
        dispatch.rules.may_expire = not self._clock.suspicion
        intake = Intake(
            self._spool,
            self.routing,
            self._policies,
            self,
            self._clock,
            surroundings.telemetry,
            config.intake,
            config.postmaster,
            config.virtual_server,
            self._repeats,
            self._authenticator,
        )
        intake.admit = {
            block.name: _admitted(block, config.virtual_server) for block in config.listeners
        }
        intake.submission = {
            block.name: SubmissionRule(block.settings.senders == "login")
            for block in config.listeners
            if isinstance(block.settings, SubmissionListenerSettings)
        }
        intake.bounds = {
            block.name: Bounds(block.settings.limits.size, block.settings.limits.line)
            for block in config.listeners
            if isinstance(block.settings, LmtpListenerSettings)
        } | {SUBMIT: Bounds(config.admin.submit_size)}
        intake.certificates = {
            block.name: CertificateRule(
                block.settings.client_certificates == "require",
                frozenset(block.settings.relay_certificates),
            )
            for block in config.listeners
            if isinstance(block.settings, LmtpListenerSettings)
            and block.settings.client_certificates != "none"
        }
        intake.priorities = {SUBMIT: PriorityRule()} | {
            block.name: PriorityRule(terms.limit, terms.user_limit)
            for block in config.listeners
            if isinstance(block.settings, LmtpListenerSettings)
            and (terms := block.settings.mt_priority).offer
        }
        former, self._front.intake = self._front.intake, intake
        if former is not None:
            former.stop()
        self._dispatch = dispatch

    def reserve(self, queue_id: str, envelope: Envelope, state: MessageState) -> Reservation | None:
        dispatch = self._dispatch
        return None if dispatch is None else dispatch.reserve(queue_id, envelope, state)

    def offer(
        self,
        queue_id: str,
        envelope: Envelope,
        state: MessageState,
        reservation: Reservation | None,
    ) -> None:
        dispatch = self._dispatch
        if dispatch is not None:
            dispatch.offer(queue_id, envelope, state, reservation)
        elif reservation is not None:
            reservation.give_back()

    def _close_ports(self) -> None:
        for port in self._open:
            port.revoke()
        self._open.clear()
        self.listening = ()

    def _end(self, reason: str) -> None:
        self._close_ports()
        if self._front.intake is not None:
            self._front.intake.stop()
            self._front.intake = None
        dispatches = [*self._former]
        if self._dispatch is not None:
            dispatches.append(self._dispatch)
        self._former.clear()
        self._dispatch = None
        self._tenure = None
        for dispatch in dispatches:
            dispatch.stop(reason)

    def is_ourselves(self, address: IPAddress, port: int) -> bool:
        """One of our virtual addresses, and a port on which a listener of ours accepts."""
        server = self._config.virtual_server
        ours = any(address in {a.external, a.bind} for a in server.addresses)
        return ours and any(
            getattr(block.settings, "port", None) == port for block in self._config.listeners
        )

    # --- a reload -------------------------------------------------------------------------------

    def reconfigure(self, config: Config) -> None:
        """Routing, connectors, policies, queue, intake and relay-from as `config` says.

        @raise MTAError: a plugin refuses; nothing has changed.
        """
        self._take(config)
        tenure, former = self._tenure, self._dispatch
        if tenure is None or former is None:
            return
        self._assemble(tenure)
        self._former[former] = None
        deadline = self._surroundings.clock.monotonic() + RELOAD_DRAIN_SECONDS
        former.drain(deadline).addBoth(self._drained, former)
        assert self._dispatch is not None
        self._dispatch.start()

    def _drained(self, _result: object, dispatch: Dispatch) -> None:
        if dispatch in self._former:
            del self._former[dispatch]
            dispatch.stop("replaced by a reload")
        self._spool.journal((), ()).addCallbacks(self._inherit, _lost)

    def _inherit(self, _: None) -> None:
        """All that the former dispatch had to say is recorded: what it left is ours to send."""
        if self._dispatch is not None:
            self._dispatch.learn_doubts()
            self._dispatch.pump()

    # --- operators ------------------------------------------------------------------------------

    def terms(self, route: Route) -> tuple[str, ...]:
        """On which terms the connector of `route` speaks with its servers, each once."""
        _, kind = self._connectors[route.connector]
        explains = IExplains(kind, None)
        if explains is None:
            return ()
        return tuple(dict.fromkeys(explains.explain(domain) for domain in domains(route)))

    def retry_now(self, queue_ids: Sequence[str]) -> None:
        if self._dispatch is not None:
            self._dispatch.retry_now(queue_ids)

    def pump(self) -> None:
        if self._dispatch is not None:
            self._dispatch.pump()

    def forget(self, queue_ids: Sequence[str]) -> None:
        if self._dispatch is not None:
            self._dispatch.forget(queue_ids)

    def accept_clock(self) -> bool:
        """The operator says that this machine's clock is right. False: it was believed already."""
        return self._clock.accept()

    @property
    def clock_suspicion(self) -> str:
        return self._clock.suspicion

    def _doubted(self, why: str) -> None:
        self._surroundings.telemetry.notice("warning", "queue", f"clock-suspect: {why}")
        for dispatch in (self._dispatch, *self._former):
            if dispatch is not None:
                dispatch.rules.may_expire = False

    def _trusted(self) -> None:
        for dispatch in (self._dispatch, *self._former):
            if dispatch is not None:
                dispatch.rules.may_expire = True
                dispatch.pump()

    def snapshot(self) -> Any:
        return {} if self._dispatch is None else self._dispatch.snapshot()

    # --- local submission -----------------------------------------------------------------------

    def build_submission(self, admin: AdminSettings) -> Callable[[PeerInfo], IProtocol | None]:
        """For submit.sock: the SMTP responder while a tenure lives, None on standby."""
        host = SubmissionHost(self._front, admin, self._surroundings.clock)

        def build(peer: PeerInfo) -> IProtocol | None:
            if self._tenure is None or not self._tenure.is_live:
                return None
            return build_submission_responder(self._tenure, host, peer, self._surroundings)

        return build


def _lost(_failure: object) -> None:
    """The epoch ended meanwhile; the ownership machine knows."""


def _admitted(block: ListenerBlock, server: VirtualServer) -> tuple[Network, ...]:
    """Who may relay by this listener: as configured, else this node's own programs."""
    given: tuple[Network, ...] | None = getattr(block.settings, "relay_from", None)
    if given is not None:
        return given
    ours = tuple(ip_network(ip_address(str(a.bind))) for a in server.addresses)
    return LOOPBACK + ours
