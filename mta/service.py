"""The composition root: builds every room once, and the tenant that lives while a tenure does.

Law: the only module that knows every room. Only the ownership machine starts by itself; what
listens or connects for mail is made when a Tenure exists and goes with it. What can be refused
without waiting is refused in the constructor, before twistd forks.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from mta.admin.commands import Commands, Facts
from mta.admin.control import ControlServer
from mta.admin.logs import LogObserver
from mta.admin.metrics import Exposition, QueueGauges
from mta.admin.sdnotify import Notifier
from mta.admin.sinks import deaf_syslog
from mta.admin.submit import SubmitServer
from mta.admin.tls_reports import TlsReports
from mta.admin.tls_tally import Sender
from mta.association.endpoints import Doors
from mta.association.sts import StsPolicies
from mta.association.sts_fetch import PolicyFetch
from mta.association.sts_file import PolicyFile
from mta.association.tls import Tls
from mta.association.transport import SocketOptions, hasten
from mta.cluster.admission import refuse_unfenced
from mta.cluster.driver import ClaimFacts, Ownership
from mta.cluster.settings import ClusterSettings
from mta.config.errors import ConfigErrors
from mta.config.load import load_file
from mta.config.schema import Config, ListenerBlock, PluginBlock
from mta.errors import ClusterNotInitialised, MTAError, PluginError, StartRefused
from mta.interfaces import IClusterResource, IRevocable, ISpool, ISupervised
from mta.overview import Overview
from mta.plugins.find import Catalogue, create
from mta.process import (
    ReactorClock,
    Surroundings,
    begin_anew,
    boot_id,
    collect_circles,
    refuse_privileged_ports,
    refuse_unwritable,
    why_not_anew,
)
from mta.proof import listener_ports
from mta.resolver.dns import DnsResolver
from mta.settings import Settings
from mta.spool.disk import Disk, ThreadExecutor
from mta.telemetry import Event, Telemetry, Transition
from mta.tenant import Bridgehead
from mta.wire.smtp.grammar import parse_mailbox

WHO_MAY_RELAY = ("relay_from", "relay_certificates")
"""What an open listener takes over by a reload."""
FIXED = (
    "virtual_server",
    "node",
    "cluster",
    "spool",
    "listeners",
    "auth",
    "admin",
    "log",
    "resolver",
    "tls",
    "tls_reports",
)
"""Blocks that a running process keeps; a change in them is named and waits for a restart."""


def own_version() -> str:
    try:
        return version("mta")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0"


@implementer(ILogObserver)
class TwistedLog:
    """Twisted's own log, into ours: its warnings and failures; the rest is of no use to anybody."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def __call__(self, event: dict[str, Any]) -> None:
        level = event.get("log_level", LogLevel.info)
        failure: Failure | None = event.get("log_failure")
        if failure is not None:
            text = f"{failure.value.__class__.__name__}: {failure.getErrorMessage()}"
            trace = failure.getTraceback(elideFrameworkCode=True)
            self._telemetry.notice("error", "twisted", f"{text} | {' | '.join(trace.split())}")
        elif level >= LogLevel.warn:
            from twisted.logger import formatEvent

            self._telemetry.notice("warning", "twisted", formatEvent(event))


