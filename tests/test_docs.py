"""The documents stand: what the code cites is there, links lead somewhere, commands are commands.

Reads Markdown and sources as text; runs no command, only the parsers of the commands.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import mta.interfaces
from mta.cli import main
from mta.config.errors import ConfigErrors
from mta.config.load import load
from mta.plugins.find import Catalogue
from mta.tap import Options
from tests.test_house import COMMON, IMPLEMENTATIONS, MAY_IMPORT, OUTSIDE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOT_OURS = {".git", ".venv", ".rig", "var", "build", "dist", "__pycache__", ".hypothesis"}
OPERATORS = ("README.md", os.path.join("docs", "operating.md"))

_LIST = r"(\d+(?:(?:, | and )\d+)*)"
_CITED = re.compile(rf"\b([a-z][a-z-]*)\.md\s+(section|law)s?\s+{_LIST}", re.IGNORECASE)
_BARE_LAW = re.compile(rf"(?<!\.md )\blaws? {_LIST}", re.IGNORECASE)
_PAGE = re.compile(r"(?<![\w/{}-])((?:[\w.-]+/)*[a-z][\w-]*\.md)\b")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CONFLICT = re.compile(r"^(<{7}|>{7}|\|{7}) ", re.MULTILINE)
_COMMENT_MARK = re.compile(r"\n[ \t]*#? ?")


def read(path: str) -> str:
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def files(ending: str, *under: str) -> list[str]:
    """Paths relative to the repository, sorted."""
    found = []
    for start in under or (".",):
        for folder, folders, names in os.walk(os.path.join(ROOT, start)):
            folders[:] = [
                name for name in folders if name not in NOT_OURS and not name.startswith("_trial")
            ]
            paths = (os.path.join(folder, name) for name in names if name.endswith(ending))
            found += [os.path.relpath(path, ROOT) for path in paths]
    return sorted(found)


def citations(text: str) -> Iterator[tuple[str, str, int]]:
    """(page, "section" or "law", number) of each citation; a law without a page is the house's."""
    flat = _COMMENT_MARK.sub(" ", text)  # a citation may be broken over two lines
    for page, kind, numbers in _CITED.findall(flat):
        for number in re.findall(r"\d+", numbers):
            yield page.lower(), kind.lower(), int(number)
    for numbers in _BARE_LAW.findall(flat):
        for number in re.findall(r"\d+", numbers):
            yield "house", "law", int(number)


def headings(markdown: str) -> list[str]:
    return _HEADING.findall(_FENCE.sub("", markdown))


def resolves(kind: str, number: int, markdown: str) -> bool:
    """Whether the page has `N. ...` (a section) or `Law N: ...` among its headings."""
    begins = f"{number}. " if kind == "section" else f"Law {number}: "
    return any(heading.startswith(begins) for heading in headings(markdown))


def slug(heading: str) -> str:
    """The anchor that a forge makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def broken_links(path: str, markdown: str) -> list[str]:
    found = []
    for target in _LINK.findall(_FENCE.sub("", markdown)):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        there = os.path.join(os.path.dirname(path), place) if place else path
        if not os.path.exists(os.path.join(ROOT, there)):
            found.append(f"{path}: {target} is not there")
        elif anchor and anchor not in {slug(h) for h in headings(read(there))}:
            found.append(f"{path}: {target} has no such heading")
    return found


def commands(markdown: str, program: str) -> list[list[str]]:
    """The words of each line of code that calls `program`, with or without a path."""
    blocks = [body for kind, body in _FENCE.findall(markdown) if kind in ("", "sh")]
    indented = re.findall(r"^ {4}(.*)$", _FENCE.sub("", markdown), re.MULTILINE)
    found = []
    for line in [line for block in blocks for line in block.splitlines()] + indented:
        first = line.split(" ", 1)[0]
        if first == program or first.endswith(f"/{program}"):
            found.append(shlex.split(line, comments=True))
    return found


def refusal(words: list[str]) -> str:
    """What `mta`'s parser says against these words; "" when it takes them."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            main._parser().parse_args(words)
    except SystemExit:
        return f"{' '.join(words)}: {said.getvalue()}"
    return ""


