"""On which terms a connector speaks TLS with one destination, and who says so.

Law: pure. The most specific exception counts alone: nothing of the connector's own `tls`, nor of a
less specific exception, is added to it. What else has a say in a destination's terms joins in
`choose`, and may only make them stronger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Word = Literal["none", "opportunistic", "dane", "require", "verify"]
Version = Literal["1.2", "1.3"]


class TlsTerms(NamedTuple):
    """`names` are whom a certificate may be for under `verify`, in place of the server's own name:
    host names, and `*.example.com` for every name below it. `minimum` is the oldest version, ""
    that of the block `tls`. `why` names the key that decided.
    """

    word: Word
    names: tuple[str, ...] = ()
    minimum: str = ""
    why: str = "tls"

    @property
    def is_exception(self) -> bool:
        return self.why != "tls"

    def __str__(self) -> str:
        names = f" for {' or '.join(self.names)}" if self.names else ""
        minimum = f", TLS {self.minimum} at least" if self.minimum else ""
        return f"{self.word}{names}{minimum}"


def choose(word: Word, exceptions: Mapping[str, TlsTerms], domain: str) -> TlsTerms:
    """The terms for `domain` (A-labels, lower case; "": it has no name), as NextHop says it.

    `word` is the connector's, `exceptions` by their patterns: example.com, *.example.com.
    """
    if exceptions:
        found = exceptions.get(domain)
        above = domain
        while found is None and "." in above:
            above = above.partition(".")[2]
            found = exceptions.get(f"*.{above}")
        if found is not None:
            return found
    return TlsTerms(word)
