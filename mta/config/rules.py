"""The rules over more than one value: doubled names and ports, far ends, sharing, the postmaster.

Law: each rule looks at values that are right by themselves, and reports at the later of two that
clash, naming the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mta.config.names import covers
from mta.config.schema import ConnectorBlock, ListenerBlock, PluginBlock
from mta.config.validate import keys_of
from mta.config.walker import Path, Tree, path_text
from mta.interfaces import IConnectorFactory, IContentEditor, IPluginFactory, ISigner
from mta.model import Address, Sharing
from mta.plugins.find import nearest
from mta.settings import WaitingSettings

STANDALONE = "standalone"
"""The cluster resource with a single node, under which nothing is shared."""


def distinct_connectors(tree: Tree) -> None:
    """Connector names are unique."""
    entries = tree.root.get("connectors")
    written: dict[int, str] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and name:
            written[index] = name
    _distinct(tree, "connectors", "name", "a connector of this name", written)


def distinct_listeners(tree: Tree, names: Mapping[int, str], ports: Mapping[int, str]) -> None:
    """Listener names and ports are unique: every listener is on every virtual address.

    `names` and `ports` by position in the list, with the defaults of those that were not written.
    """
    numbers = {i: str(int(p)) for i, p in ports.items() if p.isascii() and p.isdigit()}
    clashing = _distinct(tree, "listeners", "port", "a listener on this port", numbers)
    others = {i: n for i, n in names.items() if i not in clashing}
    _distinct(tree, "listeners", "name", "a listener of this name", others)


def _distinct(
    tree: Tree, block: str, key: str, what: str, values: Mapping[int, str]
) -> frozenset[int]:
    """Report every value that an earlier entry has; answers where they are."""
    first: dict[str, int] = {}
    clashing = set()
    for index, value in sorted(values.items()):
        path = (block, index, key)
        if value in first:
            tree.report(path, f"{value}: {what} stands in line {first[value]} already")
            clashing.add(index)
        else:
            first[value] = tree.mark(path).line
    return frozenset(clashing)


def far_end_fault(kind: str, factory: IPluginFactory, block: Mapping[str, Any]) -> str:
    """What is wrong with how a connector names its far end; "" when it is right."""
    given = [k for k in ("bridgeheads", "delivery") if block.get(k)]
    if not IConnectorFactory.providedBy(factory):
        if len(given) == 2:
            return "give either bridgeheads or delivery: mx"
        return ""
    wanted = factory.far_end_keys
    for key in given:
        if key not in wanted:
            if not wanted:
                return f"{key}: a {kind} connector has no far end"
            return f"{key}: a {kind} connector takes {' or '.join(wanted)}"
    given = [k for k in wanted if block.get(k)]
    if wanted and len(given) != 1:
        choices = " or ".join("delivery: mx" if k == "delivery" else k for k in wanted)
        return f"give {choices}" + (", not both" if given else "")
    return ""


def sharing_said(tree: Tree, cluster: PluginBlock | None, spool: PluginBlock | None) -> None:
    """Under a cluster resource nobody guesses how the spool reaches the other node."""
    if cluster is None or spool is None or cluster.name == STANDALONE:
        return
    if "sharing" not in keys_of(type(spool.settings)):
        return
    written = tree.root.get("spool")
    if isinstance(written, Mapping) and not any(nearest(k, ["sharing"]) for k in written):
        choices = " | ".join(s.value for s in Sharing)
        tree.report(
            ("spool", "sharing"),
            f"missing: under resource {cluster.name} say how the spool reaches the other node:"
            f" {choices}",
            tree.mark(("spool",)),
        )


def clients_known(tree: Tree, tls: Any, listeners: list[ListenerBlock]) -> None:
    """Where clients have to show a certificate, it is said whose."""
    if tls is None or tls.client_authorities is not None:
        return
    for index, block in enumerate(listeners):
        wanted = getattr(block.settings, "client_certificates", "none")
        if wanted == "require" and not getattr(block.settings, "relay_certificates", ()):
            tree.report(
                ("listeners", index, "client-certificates"),
                "require: nobody's certificate would do; name their authorities in"
                " tls.client-trust, or fingerprints in relay-certificates",
            )


def own_certificate_there(tree: Tree, tls: Any, connectors: list[ConnectorBlock]) -> None:
    """A connector that shows the virtual server's certificate has one to show."""
    if tls is None or tls.certificates:
        return
    for index, block in enumerate(connectors):
        if getattr(block.settings, "certificate", None) == "own":
            tree.report(
                ("connectors", index, "certificate"),
                "own: there is none; give one for the network name in tls.certificates",
            )


def certificate_there(tree: Tree, tls: Any, listeners: list[ListenerBlock]) -> None:
    """A listener for which TLS is a must, or which asks under it, has a certificate to show."""
    if tls is None or tls.certificates:
        return
    for index, block in enumerate(listeners):
        wanted = getattr(block.settings, "tls", "")
        asks = getattr(block.settings, "client_certificates", "none")
        if wanted == "offer" and asks == "ask":
            tree.report(
                ("listeners", index, "client-certificates"),
                "ask: without a certificate of our own there is no TLS; give one for the network"
                " name in tls.certificates",
            )
        if wanted in {"require", "implicit"}:
            tree.report(
                ("listeners", index, "tls"),
                f"{wanted}: there is no certificate; give one for the network name in"
                " tls.certificates",
            )


