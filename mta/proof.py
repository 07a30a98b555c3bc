"""What a standby proves of its own process and node: ports, secrets, its configuration, its room.

Law: it reads and changes nothing; it blocks, so it runs on a worker. A failure is what would refuse
a takeover by this very process; a warning is what would refuse its next start, or differ.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mta.association.holders import listener_at
from mta.cluster.claims import check_identity
from mta.cluster.readiness import Findings
from mta.config.errors import ConfigErrors
from mta.config.load import load_file
from mta.config.schema import Config, ListenerBlock
from mta.errors import MTAError
from mta.plugins.find import Catalogue
from mta.process import refuse_privileged_ports
from mta.settings import SecretFile, Settings

MOST_MISTAKES = 3
"""Mistakes of a configuration that are named; `mta check-config` names all."""


def prove(config: Config, file: str | None, *, is_single: bool) -> Findings:
    """`config` is what this process runs with, `file` where a restart would read it from."""
    failures = [*_ports(config), *_secrets(config)]
    return Findings(tuple(failures), tuple(_restart(config, file, is_single)))


def listener_ports(listeners: Iterable[ListenerBlock]) -> Iterator[int]:
    """The TCP ports of those that have one."""
    for block in listeners:
        port = getattr(block.settings, "port", None)
        if isinstance(port, int):
            yield port


def _ports(config: Config) -> Iterator[str]:
    try:
        refuse_privileged_ports(listener_ports(config.listeners), None)
    except MTAError as fault:
        yield str(fault)
    for port in dict.fromkeys(listener_ports(config.listeners)):
        for address in config.virtual_server.addresses:
            holder = listener_at(address.bind, port)
            if holder:
                yield f"port {port} of {address} is taken by {holder}"
                break


def _secrets(config: Config) -> Iterator[str]:
    blocks: list[Any] = [config.cluster, config.spool, config.routing]
    blocks += [*config.listeners, *config.connectors, *config.policies]
    blocks += [config.auth] if config.auth is not None else []
    for block in blocks:
        for secret in _secret_files(block.settings):
            try:
                secret.read()
            except OSError as fault:
                text = f"{secret.path} cannot be read by uid {os.geteuid()}"
                yield f"{text}: {fault.strerror} (needed by {block.name})"


def _secret_files(settings: Settings) -> Iterator[SecretFile]:
    """Those of a block, and of the blocks within it."""
    for value in vars(settings).values():
        if isinstance(value, SecretFile):
            yield value
        elif isinstance(value, Settings):
            yield from _secret_files(value)


def _restart(config: Config, file: str | None, is_single: bool) -> Iterator[str]:
    if file is None:
        return
    try:
        fresh = load_file(file, Catalogue().find)
    except ConfigErrors as errors:
        lines = str(errors).splitlines()
        more = len(lines) - MOST_MISTAKES
        shown = "; ".join(lines[:MOST_MISTAKES]) + (f" and {more} more" if more > 0 else "")
        yield f"a restart would be refused: {shown}"
        return
    if fresh.digest != config.digest:
        yield f"{file} was changed and not read again: reload or restart this MTA"
    node = fresh.node.name or socket.gethostname()
    try:
        check_identity(fresh.virtual_server, node, own_name_is_right=is_single)
    except MTAError as fault:
        yield f"a restart would be refused: {fault}"


def room(directory: str, reserve: int, free_octets: Callable[[str], int]) -> tuple[int, int] | None:
    """Free octets where the spool lies, and its reserve; None when that cannot be seen."""
    try:
        return free_octets(directory), reserve
    except OSError:
        return None
