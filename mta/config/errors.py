"""What is wrong with a configuration: every mistake, one line each, as compilers say it.

Law: one mistake is one line, whatever the file holds: foreign text is neutralised and cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mta.errors import ConfigurationError

LONGEST_MESSAGE = 400
"""Characters; what follows is cut, so that a binary file given by mistake fills no terminal."""


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """`file:line:column: path: message`; lines and columns count from 1."""

    filename: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{clean(self.filename)}:{self.line}:{self.column}"
        if self.path:
            return f"{place}: {clean(self.path)}: {clean(self.message)}"
        return f"{place}: {clean(self.message)}"


class ConfigErrors(ConfigurationError):
    """Every mistake of one configuration, in the order of the file. `str()` is one line each."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes))
        super().__init__("\n".join(map(str, self.mistakes)))


def clean(text: str) -> str:
    """One printable line: what a terminal would act upon stands as an escape."""
    if len(text) > LONGEST_MESSAGE:
        text = text[: LONGEST_MESSAGE - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
