"""The virtual server is the node's that a file names; `interface` still watches the addresses."""

from pathlib import Path

from pydantic import Field
from twisted.internet.defer import Deferred
from zope.interface import implementer

from mta.cluster.settings import ClusterSettings
from mta.errors import GrantLost
from mta.interfaces import IClusterResource
from mta.plugins.factory import PluginFactory, find


class FlagSettings(ClusterSettings):
    file: str = Field(pattern="^/", description="Absolute path; it holds the owner's node name.")


@implementer(IClusterResource)
class FlagFile:
    def __init__(self, settings, surroundings):
        self._file, self._around = Path(settings.file), surroundings
        interface = find(IClusterResource, "interface")
        self._inner = interface.create(interface.schema(), surroundings)

    def __getattr__(self, name):  # prepare, release, probe, stop ...: as `interface` does it
        return getattr(self._inner, name)

    def _is_ours(self):  # what cannot be read is nobody's
        text = self._around.executor.submit(self._file.read_text)
        return text.addCallbacks(lambda text: text.strip() == self._around.node, lambda _: False)

    async def _when(self, ours):
        while await self._is_ours() is not ours:
            pause = Deferred()
            self._around.clock.call_later(1.0, pause.callback, None)
            await pause

    def subscribe(self, listener):
        self._inner.subscribe(listener)
        Deferred.fromCoroutine(self._watch(listener))

    async def _watch(self, listener):  # as long as the process lives
        while not await self._when(True) and not await self._when(False):
            listener.lost(f"{self._file} no longer names {self._around.node}")

    def acquire(self):
        return Deferred.fromCoroutine(self._when(True)).addCallback(lambda _: self._inner.acquire())

    def confirm(self, grant):
        return self._is_ours().addCallback(self._confirmed, grant)

    def _confirmed(self, is_ours, grant):
        if not is_ours:
            raise GrantLost(f"{self._file} does not name {self._around.node}")
        return self._inner.confirm(grant)


flag_file = PluginFactory("flag-file", IClusterResource, FlagSettings, FlagFile, ["authority"])
