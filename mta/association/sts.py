"""MTA-STS: which policy a domain has, found out in time, kept over restarts, refreshed unasked.

Law: a policy that was fetched holds until it expires, whatever fails meanwhile; only a newer one
takes its place. Who asks waits no longer than a while, and only for the domain that he asks of.
What cannot be had is no reason to keep mail: then there is no policy (RFC 8461 5).

RFC 8461 3.1 (a new id means a new policy), 3.3 (not too often), 5.1 (order of things), 10.2.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from mta.association.sts_book import Book, Kept
from mta.association.sts_fetch import PolicyFetch, Unfetched
from mta.association.sts_file import PolicyFile
from mta.errors import PermanentFailure, TransientFailure
from mta.interfaces import IClock, IStsPolicies, ITextResolver, ITimer
from mta.model import StsMode, StsPolicy
from mta.telemetry import Telemetry, TlsAttempt
from mta.wire.sts import announced, record_name

WAIT_SECONDS = 20.0
"""Mail for a domain waits so long for what its policy is; the fetch itself may go on."""
PAUSE_SECONDS = 300.0
"""After a failure nothing is tried for the domain (RFC 8461 3.3)."""
LOOK_SECONDS = 600.0
"""How often it is looked which policies want to be refreshed."""
SAVE_SECONDS = 5.0
"""Changes of so long go to the disk together."""
_MOST_PAUSES = 10_000
_MOST_SHOWN = 8


@implementer(IStsPolicies)
class StsPolicies:
    """One for a process. Nothing is read, asked or armed before somebody wants a policy."""

    def __init__(
        self,
        fetch: PolicyFetch,
        resolver: ITextResolver,
        file: PolicyFile,
        clock: IClock,
        telemetry: Telemetry,
    ) -> None:
        self._fetch = fetch
        self._resolver = resolver
        self._file = file
        self._clock = clock
        self._telemetry = telemetry
        self._book = Book()
        self._loading: list[Deferred[None]] | None = None
        """Who waits for the file to be read; None before, and after."""
        self._is_loaded = False
        self._flights: dict[str, tuple[Deferred[None], list[Deferred[None]]]] = {}
        self._pauses: dict[str, float] = {}
        self._look: ITimer | None = None
        self._refreshing: Deferred[None] | None = None
        self._save: ITimer | None = None
        self._writing: Deferred[None] | None = None
        self._is_stopped = False

    # --- IStsPolicies ---

    def policy(self, domain: str) -> Deferred[StsPolicy | None]:
        return Deferred.fromCoroutine(self._policy(domain))

    def known(self, domain: str) -> str:
        now = self._clock.wall()
        kept = self._book.get(domain, now)
        if kept is None:
            return "no policy is known"
        until = datetime.fromtimestamp(kept.expires(now), UTC).strftime("%Y-%m-%d %H:%M UTC")
        shown = [*kept.policy.mx[:_MOST_SHOWN], "..."][: len(kept.policy.mx)]
        names = f" for {', '.join(shown)}" if shown else ""
        return f"{kept.policy.mode.value}{names}, until {until}"

    async def stop(self) -> None:
        """At the end of the process: what was learnt is on the disk then."""
        self._is_stopped = True
        if self._look is not None:
            self._look.cancel()
        if self._refreshing is not None:
            self._refreshing.cancel()
        for flight, _waiting in tuple(self._flights.values()):
            flight.cancel()
        if self._writing is not None:
            waiting: Deferred[None] = Deferred()
            self._writing.addBoth(lambda _: waiting.callback(None))
            await waiting
        if len(self._book):
            if self._save is not None:
                self._save.cancel()
            await self._write()

    # --- finding out ---

    async def _policy(self, domain: str) -> StsPolicy | None:
        if not self._is_loaded:
            await self._loaded()
        flight = self._flights.get(domain) or self._begin(domain)
        if flight is not None:
            await self._landed(flight[1])
        kept = self._book.use(domain, self._clock.wall())
        return None if kept is None else kept.policy

    def _begin(
        self, domain: str, *, refresh: bool = False
    ) -> tuple[Deferred[None], list[Deferred[None]]] | None:
        """None: it was over at once, as it is where DNS is remembered and says nothing new."""
        if self._is_stopped or (not refresh and self._pauses_for(domain)):
            return None
        waiting: list[Deferred[None]] = []
        asking = Deferred.fromCoroutine(self._discover(domain, refresh))
        if not asking.called:
            self._flights[domain] = asking, waiting
        asking.addBoth(self._over, domain, waiting)
        return self._flights.get(domain)

    def _over(self, result: Any, domain: str, waiting: list[Deferred[None]]) -> None:
        self._flights.pop(domain, None)
        value = getattr(result, "value", None)
        if value is not None and not isinstance(value, CancelledError):
            self._notice("error", domain, f"{type(value).__name__}: {value}")
            self._pause(domain)
        _wake(waiting)

    async def _landed(self, waiting: list[Deferred[None]]) -> None:
        """Wait for a flight, but not for ever."""
        own: Deferred[None] = Deferred()
        waiting.append(own)
        timer = self._clock.call_later(WAIT_SECONDS, _wake, [own])
        try:
            await own
        finally:
            timer.cancel()

    async def _discover(self, domain: str, refresh: bool) -> None:
        try:
            records = await self._resolver.texts(record_name(domain))
        except (TransientFailure, PermanentFailure) as fault:
            self._failed(domain, Unfetched("dns", str(fault)))
            return
        name = announced(records)
        kept = self._book.get(domain, self._clock.wall())
        if kept is not None and refresh:
            kept.tried = self._clock.wall()
        # A record that is gone takes no policy away (RFC 8461 3.1, 5.1).
        if not name or (kept is not None and kept.id == name and not refresh):
            return
        found = await self._fetch.policy(domain)
        if isinstance(found, Unfetched):
            self._failed(domain, found)
            return
        self._tally("fetched")
        now = self._clock.wall()
        self._book.put(domain, Kept(name, found, now, now if kept is None else kept.used))
        self._gauge()
        if kept is None or kept.policy != found:
            self._notice("info", domain, f"its policy is {self.known(domain)} (id {name})")
        self._changed()

    # --- failures ---

    def _failed(self, domain: str, failure: Unfetched) -> None:
        self._tally(failure.result)
        self._pause(domain)
        kept = self._book.get(domain, self._clock.wall())
        if kept is None and failure.result == "dns":
            return  # who has no policy has no duty to answer; the resolver counts it
        if failure.result != "dns":
            hosts = () if kept is None else kept.policy.mx
            self._telemetry.event(
                TlsAttempt(
                    domain=domain,
                    policy="sts",
                    policy_strings=(),
                    policy_hosts=hosts,
                    mx="",
                    receiving="",
                    sending="",
                    result=failure.result,
                    reason=failure.why,
                )
            )
        holds = "mail goes as without one" if kept is None else "the one that is known holds"
        self._notice("warning", domain, f"no policy ({failure.result}): {failure.why}; {holds}")

    def _pause(self, domain: str) -> None:
        self._pauses.pop(domain, None)
        while len(self._pauses) >= _MOST_PAUSES:
            self._pauses.pop(next(iter(self._pauses)))
        self._pauses[domain] = self._clock.monotonic() + PAUSE_SECONDS

    def _pauses_for(self, domain: str) -> bool:
        until = self._pauses.get(domain)
        if until is None:
            return False
        if until > self._clock.monotonic():
            return True
        del self._pauses[domain]
        return False

    def _tally(self, result: str) -> None:
        self._telemetry.counter(
            "mta_sts_fetches_total", "Attempts to get an MTA-STS policy, by result.", result=result
        ).inc()

    def _gauge(self) -> None:
        self._telemetry.gauge("mta_sts_policies", "MTA-STS policies that are known.").set(
            len(self._book)
        )

    def _notice(self, level: str, domain: str, text: str) -> None:
        self._telemetry.notice(level, "association", f"mta-sts: {domain}: {text}")

    # --- unasked ---

    def _look_soon(self) -> None:
        if not self._is_stopped:
            self._look = self._clock.call_later(LOOK_SECONDS, self._look_now)

    def _look_now(self) -> None:
        self._look_soon()
        if self._refreshing is None:
            self._refreshing = Deferred.fromCoroutine(self._refresh())
            self._refreshing.addBoth(self._refreshed)

    def _refreshed(self, _result: Any) -> None:
        self._refreshing = None

    async def _refresh(self) -> None:
        """One after the other: nobody waits for it."""
        for domain in self._book.due(self._clock.wall()):
            flight = self._flights.get(domain) or self._begin(domain, refresh=True)
            if flight is not None:
                over: Deferred[None] = Deferred()
                flight[1].append(over)
                await over
        self._gauge()

    # --- the file ---

    async def _loaded(self) -> None:
        """Whoever waits may give up; that the file is read does not hang on him."""
        own: Deferred[None] = Deferred()
        if self._loading is not None:
            self._loading.append(own)
        else:
            self._loading = [own]
            Deferred.fromCoroutine(self._load()).addBoth(self._over_loading)
        await own

    def _over_loading(self, _result: Any) -> None:
        waiting, self._loading = self._loading or [], None
        self._is_loaded = True
        self._look_soon()
        _wake(waiting)

    async def _load(self) -> None:
        path, notice = self._file.path, partial(self._telemetry.notice, "error", "association")
        try:
            octets = await self._file.load()
            if octets is None:
                return
            try:
                self._book.read(octets)
            except ValueError as fault:
                aside = await self._file.set_aside()
                notice(
                    f"mta-sts: {path} is damaged: {fault}; it was set aside as {aside}, and every"
                    " policy is fetched anew"
                )
        except OSError as fault:
            notice(f"mta-sts: {path} cannot be read: {fault}; every policy is fetched anew")
        self._gauge()

    def _changed(self) -> None:
        if self._save is None and not self._is_stopped:
            self._save = self._clock.call_later(SAVE_SECONDS, self._save_now)

    def _save_now(self) -> None:
        self._save = None
        if self._writing is not None:
            self._changed()
            return
        self._writing = Deferred.fromCoroutine(self._write())
        self._writing.addBoth(self._written)

    def _written(self, _result: Any) -> None:
        self._writing = None

    async def _write(self) -> None:
        try:
            await self._file.save(self._book.octets())
        except OSError as fault:
            text = f"mta-sts: {self._file.path} cannot be written: {fault}; a restart forgets"
            self._telemetry.notice("error", "association", text)


def _wake(waiting: list[Deferred[None]]) -> None:
    for each in waiting:
        if not each.called:  # whoever waited has given up
            each.callback(None)


def in_force(policy: StsPolicy | None) -> StsPolicy | None:
    """A policy that says `none` is none (RFC 8461 5)."""
    return None if policy is None or policy.mode is StsMode.NONE else policy