def somebody_to_ask(tree: Tree, listeners: list[ListenerBlock]) -> None:
    """A listener whose clients say who they are has somebody who knows it, and TLS for it."""
    for index, block in enumerate(listeners):
        wanted = getattr(block.settings, "auth", "none")
        if wanted == "none":
            continue
        if "auth" not in tree.root:
            tree.report(
                ("listeners", index, "auth"),
                f"{wanted}: nobody knows who may bear which name; give a block `auth`, or say"
                " `auth: none`, so that relay-from alone decides",
            )
        elif wanted == "tls" and getattr(block.settings, "tls", "") == "none":
            tree.report(
                ("listeners", index, "tls"),
                "none: but `auth: tls` takes names and passwords under TLS only; give TLS, or say"
                " `auth: clear` where the network itself is closed",
            )


def validation_there(tree: Tree, resolver: Any, connectors: list[ConnectorBlock]) -> None:
    """A connector that goes by signed records has a resolver that says what was signed."""
    if resolver is None or resolver.dnssec:
        return
    words = (
        "dane: nobody says which answers were validated; run a validating name server on this node"
        " (unbound, say) and give resolver: {servers: [127.0.0.1], dnssec: true}"
    )
    for index, block in enumerate(connectors):
        path: Path = ("connectors", index)
        if getattr(block.settings, "tls", "") == "dane":
            tree.report((*path, "tls"), words)
        for number, each in enumerate(getattr(block.settings, "tls_exceptions", ())):
            if each.tls == "dane":
                tree.report((*path, "tls-exceptions", number, "tls"), words)


def policies_of_somebody(tree: Tree, connectors: list[ConnectorBlock]) -> None:
    """A connector that asks for policies delivers to mail exchangers, which alone have them."""
    for index, block in enumerate(connectors):
        if getattr(block.settings, "mta_sts", False) and not block.connector.by_mx:
            tree.report(
                ("connectors", index, "mta-sts"),
                "true: a policy is a domain's, for its mail exchangers; of bridgeheads nobody has"
                " one: say `tls: verify` instead",
            )


def exceptions_meet_somebody(tree: Tree, connectors: list[ConnectorBlock]) -> None:
    """An exception of a connector with fixed servers is for one of them."""
    for index, block in enumerate(connectors):
        connector = block.connector
        if connector.by_mx:
            continue
        hosts = [bridgehead.host for bridgehead in connector.bridgeheads]
        for number, each in enumerate(getattr(block.settings, "tls_exceptions", ())):
            if not any(covers(each.domain.encode(), Address(b"", h.encode())) for h in hosts):
                tree.report(
                    ("connectors", index, "tls-exceptions", number, "domain"),
                    f"{each.domain}: no bridgehead of this connector has such a name; the domain of"
                    " the mail decides with `delivery: mx` only",
                )


def signers_last(tree: Tree, policies: list[PluginBlock]) -> None:
    """What one policy vouches for none behind it may change. All of `policies` are right."""
    editors = [i for i, b in enumerate(policies) if b.factory.provides.isOrExtends(IContentEditor)]
    for index, block in enumerate(policies):
        if not block.factory.provides.isOrExtends(ISigner) or not editors or index > editors[-1]:
            continue
        path = ("policies", index, "policy")
        line = tree.mark(("policies", editors[-1], "policy")).line
        tree.report(
            path,
            f"{block.name}: {policies[editors[-1]].name} in line {line} stands behind it and may"
            " change what it has signed; put it behind that one",
        )


def answers_in_time(tree: Tree, intake: Any, policies: list[PluginBlock]) -> None:
    """No policy may wait so long that its clients are answered for it. All of `policies` are right.

    What is said is said of the key that was written later, and of `policy-timeout` once.
    """
    if intake is None:
        return
    limit, bound = intake.policy_timeout, ("intake", "policy-timeout")
    told = False
    for index, block in enumerate(policies):
        if not isinstance(block.settings, WaitingSettings):
            continue
        for keys, seconds in block.settings.longest_waits().items():
            path: Path = ("policies", index, *keys)
            if seconds < limit:
                continue
            if path in tree.values and (
                bound not in tree.values or tree.mark(bound).line < tree.mark(path).line
            ):
                tree.report(
                    path,
                    f"{block.name} may take {seconds:g} s for one answer, and is cut off after"
                    f" {limit:g} s; take less, or give intake.policy-timeout more (240s at most)",
                )
            elif not told:
                told = True
                tree.report(
                    bound,
                    f"{limit:g} s: {path_text(path)} lets {block.name} take {seconds:g} s for one"
                    " answer; give more (240s at most), or let it take less",
                )


def postmaster_routable(tree: Tree, postmaster: Address, connectors: list[ConnectorBlock]) -> None:
    """Mail for the postmaster goes somewhere."""
    spaces = [space for block in connectors for space in block.connector.address_spaces]
    if not any(covers(space.pattern, postmaster) for space in spaces):
        tree.report(
            ("postmaster",),
            f"no connector's address spaces take {postmaster}: its mail could not be delivered",
        )
