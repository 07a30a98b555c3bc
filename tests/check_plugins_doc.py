"""docs/plugins.md works as it is written: every file and command of it, in order.

Its fences: `sh` is run by bash in a copy of the checkout with a fresh `.venv`; `sh second-terminal`
runs beside until the end of its section; `LANGUAGE PATH` is a file to write; `text` is what the
command before must have printed, line by line in this order, where `...` stands for anything.
Prints PASS and FAIL lines for `make check`.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from environments import ROOT, Daemon, Environment, Failed, copy_sources, greets, report

_FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^## (.*)$", re.MULTILINE)


def matches(expected: str, line: str) -> bool:
    parts = [re.escape(part) for part in expected.strip().split("...")]
    return re.fullmatch(".*".join(parts), line.strip()) is not None


class Page:
    """The page's sections, executed in a copy of the checkout at `work`."""

    def __init__(self, name: str, work: str) -> None:
        with open(os.path.join(ROOT, "docs", f"{name}.md")) as file:
            self._text = file.read()
        self._name = name
        self._work = copy_sources(work)
        self._environment = Environment(os.path.join(self._work, ".venv"))
        self._environment.install("--editable", self._work)
        self._printed = ""
        self._daemons: list[Daemon] = []

    def checks(self) -> list[tuple[str, Callable[[], None]]]:
        found: list[tuple[str, Callable[[], None]]] = []
        heads = list(_SECTION.finditer(self._text))
        for number, head in enumerate(heads):
            end = heads[number + 1].start() if number + 1 < len(heads) else len(self._text)
            fences = _FENCE.findall(self._text[head.end() : end])
            if fences:
                label = re.sub(r"[^a-z0-9]+", "-", head[1].lower()).strip("-")
                found.append((f"{self._name}-doc-{label}", lambda f=fences: self._section(f)))  # type: ignore[misc]
        return found

    def _section(self, fences: list[tuple[str, str, str]]) -> None:
        try:
            for language, label, text in fences:
                self._fence(language, label, text)
        finally:
            while self._daemons:
                self._daemons.pop().stop()

    def _fence(self, language: str, label: str, text: str) -> None:
        if language == "sh" and label == "second-terminal":
            daemon = Daemon(self._environment, "bash", "-c", f"exec {text}", cwd=self._work)
            self._daemons.append(daemon)
            daemon.wait_for(lambda: greets(self._port()), f"listening on port {self._port()}")
        elif language == "sh":
            self._printed = self._environment.run("bash", "-e", "-c", text, cwd=self._work)
        elif language == "text":
            self._compare(text)
        elif label:
            path = os.path.join(self._work, label)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(text)
        else:
            raise Failed(f"a fence of {language} that is neither run nor written: {text[:60]}")

    def _port(self) -> int:
        """The port that the page itself chose."""
        found = re.search(r"--port (\d+)", self._text)
        if found is None:
            raise Failed("the page names no --port")
        return int(found[1])

    def _compare(self, text: str) -> None:
        lines = iter(self._printed.splitlines())
        for expected in filter(str.strip, text.splitlines()):
            if not any(matches(expected, line) for line in lines):
                raise Failed(f"not printed: {expected.strip()!r}, but: {self._printed[-500:]}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="mta-doc-") as work:
        return report(Page("plugins", os.path.join(work, "mta")).checks())


if __name__ == "__main__":
    sys.exit(main())