class CitationTests(SynchronousTestCase):
    """The code may cite our pages; whoever follows the citation arrives."""

    def test_every_citation_resolves(self) -> None:
        """`spool.md section 3`, `house.md law 1 and 3`, `law 2`: each has its heading in docs/."""
        missing, seen = [], 0
        for path in files(".py", "mta", "tests"):
            if os.path.basename(path) == os.path.basename(__file__):
                continue
            for page, kind, number in citations(read(path)):
                seen += 1
                there = os.path.join("docs", f"{page}.md")
                if not os.path.exists(os.path.join(ROOT, there)):
                    missing.append(f"{path}: docs/{page}.md is not there")
                elif not resolves(kind, number, read(there)):
                    missing.append(f"{path}: {there} has no {kind} {number}")
        self.assertEqual([], missing)
        self.assertGreater(seen, 30)

    def test_every_page_that_the_code_names_is_there(self) -> None:
        """A page named in mta/ lies in docs/, in one of its folders, or at the top."""
        names = {os.path.basename(p) for p in files(".md")}
        missing = [
            f"{path}: {page}"
            for path in files(".py", "mta")
            for page in _PAGE.findall(read(path))
            if os.path.basename(page) not in names
        ]
        self.assertEqual([], missing)

    def test_citations_are_found_in_every_spelling(self) -> None:
        """Several numbers, broken lines and comments do not hide a citation."""
        text = (
            "(spool.md\n    # section 1). Law (house.md law 1 and 3): laws 4, 5 and 6; see law 2."
        )
        self.assertEqual(
            [
                ("spool", "section", 1),
                *(("house", "law", n) for n in (1, 3)),
                *(("house", "law", n) for n in (4, 5, 6, 2)),
            ],
            list(citations(text)),
        )

    def test_a_missing_heading_is_noticed(self) -> None:
        """Section 1 is not section 10, and a heading in a fence is none."""
        page = "## 10. Ten\n### Law 12: twelve\n```\n## 2. Two\n```\n"
        self.assertTrue(resolves("section", 10, page) and resolves("law", 12, page))
        self.assertFalse(resolves("section", 1, page) or resolves("law", 1, page))
        self.assertFalse(resolves("section", 2, page))


class MergeTests(SynchronousTestCase):
    """What two have written at the same time was put together by somebody who read it."""

    def test_no_conflict_is_left(self) -> None:
        """No page, source, script or configuration holds the marks of a merge that was not ended."""
        kinds = (".md", ".py", ".yaml", ".toml", ".sh", ".txt", ".xml", ".conf", ".service")
        left = [path for kind in kinds for path in files(kind) if _CONFLICT.search(read(path))]
        self.assertEqual([], left)

    def test_a_conflict_is_noticed(self) -> None:
        """Each of the three marks by itself, at the start of a line; a line under a heading is none."""
        for mark in ("<" * 7 + " HEAD", ">" * 7 + " 4042169 (A page)", "|" * 7 + " base"):
            self.assertTrue(_CONFLICT.search(f"a\n{mark}\nb\n"), mark)
        self.assertFalse(_CONFLICT.search("Heading\n=======\n"))


class DecisionTests(SynchronousTestCase):
    """docs/adr: each decision has a number of its own, in its name and in its heading."""

    def test_numbers(self) -> None:
        """They count from 1 without a gap; two branches that took the same one are told."""
        pages = files(".md", os.path.join("docs", "adr"))
        numbers = [int(os.path.basename(page)[:4]) for page in pages]
        self.assertEqual(numbers, list(range(1, len(pages) + 1)))
        for page, number in zip(pages, numbers, strict=True):
            self.assertTrue(read(page).startswith(f"# {number}. "), page)


class LinkTests(SynchronousTestCase):
    """A link in a document leads to a file that is there."""

    def test_every_relative_link_resolves(self) -> None:
        """In every *.md, those to a heading included."""
        found = [b for path in files(".md") for b in broken_links(path, read(path))]
        self.assertEqual([], found)

    def test_a_broken_link_is_noticed(self) -> None:
        """A file that is not there, and a heading that is not."""
        text = "[a](nowhere.md) [b](README.md#nothing) [c](README.md#run-it) [d](https://x.example)"
        self.assertEqual(
            [
                "README.md: nowhere.md is not there",
                "README.md: README.md#nothing has no such heading",
            ],
            broken_links("README.md", text),
        )


