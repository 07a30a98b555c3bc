"""Finds plugins by contract and name, and says what is there, what is broken, and why.

Law: never guess and never hide. A name that two plugins claim is refused, whichever came first; a
name that nobody offers is refused with the list of those that are there and of the modules that
failed to import; what a plugin offers is verified before anybody uses it.

Every module of `mta.plugins` is imported and its IPluginFactory objects are collected. Twisted's
`getPlugins` is not used: it keeps a cache file beside the modules, which a read-only installation
cannot write, and it swallows import errors.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

from zope.interface import Interface
from zope.interface.exceptions import Invalid
from zope.interface.interface import InterfaceClass
from zope.interface.verify import verifyObject

import mta.plugins
from mta.errors import MTAError, PluginError
from mta.interfaces import IClusterResource, IPluginFactory, ISurroundings
from mta.settings import Settings

CONTRACT_VERSION = 1
"""The version of the contracts in mta.interfaces that this MTA speaks."""
PURPOSES = frozenset(
    ("authority", "resolver", "filter", "auth", "policy-fetch", "store", "admin", "probe")
)
"""What a service door may be asked for (law 1 of the house)."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Plugin:
    """A factory that was found and verified, and where it came from."""

    kind: str
    """The contract's name without its I, as people read it: ClusterResource, Spool, Policy ..."""
    name: str
    module: str
    distribution: str
    version: str
    factory: IPluginFactory


