"""The ownership machine as a picture (SVG), drawn from the table that runs.

Law: where a state stands is chosen here; which arrows there are, and what they say, comes from the
table alone. An arrow that all states of a frame share is drawn once, from the frame. What a state
does not react to is not drawn.
"""

from __future__ import annotations

import math
from html import escape

from mta.cluster.ownership import TABLE, State

WIDTH, HEIGHT = 950, 690
BOX_WIDTH, BOX_HEIGHT = 150, 38
LETTER_WIDTH = 5.6
"""Of the words on an arrow, at 11 px."""
PLACES: dict[State, tuple[int, int]] = {
    State.DOWN: (175, 40),
    State.STANDBY: (175, 130),
    State.CLAIMED: (175, 240),
    State.FENCED_OTHERS: (175, 310),
    State.PUBLISHED: (175, 380),
    State.RECOVERED: (175, 450),
    State.SEALED: (175, 520),
    State.ONLINE: (175, 630),
    State.SUSPENDED: (520, 520),
    State.DRAINING: (520, 630),
    State.RELEASING: (520, 240),
    State.LOST: (850, 380),
}
"""The centre of each state's box."""
UP = (State.CLAIMED, State.FENCED_OTHERS, State.PUBLISHED, State.RECOVERED, State.SEALED)
TRYING = UP[:2]
PROMISED = UP[2:]
HOLDING = (*UP, State.ONLINE, State.SUSPENDED, State.DRAINING, State.RELEASING)
FRAMES: dict[str, tuple[tuple[State, ...], int]] = {
    "holds a grant": (HOLDING, 40),
    "the way up": (UP, 16),
    "": (PROMISED, 6),
}
"""Caption, the states inside, and by how much the frame is wider than their boxes."""
BENDS: dict[tuple[str, str], tuple[tuple[int, int], ...]] = {
    ("LOST", "STANDBY"): ((850, 130),),
    ("RELEASING", "STANDBY"): ((520, 142),),
    ("CLAIMED", "STANDBY"): ((48, 240), (48, 140)),
    ("FENCED_OTHERS", "STANDBY"): ((24, 310), (24, 120)),
    ("DRAINING", "RELEASING"): ((614, 630), (614, 240)),
}
"""Arrows that would run through a box otherwise."""
KINDS = {
    State.ONLINE: "good",
    State.LOST: "bad",
    State.STANDBY: "rest",
    State.DOWN: "rest",
}

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_STYLE = (
    "text{font:12px sans-serif;fill:#222}"
    ".state{font-weight:bold;text-anchor:middle}"
    ".said{font-size:11px;text-anchor:middle}"
    ".caption{font-size:11px;fill:#777;text-anchor:end}"
    "rect{fill:#eef3fa;stroke:#5b7aa5;stroke-width:1.3;rx:7}"
    "rect.good{fill:#e3f4e4;stroke:#3e8e41}"
    "rect.bad{fill:#fbe4e2;stroke:#b3392f}"
    "rect.rest{fill:#f3f3f3;stroke:#888}"
    "rect.under{fill:#fff;stroke:none;rx:0}"
    "rect.frame{fill:none;stroke:#bbb;stroke-dasharray:5 4}"
    "path{fill:none;stroke:#555;stroke-width:1.2;marker-end:url(#tip)}"
)