class MTAService(Service):
    """What twistd runs. `configuration_file` is None for the embedded default."""

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        reactor: Any,
        *,
        configuration_file: str | None,
        uid: int | None,
        is_daemon: bool = False,
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._reactor = reactor
        self._file = configuration_file
        self._started_at = time.time()
        self._admin_ports: list[IRevocable] = []
        self._announced = False
        self._has_started = False
        self._is_daemon = is_daemon
        self._changes_uid = uid is not None
        self._is_awaited = False
        """The parent of a daemon waits to hear that we started."""
        self._exit_code = os.EX_OK

        self.telemetry = telemetry = Telemetry()
        hasten(reactor)
        self.clock = clock = ReactorClock(reactor)
        self._began_at = clock.monotonic()
        options = _socket_options(_cluster_settings(config.cluster))
        self._doors = Doors(reactor, clock, telemetry, options=options)
        self._executor = ThreadExecutor(reactor)
        node = config.node.name or socket.gethostname()
        self._log = LogObserver(
            config.log, clock, self._executor, telemetry, host=node, environment=os.environ
        )
        telemetry.attach(self._on_event)  # before the log, whose lines bear the epoch
        telemetry.attach(self._log)
        self._reports = self._tls_reports(node)
        self._notifier = Notifier(os.environ, clock)
        self._resolver = DnsResolver(config.resolver, self._doors, clock, telemetry)
        tls = Tls(config.tls, config.virtual_server.network_name, clock, telemetry)
        disk, state = Disk(), config.node.state_directory
        self._sts = StsPolicies(
            PolicyFetch(self._doors, self._resolver, tls, clock),
            self._resolver,
            PolicyFile(disk, self._executor, state),
            clock,
            telemetry,
        )
        self._surroundings = Surroundings(
            clock=clock,
            doors=self._doors,
            telemetry=telemetry,
            disk=disk,
            executor=self._executor,
            resolver=self._resolver,
            node=node,
            state_directory=state,
            virtual_server=config.virtual_server,
            tls=tls,
            sts=self._sts,
        )
        refuse_privileged_ports(listener_ports(config.listeners), uid)
        if config.tls_reports.directory is not None:
            inside = os.path.join(config.tls_reports.directory, "day")
            remedy = "give the directory of tls-reports to the MTA's user, or name another"
            refuse_unwritable(inside, "reports", remedy, uid=uid, makes_directories=True)
        if config.log.to.startswith("/"):
            remedy = "name another file in log.to, or stderr"
            refuse_unwritable(config.log.to, "the log", remedy, uid=uid)
        for path in (config.admin.socket, config.admin.submit_socket):
            remedy = "choose another path in admin:, or give its directory to the MTA's user"
            refuse_unwritable(path, "the socket", remedy, uid=uid, makes_directories=True)
        deaf = deaf_syslog(config.log.to, is_daemon=is_daemon)
        if deaf:
            sys.stderr.write(f"mta: {deaf}\n")
        if os.geteuid() == 0 and uid is None:
            telemetry.notice(
                "warning", "start", "running as root: give twistd --uid and --gid of a user"
            )
        resource = IClusterResource(self._created(config.cluster))
        spool = ISpool(self._created(config.spool))
        refuse_unfenced(resource, spool, config.spool.settings)
        resource.prepare(config.virtual_server)
        self._resource = resource
        self._spool = spool
        self.tenant = Bridgehead(config, spool, self._surroundings, self._created)
        facts = ClaimFacts(
            node=node,
            boot_id=boot_id(),
            process_started=self._started_at,
            version=own_version(),
            configuration_digest=config.shared_digest,
        )
        self.ownership = Ownership(
            resource,
            spool,
            self.tenant,
            self._doors,
            clock,
            telemetry,
            config.virtual_server,
            facts,
            _cluster_settings(config.cluster),
        )
        self.ownership.on_fatal(self._fatal)
        self.tenant.recovery = lambda: self.ownership.recovery
        self.overview = Overview(
            lambda: self._config,
            resource,
            spool,
            self.ownership,
            self.tenant,
            self._surroundings,
            facts,
            file=configuration_file,
            changed=self._tell_systemd,
        )
        self.commands = Commands(
            Facts(
                status=self.status,
                spool=self._owned_spool,
                routing=lambda: self.tenant.routing,
                terms=self.tenant.terms,
                parse_address=partial(parse_mailbox, utf8=True),
                retry_now=self.tenant.retry_now,
                pump=self.tenant.pump,
                forget=self.tenant.forget,
                probe=self.overview.probe,
                accept_clock=self.tenant.accept_clock,
                tls_reports=self._reports,
            ),
            clock,
            telemetry,
        )

        self._gauges = QueueGauges(telemetry, clock, self._owned_spool)
        self._control = ControlServer(self.commands, telemetry, clock, group=config.admin.group)

    # --- life -----------------------------------------------------------------------------------

    def setServiceParent(self, parent: Any) -> None:
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]  # Twisted's
        set_component = getattr(parent, "setComponent", None)
        if set_component is not None:
            set_component(ILogObserver, TwistedLog(self.telemetry))

    def startService(self) -> None:
        """After the fork. Standby is health: nothing here waits for the virtual server."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._has_started = True
        self._is_awaited = self._is_daemon
        self._log.start()
        try:
            self._open_admin()
        except MTAError as error:
            self._fatal(error.exit_code, str(error))
            return
        except OSError as error:
            self._fatal(os.EX_OSERR, f"the sockets of admin: cannot be made: {error}")
            return
        self._reactor.callWhenRunning(self._install_signals)
        self._notifier.start_watchdog(self._config.admin.watchdog)
        self._notifier.ready("standby")
        self.ownership.start()
        self.overview.readiness.start()
        self._is_awaited = False

    def stopService(self) -> Deferred[None]:
        """SIGTERM: drain, release, then let the reactor stop."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        self._notifier.stopping()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        try:
            await self.ownership.stop("the process was told to stop")
        except MTAError as error:
            self.telemetry.notice("error", "stop", str(error))
        for port in self._admin_ports:
            port.revoke()
        self._admin_ports.clear()
        self.overview.readiness.stop()
        self._control.stop()
        if self._reports is not None:
            await self._reports.stop()
        await self._sts.stop()
        self._notifier.stop()
        self._executor.stop()
        self._log.stop()

    def _fatal(self, exit_code: int, reason: str) -> None:
        """The tenure cannot be ended cleanly (LOST): leave at once, and never by reactor.stop(),
        which joins threads that may hang in the kernel (cluster.md section 4).

        @raise StartRefused: a daemon is still being started. Its parent waits on a pipe of which it
        holds both ends: it would wait for ever if we were just gone, and hears what is raised.
        """
        is_lost = exit_code == os.EX_TEMPFAIL  # another start would be refused for anything else
        stands_by = is_lost and not self._hindrance()
        does = "beginning anew as a standby" if stands_by else f"leaving with {exit_code}"
        self.telemetry.notice("critical", "ownership", f"{does}: {reason}")
        self._log.stop()
        if self._log.trouble:
            os.write(2, f"mta: {reason}\n".encode("utf-8", "backslashreplace"))
        if self._is_awaited:
            self._is_awaited = False
            raise StartRefused(reason, exit_code=exit_code)
        if stands_by:
            begin_anew()
        os._exit(exit_code)

    def _hindrance(self) -> str:
        return why_not_anew(
            is_daemon=self._is_daemon,
            changes_uid=self._changes_uid,
            is_supervised=ISupervised.providedBy(self._resource),
            stuck_seconds=self._spool.stuck_seconds(),
            ran_seconds=self.clock.monotonic() - self._began_at,
        )

    def last_words(self) -> None:
        """At the end of the process: if twistd failed before it started us, what it logged."""
        if not self._has_started:
            self._log.stop()

    # --- parts ----------------------------------------------------------------------------------

    def _created(self, block: Any) -> Any:
        """Build a plugin from its block of the configuration."""
        surroundings = self._surroundings.granted(block.factory, self._doors)
        return create(block.factory, block.settings, surroundings)

    def _tls_reports(self, node: str) -> TlsReports | None:
        config, settings = self._config, self._config.tls_reports
        if settings.directory is None:
            return None
        sender = Sender(
            settings.organization or config.virtual_server.network_name,
            settings.contact or str(config.postmaster),
            node,
        )
        reports = TlsReports(settings, sender, self.clock, self._executor, self.telemetry)
        self.telemetry.attach(reports.observe)
        return reports

    def _open_admin(self) -> None:
        admin = self._config.admin
        control = self._control
        submit = SubmitServer(
            admin,
            self.tenant.build_submission(admin),
            self._elsewhere,
            self.telemetry,
            network_name=self._config.virtual_server.network_name,
        )
        for path, factory, mode in (
            (admin.socket, control, control.mode),
            (admin.submit_socket, submit, 0o666),
        ):
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            self._admin_ports.append(
                self._doors.service_listen("admin", f"unix:{path}", factory, mode)
            )
        control.secure(admin.socket)
        if admin.http is not None:
            from mta.admin.http import Http  # brings twisted.web along

            http = Http(
                admin.http,
                self.commands,
                Exposition(
                    self.telemetry,
                    own_version(),
                    self._surroundings.node,
                    process=admin.http_process_metrics,
                ),
                ready=self.overview.ready,
                standby_ready=self.overview.standby_ready,
                clock=self.clock,
                telemetry=self.telemetry,
            )
            self._admin_ports.append(self._doors.service_listen("admin", http.endpoint, http))

    def _elsewhere(self) -> Sequence[tuple[str, int]]:
        """Where a program of this standby node hands its mail over: the virtual server itself."""
        ports = tuple(listener_ports(self._config.listeners))
        return [
            (str(address.external), port)
            for address in self._config.virtual_server.addresses
            for port in ports
        ]

    def _owned_spool(self) -> ISpool:
        if self.ownership.tenure is None:
            raise ClusterNotInitialised(
                "this node does not own the queue", self.ownership.explain(), "ask the owner"
            )
        return self._spool

    # --- what is said ---------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """One picture of everything, for `mta status` and /status.json."""
        config = self._config
        services = self._doors.snapshot()
        return {
            "version": own_version(),
            "node": self._surroundings.node,
            "pid": os.getpid(),
            "started_at": self._started_at,
            **self.overview.status(),
            "wrong_source": services["wrong_source"],
            "configuration": {
                "file": config.filename,
                "digest": config.digest,
                "shared_digest": config.shared_digest,
            },
            "services": services,
            "log": self._log.trouble or "ok",
            "clock": self.tenant.clock_suspicion or "ok",
        }

    def _tell_systemd(self) -> None:
        self._notifier.status(self.overview.line())

    def _on_event(self, event: Event) -> None:
        if type(event) is not Transition or event.machine != "ownership":
            return
        self._log.epoch = self.ownership.epoch
        self._tell_systemd()
        if event.after == "STANDBY":
            self.overview.readiness.look_soon()
        if event.after in {"STANDBY", "SUSPENDED"}:
            # In a turn of its own: what ended the tenure has returned, and nobody is served now.
            self.clock.call_later(0.0, collect_circles)
        if event.after == "ONLINE" and self._file is None and not self._announced:
            self._announced = True
            self._announce()

    def _announce(self) -> None:
        """The embedded default configuration is for a first look: say what to try."""
        # The commands look for a daemon of the working directory at this place by themselves.
        at = os.path.relpath(self._config.admin.socket)
        named = "" if at == "var/run/control.sock" else f" --socket {shlex.quote(at)}"
        program = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "mta")
        shown = os.path.relpath(program) if os.path.exists(program) else "mta"
        lines = [
            f"mta {own_version()}: {self._config.virtual_server.network_name} is online",
            *(f"  listening: {text}" for text in self.tenant.listening),
            f"  spool:     {getattr(self._config.spool.settings, 'directory', '')}",
            "Try it from another terminal:",
            f"  {shown}{named} send --to you@example.com --subject Hello --body 'It works.'",
            f"  {shown}{named} status",
            "",
        ]
        os.write(2, "\n".join(lines).encode())

    # --- signals --------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        """twistd knows no SIGHUP, whose default would kill the process."""
        self._on_signal(signal.SIGHUP, self.reload)
        self._on_signal(signal.SIGUSR1, self._log.reopen)
        self._on_signal(signal.SIGUSR2, self._dump)

    def _on_signal(self, number: signal.Signals, action: Callable[[], None]) -> None:
        signal.signal(number, lambda _number, _frame: self._reactor.callFromThread(action))

    def reload(self) -> None:
        """SIGHUP: take over what can change while we run; an invalid file changes nothing."""
        notice = self.telemetry.notice
        if self._file is None:
            notice("warning", "reload", "the embedded default configuration has no file to read")
            return
        self.overview.readiness.look_soon()
        try:
            config = load_file(self._file, Catalogue().find)
        except ConfigErrors as errors:
            for line in str(errors).splitlines():
                notice("error", "reload", f"{line} (the former configuration stays)")
            return
        stays = [
            block
            for block in FIXED
            if _differs(getattr(self._config, block), getattr(config, block))
        ]
        merged = _merged(self._config, config)
        try:
            self.tenant.reconfigure(merged)
        except MTAError as error:
            notice("error", "reload", f"{error} (the former configuration stays)")
            return
        self._config = merged
        if stays:
            names = ", ".join(name.replace("_", "-") for name in stays)
            notice("warning", "reload", f"{names}: changed in the file; needs a restart to apply")
        notice("info", "reload", f"{self._file}: routing, connectors, policies and queue reloaded")

    def _dump(self) -> None:
        """SIGUSR2: the state, into the log."""
        for key, value in self.commands.status().items():
            self.telemetry.notice("info", "state", f"{key}: {value}")