@dataclass(frozen=True, slots=True)
class Broken:
    """A module that could not be imported, or an offer in it that cannot be used, with why."""

    module: str
    reason: str
    distribution: str
    version: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that `mta plugins` shows: sorted by kind and name, and by module."""

    plugins: tuple[Plugin, ...]
    broken: tuple[Broken, ...]


@dataclass(frozen=True, slots=True)
class _Offer:
    factory: Any
    module: str


@dataclass(frozen=True, slots=True)
class _Fault:
    module: str
    reason: str
    name: str = ""


class Catalogue:
    """The plugins of one interpreter, imported once when they are first asked for.

    `package` is the package whose modules are looked at; tests hand in one of their own.
    """

    def __init__(self, package: ModuleType | None = None) -> None:
        self._package = mta.plugins if package is None else package

    def find(self, interface: type[Interface], name: str) -> IPluginFactory:
        """The one factory that provides `interface` under `name`, verified.

        @raise PluginError: none, more than one, or one that does not keep its contract.
        """
        offers = [o for o in self._offers(interface) if o.factory.name == name]
        kind = kind_of(interface)
        if not offers:
            near = nearest(name, [o.factory.name for o in self._offers(interface)])
            raise PluginError(
                f"no {kind} plugin is named {name!r}",
                self._what_is_there(interface),
                f"did you mean {near}?" if near else "",
            )
        if len(offers) > 1:
            places = " and ".join(sorted(self._origin(o.module) for o in offers))
            raise PluginError(
                f"two {kind} plugins are named {name!r}", places, "uninstall one of them"
            )
        fault = _fault_of(offers[0].factory)
        if fault:
            raise PluginError(
                f"{kind} plugin {name!r} cannot be used", f"{offers[0].module}: {fault}"
            )
        return offers[0].factory  # type: ignore[no-any-return]

    def available(self, interface: type[Interface]) -> tuple[IPluginFactory, ...]:
        """Every usable factory that provides `interface`, by name; doubled names are left out."""
        found: dict[str, list[Any]] = {}
        for offer in self._offers(interface):
            found.setdefault(offer.factory.name, []).append(offer.factory)
        return tuple(
            factories[0]
            for _name, factories in sorted(found.items())
            if len(factories) == 1 and not _fault_of(factories[0])
        )

    def inventory(self) -> Inventory:
        """Everything found and everything broken, with the distributions they came in.

        Takes tens of milliseconds: it reads the metadata of the installed distributions.
        """
        distributions = _Distributions()
        offers, faults = self._scan
        plugins: list[Plugin] = []
        broken = [(fault, fault.name) for fault in faults]
        taken: dict[tuple[str, str], str] = {}
        for offer in offers:
            name, kind = offer.factory.name, kind_of(offer.factory.provides)
            fault = _fault_of(offer.factory)
            if (kind, name) in taken and not fault:
                fault = f"the name is taken by {taken[kind, name]} too: neither can be chosen"
            taken.setdefault((kind, name), offer.module)
            if fault:
                broken.append((_Fault(offer.module, fault, name), name))
                continue
            distribution, version = distributions.of(self._file(offer.module))
            plugins.append(Plugin(kind, name, offer.module, distribution, version, offer.factory))
        return Inventory(
            tuple(sorted(plugins, key=lambda p: (p.kind, p.name, p.module))),
            tuple(
                Broken(
                    fault.module, fault.reason, *distributions.of(self._file(fault.module)), name
                )
                for fault, name in sorted(broken, key=lambda b: (b[0].module, b[1]))
            ),
        )

    # -- inside

    def _offers(self, interface: type[Interface]) -> Iterator[_Offer]:
        for offer in self._scan[0]:
            if offer.factory.provides.isOrExtends(interface):
                yield offer

    @cached_property
    def _scan(self) -> tuple[list[_Offer], list[_Fault]]:
        offers: list[_Offer] = []
        faults: list[_Fault] = []
        seen: set[int] = set()
        for name, first, *hidden in self._modules():
            faults += (
                _Fault(name, f"{other} is never imported: {first} comes first") for other in hidden
            )
            try:
                module = importlib.import_module(name)
            except (Exception, SystemExit) as error:
                faults.append(_Fault(name, _reason(error)))
                continue
            for candidate in list(vars(module).values()):
                if id(candidate) in seen or not _is_offered(candidate):
                    continue
                seen.add(id(candidate))
                fault = _outline_fault(candidate)
                if fault:
                    label = str(getattr(candidate, "name", ""))
                    faults.append(_Fault(name, fault, label))
                else:
                    offers.append(_Offer(candidate, name))
        return offers, faults

    def _modules(self) -> Iterator[list[str]]:
        """Every module's full name, and its files: the one that is imported, then the hidden."""
        prefix = self._package.__name__ + "."
        found: dict[str, list[str]] = {}
        for directory in dict.fromkeys(self._package.__path__):
            for info in pkgutil.iter_modules([directory], prefix):
                path = os.path.join(directory, info.name.removeprefix(prefix) + ".py")
                found.setdefault(info.name, []).append(path)
        for name in sorted(found):
            yield [name, *found[name]]

    def _what_is_there(self, interface: type[Interface]) -> str:
        names = sorted({o.factory.name for o in self._offers(interface)})
        text = f"there are {', '.join(names)}" if names else "there are none"
        faults = self._scan[1]
        if faults:
            text += "; not usable: " + "; ".join(f"{f.module} ({f.reason})" for f in faults)
        return text

    def _file(self, module: str) -> str:
        spec = sys.modules.get(module)
        path = getattr(spec, "__file__", None)
        if path:
            return str(path)
        name = module.rpartition(".")[2] + ".py"
        for directory in self._package.__path__:
            if os.path.exists(os.path.join(directory, name)):
                return os.path.join(directory, name)
        return name

    def _origin(self, module: str) -> str:
        distribution, version = _Distributions().of(self._file(module))
        return f"{module} of {distribution} {version}".rstrip()


def find(interface: type[Interface], name: str) -> IPluginFactory:
    """`Catalogue().find`, for a single question."""
    return Catalogue().find(interface, name)


def available(interface: type[Interface]) -> tuple[IPluginFactory, ...]:
    """`Catalogue().available`, for a single question."""
    return Catalogue().available(interface)


def inventory() -> Inventory:
    """`Catalogue().inventory`, for a single question."""
    return Catalogue().inventory()


def create(factory: IPluginFactory, settings: Settings, surroundings: ISurroundings) -> Any:
    """What `factory` builds, verified against the contract it promised.

    @raise PluginError: it raised something of its own, or built something else.
    @raise MTAError: what it raised on purpose (StartRefused, ConfigurationError) passes through.
    """
    kind = kind_of(factory.provides)
    try:
        product = factory.create(settings, surroundings)
    except MTAError:
        raise
    except Exception as error:
        raise PluginError(f"{kind} plugin {factory.name!r} failed", _reason(error)) from error
    fault = _broken_promise(factory.provides, product)
    if fault:
        raise PluginError(f"{kind} plugin {factory.name!r} built something else", fault)
    return product


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that was probably meant, or "" when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return near[0] if near else ""