def draw() -> str:
    """The whole picture."""
    boxes = {state.name: _box(state) for state in State}
    for caption, (states, wider) in FRAMES.items():
        boxes[f"frame {caption}"] = _around(states, wider)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">',
        "<title>Ownership of the virtual server</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L10 5L0 10z" style="fill:#555;stroke:none"/>'
        "</marker></defs>",
        f'<rect x="0" y="0" width="{WIDTH}" height="{HEIGHT}" style="fill:#fff;stroke:none;rx:0"/>',
    ]
    for caption in FRAMES:
        left, top, right, bottom = boxes[f"frame {caption}"]
        lines.append(_rect((left, top, right, bottom), "frame"))
        lines.append(
            f'<text class="caption" x="{right - 8:g}" y="{top + 14:g}">{escape(caption)}</text>'
        )
    arrows = collected()
    for (before, after), said in arrows.items():
        lines += _arrow(boxes, before, after, ", ".join(said), (after, before) in arrows)
    for state in State:
        x, y = PLACES[state]
        lines.append(_rect(_box(state), KINDS.get(state, "")))
        lines.append(f'<text class="state" x="{x}" y="{y + 4}">{_words(state.name)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def collected() -> dict[tuple[str, str], list[str]]:
    """(box before, state after) -> what leads there; a frame stands for all of its states."""
    left = {
        (before.name, heard.name): after.name
        for (before, heard), (after, _) in TABLE.items()
        if before is not after
    }
    found: dict[tuple[str, str], list[str]] = {}
    for caption, (states, _) in FRAMES.items():
        names = [state.name for state in states]
        for heard in dict.fromkeys(heard for _, heard in left):
            goals = {left.get((name, heard)) for name in names}
            if len(goals) == 1 and None not in goals:
                (goal,) = goals
                found.setdefault((f"frame {caption}", str(goal)), []).append(_words(heard))
                for name in names:
                    del left[name, heard]
    for (before, heard), after in left.items():
        found.setdefault((before, after), []).append(_words(heard))
    return found


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


def _box(state: State) -> Box:
    x, y = PLACES[state]
    return (
        x - BOX_WIDTH / 2,
        y - BOX_HEIGHT / 2,
        x + BOX_WIDTH / 2,
        y + BOX_HEIGHT / 2,
    )


def _around(states: tuple[State, ...], wider: int) -> Box:
    boxes = [_box(state) for state in states]
    return (
        min(b[0] for b in boxes) - wider,
        min(b[1] for b in boxes) - wider,
        max(b[2] for b in boxes) + wider,
        max(b[3] for b in boxes) + wider,
    )


def _rect(box: Box, kind: str) -> str:
    left, top, right, bottom = box
    return (
        f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{right - left:g}" '
        f'height="{bottom - top:g}"/>'
    )


def _arrow(boxes: dict[str, Box], before: str, after: str, said: str, two_ways: bool) -> list[str]:
    start, end = boxes[before], boxes[after]
    bends = BENDS.get((before, after), ())
    first = bends[0] if bends else _nearest(end, start)
    last = bends[-1] if bends else _nearest(start, end)
    points = [_edge(start, first), *bends, _edge(end, last)]
    aside = 0.0
    if two_ways and not bends:
        (x1, y1), (x2, y2) = points
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        dx, dy = -(y2 - y1) / length * 11, (x2 - x1) / length * 11
        points = [(x1 + dx, y1 + dy), (x2 + dx, y2 + dy)]
        if abs(x2 - x1) < BOX_HEIGHT:  # upright: the words stand beside each other
            aside = math.copysign(16, dx)
    middle = len(points) // 2
    (x1, y1), (x2, y2) = points[middle - 1], points[middle]
    path = "L".join(f"{x:.0f} {y:.0f}" for x, y in points)
    x, y = (x1 + x2) / 2 + aside, (y1 + y2) / 2
    wide = len(said) * LETTER_WIDTH + 6
    return [
        f'<path d="M{path}"/>',
        _rect((round(x - wide / 2), round(y - 7), round(x + wide / 2), round(y + 7)), "under"),
        f'<text class="said" x="{x:.0f}" y="{y + 4:.0f}">{escape(said)}</text>',
    ]


def _nearest(of: Box, to: Box) -> tuple[float, float]:
    """The point of `of`'s middle lines that lies nearest to the middle of `to`."""
    x, y = (to[0] + to[2]) / 2, (to[1] + to[3]) / 2
    return min(max(x, of[0]), of[2]), min(max(y, of[1]), of[3])


def _edge(box: Box, towards: tuple[float, float]) -> tuple[float, float]:
    """Where a line from inside of the box to `towards` crosses its border."""
    x = min(max(towards[0], box[0] + 12), box[2] - 12)
    y = min(max(towards[1], box[1] + 8), box[3] - 8)
    if towards[0] < box[0]:
        x = box[0]
    elif towards[0] > box[2]:
        x = box[2]
    if towards[1] < box[1]:
        y = box[1]
    elif towards[1] > box[3]:
        y = box[3]
    return x, y
