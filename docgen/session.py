"""Draws a recorded terminal session as an SVG that plays once and then stands still, the same on every machine.

The recording is an asciicast (version 2: a line of JSON about the terminal, then one for each piece of output with its
time), which ``scripts/docs --record`` writes. A row appears when it has come to what it says in the end: what a program
drew there meanwhile, such as a spinner, is not shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, Final, cast

import pyte
from pyte.screens import Char

#: A character, in pixels: text is set to this width, since fonts differ.
CELL: Final = (8.4, 19)
MARGIN: Final = 16
BAR: Final = 28

#: Rows that a session may have, and the longest pause that is kept, in seconds: nobody wants to watch a pod start.
ROWS: Final = 200
PAUSE: Final = 1.2

_STYLE: Final = """
    text { font: 14px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d8dee9;
      white-space: pre }
    .paper { fill: #1c2027 } .dot { fill: #4a515e }
    .prompt { fill: #8bd49c } .bold { font-weight: 700 } .dim { opacity: .6 } .command { fill: #ffffff }
    .red { fill: #f07178 } .green { fill: #8bd49c } .brown { fill: #ffcb6b } .blue { fill: #82aaff }
    .magenta { fill: #c792ea } .cyan { fill: #89ddff } .white { fill: #ffffff }
    @keyframes appear { from { opacity: 0 } }
    .row { animation: appear 1ms both }
    @media (prefers-reduced-motion: reduce) { .row { animation: none } }
"""

PROMPT: Final = "$ "


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the terminal: its cells, and the seconds from the start until it has come to them."""

    cells: tuple[Char, ...]
    at: float

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(cell.data for cell in self.cells).rstrip()


def play(cast_file: str) -> list[Row]:
    """Return the rows of an asciicast, and when each came, with long pauses cut short.

    :raises ValueError: it is no asciicast, or has more than :data:`ROWS` rows.
    """
    try:
        head, *events = (json.loads(line) for line in cast_file.splitlines())
        screen = pyte.Screen(head["width"], ROWS)
        pieces = [(float(at), str(data)) for at, kind, data in events if kind == "o"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no asciicast: {type(error).__name__}: {error}") from error
    stream = pyte.Stream(screen)
    seen: dict[int, tuple[tuple[Char, ...], float]] = {}
    clock = before = 0.0
    for at, data in pieces:
        clock += min(at - before, PAUSE)
        before = at
        stream.feed(data)
        for number in screen.dirty:
            cells = tuple(_cells(screen, number))
            if number not in seen or seen[number][0] != cells:
                seen[number] = cells, clock
        screen.dirty.clear()
    rows = [Row(*seen[number]) for number in sorted(seen)]
    while rows and not rows[-1].text:
        rows.pop()
    if len(rows) >= ROWS:
        raise ValueError(f"the session has more than {ROWS} rows")
    return rows


def draw(cast_file: str) -> str:
    """Return the SVG of an asciicast.

    :raises ValueError: as :func:`play` does.
    """
    return "\n".join(_svg(json.loads(cast_file.partition("\n")[0]), play(cast_file))) + "\n"


def _cells(screen: pyte.Screen, number: int) -> Iterator[Char]:
    row = cast(Any, screen.buffer)[number]
    yield from (row[column] for column in range(screen.columns))


def _svg(head: dict[str, Any], rows: list[Row]) -> Iterator[str]:
    width = round(2 * MARGIN + head["width"] * CELL[0])
    height = BAR + len(rows) * CELL[1] + MARGIN
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="title description">'
    )
    yield f'  <title id="title">{escape(head["title"])}</title>'
    yield f'  <desc id="description">{escape(chr(10).join(row.text for row in rows))}</desc>'
    yield f"  <style>{_STYLE}  </style>"
    yield f'  <rect class="paper" width="{width}" height="{height}" rx="8"/>'
    for number in range(3):
        yield f'  <circle class="dot" cx="{MARGIN + 4 + 16 * number}" cy="15" r="4.5"/>'
    for number, row in enumerate(rows):
        if row.text:
            yield from _row(row, BAR + (number + 0.7) * CELL[1])
    yield "</svg>"


def _row(row: Row, y: float) -> Iterator[str]:
    yield f'  <g class="row" style="animation-delay: {row.at:.2f}s">'
    command = row.text.startswith(PROMPT)
    column = 0
    for (kind, _), cells in groupby(
        zip(row.cells, range(len(row.cells)), strict=True),
        lambda each: (_kind(each[0], command, each[1]), each[0].data == " "),
    ):
        data = "".join(cell.data for cell, _ in cells)
        if data.strip():
            x = MARGIN + column * CELL[0]
            names = f' class="{kind}"' if kind else ""
            yield (
                f'    <text x="{x:.1f}" y="{y:.1f}" textLength="{len(data) * CELL[0]:.1f}"{names}>{escape(data)}</text>'
            )
        column += len(data)
    yield "  </g>"


def _kind(cell: Char, command: bool, column: int) -> str:
    """Return the classes of a character, which the style gives a colour."""
    if command:
        return "prompt" if column < len(PROMPT) else "command"
    names = [] if cell.fg == "default" else [cell.fg.removeprefix("bright")]
    return " ".join([*names, *(["bold"] if cell.bold else [])])