def kind_of(interface: Any) -> str:
    """ISpool -> Spool. An add-on is of the kind of its contract: IContentEditor -> Policy."""
    return str(interface.__iro__[-2].__name__).removeprefix("I")


def _is_offered(candidate: Any) -> bool:
    if isinstance(candidate, InterfaceClass):
        return False
    try:
        return bool(IPluginFactory.providedBy(candidate))
    except Exception:
        # zope.interface stumbles over some innocent objects of the typing module.
        return False


def _outline_fault(candidate: Any) -> str:
    """What is wrong with an offer, seen without importing what it stands for; "" for nothing."""
    name, provides = getattr(candidate, "name", None), getattr(candidate, "provides", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return f"its name {name!r} is not of lower-case letters, digits and hyphens"
    if not isinstance(provides, InterfaceClass):
        return f"{name}: provides is not one of the contracts of mta.interfaces"
    version = getattr(candidate, "version", None)
    if version != CONTRACT_VERSION:
        return (
            f"{name}: written for version {version!r} of {provides.__name__},"
            f" this MTA speaks version {CONTRACT_VERSION}"
        )
    return ""


def _fault_of(factory: Any) -> str:
    """The same, with everything looked at: members, schema, purposes."""
    fault = _broken_promise(IPluginFactory, factory)
    if fault:
        return fault
    try:
        schema = factory.schema
        purposes = frozenset(factory.purposes)
    except Exception as error:
        return _reason(error)
    if not (isinstance(schema, type) and issubclass(schema, Settings)):
        return "its schema is not a class derived from mta.settings.Settings"
    if factory.provides.isOrExtends(IClusterResource) and not issubclass(schema, _cluster_base()):
        return "its schema is not a class derived from mta.cluster.settings.ClusterSettings"
    if purposes - PURPOSES:
        unknown = ", ".join(sorted(map(str, purposes - PURPOSES)))
        return f"it asks for unknown purposes: {unknown}; known are {', '.join(sorted(PURPOSES))}"
    return ""


def _cluster_base() -> type[Settings]:
    """What the ownership machine reads of every cluster resource's block (grace, drain ...)."""
    from mta.cluster.settings import ClusterSettings

    return ClusterSettings


def _broken_promise(interface: Any, candidate: Any) -> str:
    try:
        verifyObject(interface, candidate)
    except Invalid as error:
        return " ".join(str(error).split())
    except Exception as error:
        return _reason(error)
    return ""


def _reason(error: BaseException) -> str:
    """One line: what was raised, and at which line of whose file."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")
    ]
    if isinstance(error, SyntaxError) or not frames:
        return text
    if frames[-1].filename == importlib.__file__ or frames[-1].filename == __file__:
        return text
    return f"{text}, at {os.path.basename(frames[-1].filename)} line {frames[-1].lineno}"


class _Distributions:
    """Which installed distribution a file came in: wheels by their record, editables by path."""

    def __init__(self) -> None:
        self._records: list[tuple[str, str, Path, str]] = []
        self._editables: list[tuple[str, str, Path]] = []
        for distribution in importlib.metadata.distributions():
            name, version = distribution.metadata["Name"] or "?", distribution.version
            record = distribution.read_text("RECORD") or ""
            if "mta/plugins/" in record:
                root = Path(str(distribution.locate_file(""))).resolve()
                self._records.append((name, version, root, record))
            origin = distribution.read_text("direct_url.json") or ""
            match = re.search(r'"url"\s*:\s*"(file:[^"]+)"', origin)
            if match and '"editable"' in origin:
                path = Path(unquote(urlparse(match[1]).path)).resolve()
                self._editables.append((name, version, path))

    def of(self, file: str) -> tuple[str, str]:
        """Name and version, or ("unpackaged", "")."""
        path = Path(file).resolve()
        for name, version, root, record in self._records:
            if path.is_relative_to(root) and f"{path.relative_to(root).as_posix()}," in record:
                return name, version
        is_shipped = path.parts[-3:-1] == ("mta", "plugins")
        inside = [e for e in self._editables if is_shipped and path.is_relative_to(e[2])]
        if inside:
            deepest = max(inside, key=lambda e: len(e[2].parts))
            return deepest[0], deepest[1]
        return "unpackaged", ""
