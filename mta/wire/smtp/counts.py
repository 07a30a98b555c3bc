"""How often each command was said on an association, as its line in the log tells it.

Law: the words are those of Postfix's disconnect line, which log readers know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mta.wire.smtp.states import Verb


def tail(counts: Mapping[Verb | None, Sequence[int]]) -> str:
    """`ehlo=1 mail=1 rcpt=0/1 commands=2/3`; `counts`: verb (None: unknown) -> accepted, said."""
    accepted, said = (sum(count[i] for count in counts.values()) for i in (0, 1))
    words = [
        f"{'unknown' if verb is None else verb.value.lower()}={_fraction(*count)}"
        for verb, count in counts.items()
    ]
    return " ".join([*words, f"commands={_fraction(accepted, said)}"])


def _fraction(accepted: int, said: int) -> str:
    return str(said) if accepted == said else f"{accepted}/{said}"