class CommandTests(SynchronousTestCase):
    """A command that a page shows can be typed."""

    def test_every_mta_command_parses(self) -> None:
        """Each `mta ...` line of README and docs/operating.md is taken by the command's parser."""
        words = [line[1:] for page in OPERATORS for line in commands(read(page), "mta")]
        self.assertGreater(len(words), 20)
        self.assertEqual([], [said for said in map(refusal, words) if said])

    def test_every_twistd_command_parses(self) -> None:
        """So is what follows `twistd ... mta`."""
        lines = [line for page in OPERATORS for line in commands(read(page), "twistd")]
        self.assertTrue(lines)
        for line in lines:
            options: Any = Options()
            options.parseOptions(line[line.index("mta") + 1 :])
            self.assertTrue(options["config"], line)

    def test_a_wrong_command_is_noticed(self) -> None:
        """A verb that is gone, an option that never was."""
        self.assertIn("nonsense", refusal(["nonsense"]))
        self.assertIn("--all-of-it", refusal(["queue", "retry", "--all-of-it"]))
        self.assertEqual("", refusal(["queue", "retry", "--all"]))

    def test_commands_are_found_where_they_stand(self) -> None:
        """Indented, in a plain fence, with a path and a remark; not in a configuration."""
        text = "    mta status  # why\n```\nbin/mta queue list\n```\n```yaml\nmta: x\n```\nmta is\n"
        self.assertEqual([["bin/mta", "queue", "list"], ["mta", "status"]], commands(text, "mta"))


class ConfigurationTests(SynchronousTestCase):
    """A configuration that a page shows can be used as it stands."""

    def test_every_cluster_manager_has_one_that_loads(self) -> None:
        """docs/failover.md shows one for each cluster resource, and `mta check-config` takes it."""
        shown = [
            body
            for kind, body in _FENCE.findall(read(os.path.join("docs", "failover.md")))
            if kind == "yaml"
        ]
        find = Catalogue().find
        loaded = [load(text, "failover.md", find).cluster.name for text in shown]
        self.assertEqual(["interface", "keepalived", "etcd", "pacemaker"], loaded)

    def test_parts_load_too(self) -> None:
        """What is shown of one block alone loads in the place of that block."""
        fences = _FENCE.findall(read(os.path.join("docs", "failover.md")))
        (whole, *_) = [body for kind, body in fences if kind == "yaml"]
        parts = [body for kind, body in fences if kind == "yaml-part"]
        self.assertEqual(2, len(parts))
        for part in parts:
            (key,) = re.findall(r"^([a-z-]+):", part, re.MULTILINE)
            without = re.sub(rf"^{key}:.*\n(?:[ #].*\n)*", "", whole, flags=re.MULTILINE)
            load(without + part, "failover.md", Catalogue().find)
            with self.assertRaises(ConfigErrors):
                load(without + part.replace("checkpoint", "chekpoint"), "x", Catalogue().find)

    def test_a_mistake_in_one_is_noticed(self) -> None:
        """A key that was renamed since is named with its line."""
        fences = _FENCE.findall(read(os.path.join("docs", "failover.md")))
        text = next(body for kind, body in fences if kind == "yaml")
        with self.assertRaises(ConfigErrors) as caught:
            load(text.replace("takeover-after", "takeover-afer"), "failover.md", Catalogue().find)
        self.assertIn("failover.md:7", str(caught.exception))


class TruthTests(SynchronousTestCase):
    """What the pages list is what there is."""

    def test_the_table_of_rooms_is_the_house_tests(self) -> None:
        """docs/house.md draws the same arrows that tests/test_house.py enforces."""
        words = {"common": COMMON, "implementations": IMPLEMENTATIONS, "nothing": set[str]()}
        drawn = {}
        for room, allowed in re.findall(
            r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", read(os.path.join("docs", "house.md")), re.M
        ):
            targets: set[str] = set()
            for word in allowed.split(", "):
                targets |= words.get(word, {word})
            drawn[room] = targets
        for room in MAY_IMPORT:
            self.assertEqual(MAY_IMPORT[room], drawn.get(room), room)
        self.assertEqual(set(MAY_IMPORT), set(drawn))
        self.assertEqual({"model", "errors", "telemetry", "wire", "cli"}, set(OUTSIDE))

    def test_every_contract_is_named(self) -> None:
        """docs/house.md has each interface of mta/interfaces.py, and no other."""
        contracts = {
            name
            for name, value in vars(mta.interfaces).items()
            if getattr(value, "__module__", "") == "mta.interfaces" and name.startswith("I")
        }
        page = read(os.path.join("docs", "house.md")).partition("## Contracts")[2]
        self.assertEqual(contracts, set(re.findall(r"`(I[A-Z]\w+)`", page)))

    def test_every_metric_is_listed(self) -> None:
        """docs/operating.md has each metric that the sources name, and no other."""
        sources = [
            p for p in files(".py", "mta") if not p.startswith(os.path.join("mta", "testing"))
        ]
        there = {name for p in sources for name in re.findall(r'"(mta_[a-z_]+)"', read(p))}
        there.discard("mta_sts")  # a key of connectors
        listed = re.findall(r"`(mta_[a-z_]+)`", read(os.path.join("docs", "operating.md")))
        self.assertEqual(there, set(listed))