def _merged(old: Config, new: Config) -> Config:
    """`new` where a running process can change, `old` where it cannot. A listener that is open
    takes over who may relay, which is asked for each association.
    """
    fresh = {block.name: block.settings for block in new.listeners}

    def listener(block: ListenerBlock) -> ListenerBlock:
        wanted = fresh.get(block.name)
        given = {key: getattr(wanted, key) for key in WHO_MAY_RELAY if hasattr(wanted, key)}
        if not given:
            return block
        return replace(block, settings=block.settings.model_copy(update=given))

    kept: dict[str, Any] = {block: getattr(old, block) for block in FIXED}
    kept["listeners"] = tuple(listener(block) for block in old.listeners)
    return replace(new, **kept)


def _cluster_settings(block: PluginBlock) -> ClusterSettings:
    """@raise PluginError: a resource whose schema lacks what the ownership machine needs."""
    if isinstance(block.settings, ClusterSettings):
        return block.settings
    raise PluginError(
        f"cluster resource {block.name} has a schema of its own",
        "grace, drain and the like are missing from it",
        "derive the schema from mta.cluster.settings.ClusterSettings",
    )


def _socket_options(cluster: ClusterSettings) -> SocketOptions:
    """The kernel counts keepalive in whole seconds, from 1 on."""
    return SocketOptions(
        user_timeout=cluster.tcp_timeout,
        keepalive_idle=max(1, round(cluster.tcp_keepalive)),
        keepalive_interval=max(1, round(cluster.tcp_keepalive_interval)),
        keepalive_count=cluster.tcp_keepalive_count,
    )


def _differs(old: Any, new: Any) -> bool:
    """Blocks are compared by what was configured; a factory is the same when its name is."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) != len(new) or any(map(_differs, old, new))
    if hasattr(old, "factory"):
        return (old.name, _fixed_part(old.settings)) != (new.name, _fixed_part(new.settings))
    return bool(old != new)


def _fixed_part(settings: Settings) -> dict[str, Any]:
    """Who may relay is taken over by a reload (`_merged`)."""
    return settings.model_dump(exclude=set(WHO_MAY_RELAY))
