"""A ready-made IPluginFactory: what most plugin modules end with, in one line.

    delay = PluginFactory("delay", IPolicy, DelaySettings, Delay)

`find` stands here too, for plugins that build upon another one.

Law: it keeps what it is given and builds what it is told to; a plugin that must import something
heavy only when it is chosen writes its own factory instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from zope.interface import Interface, implementer

from mta.interfaces import IPluginFactory, ISurroundings
from mta.plugins.find import find
from mta.settings import Settings

__all__ = ["PluginFactory", "find"]


@implementer(IPluginFactory)
class PluginFactory:
    """`build(settings, surroundings)` answers what provides the contract: usually a class.

    `version` is the contract's version that the plugin was written for.
    """

    def __init__(
        self,
        name: str,
        provides: type[Interface],
        schema: type[Settings],
        build: Callable[[Any, ISurroundings], Any],
        purposes: Iterable[str] = (),
        *,
        version: int = 1,
    ) -> None:
        self.name = name
        self.provides = provides
        self.schema = schema
        self.purposes = frozenset(purposes)
        self.version = version
        self._build = build

    def create(self, configuration: Any, surroundings: ISurroundings) -> Any:
        return self._build(configuration, surroundings)
