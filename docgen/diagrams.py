"""Draws the diagrams of docs/diagrams: a description in TOML becomes an SVG that is the same on every machine.

A description has boxes on a grid, groups around them, and arrows between them. An arrow with a ``step`` is numbered in
the order of the file, and its words stand in a legend below; text is never measured, since fonts differ.

==========  ====================================================================================================
table       keys
==========  ====================================================================================================
(top)       ``title``, ``description`` (for those who do not see it), ``columns``, ``rows``
``group``   ``label``, ``from`` and ``to`` (cells: column, row), ``kind``
``box``     ``id``, ``at`` (a cell), ``title``, ``text`` (lines), ``kind``
``arrow``   ``from``, ``to`` (a box and its side: ``dns.top``, ``dns.top.30`` for 30 per cent of the way along it),
            ``step``, ``via`` (``x=`` or ``y=`` a position between cells, where it is to bend), ``dashed``
==========  ====================================================================================================

The kinds are ``you``, ``root``, ``kernel``, ``cluster`` and ``outside``; the style of each is below.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any, Final

CELL: Final = (148, 92)
GAP: Final = (46, 56)
MARGIN: Final = 34
LINE: Final = 22

_STYLE: Final = """
    svg { font-family: "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; color: #1d2733 }
    .paper { fill: #ffffff }
    text { fill: currentColor; font-size: 12px }
    .title { font-size: 13.5px; font-weight: 600 }
    .label { font-size: 12px; font-weight: 600; opacity: .72 }
    .legend { font-size: 13.5px }
    .group { fill: none; stroke: currentColor; stroke-opacity: .35; stroke-dasharray: 2 4 }
    .box { stroke-width: 1.4 }
    .you { fill: #e4f0ff; stroke: #2f6fbf }
    .root { fill: #ffe6dc; stroke: #c2501d }
    .kernel { fill: #f0ecfb; stroke: #6b4fc0 }
    .cluster { fill: #e3f5ea; stroke: #23834c }
    .outside { fill: #f3f3f3; stroke: #777777 }
    .arrow { fill: none; stroke: currentColor; stroke-width: 1.5 }
    .dashed { stroke-dasharray: 5 4 }
    .head { fill: currentColor }
    .step { fill: #1d2733 }
    .number { fill: #ffffff; font-size: 11.5px; font-weight: 700 }
    @media (prefers-color-scheme: dark) {
      svg { color: #e4e8ee }
      .paper { fill: #1c2027 }
      .you { fill: #16304f } .root { fill: #4a2313 } .kernel { fill: #2b2350 } .cluster { fill: #143a24 }
      .outside { fill: #2d3036 }
      .step { fill: #e4e8ee } .number { fill: #1c2027 }
    }
"""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Box:
    x: float
    y: float

    def at(self, side: str, share: float) -> Point:
        """Return the point *share* (0 to 1) along a side, from the left or from the top."""
        width, height = CELL
        return {
            "left": (self.x, self.y + height * share),
            "right": (self.x + width, self.y + height * share),
            "top": (self.x + width * share, self.y),
            "bottom": (self.x + width * share, self.y + height),
        }[side]


def draw(description: str) -> str:
    """Return the SVG for a *description* in TOML.

    :raises ValueError: it is not of the form above.
    """
    try:
        return "\n".join(_svg(tomllib.loads(description))) + "\n"
    except (KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"the diagram cannot be drawn: {type(error).__name__}: {error}") from error


def _svg(diagram: dict[str, Any]) -> Iterator[str]:
    steps = [arrow for arrow in diagram["arrow"] if "step" in arrow]
    width = 2 * MARGIN + diagram["columns"] * CELL[0] + (diagram["columns"] - 1) * GAP[0]
    height = 2 * MARGIN + diagram["rows"] * CELL[1] + (diagram["rows"] - 1) * GAP[1]
    legend = height + 4
    whole = legend + LINE * len(steps) + (16 if steps else 0)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {whole}" width="{width}" height="{whole}" '
        f'role="img" aria-labelledby="title description">'
    )
    yield f'  <title id="title">{escape(diagram["title"])}</title>'
    yield f'  <desc id="description">{escape(diagram["description"])}</desc>'
    yield f"  <style>{_STYLE}  </style>"
    yield (
        '  <marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path class="head" d="M0 1 9.5 5 0 9z"/></marker>'
    )
    yield f'  <rect class="paper" width="{width}" height="{whole}" rx="8"/>'
    boxes = {box["id"]: _Box(*_corner(*box["at"])) for box in diagram["box"]}
    for group in diagram.get("group", ()):
        yield from _group(group)
    for arrow in diagram["arrow"]:
        yield from _line(_way(arrow, boxes), dashed=arrow.get("dashed", False))
    for box in diagram["box"]:
        yield from _box(box, boxes[box["id"]])
    for number, arrow in enumerate(steps, 1):
        yield from _badge(_middle(_way(arrow, boxes)), number)
        y = legend + LINE * (number - 1) + 8
        yield from _badge((MARGIN + 9, y), number)
        yield f'  <text class="legend" x="{MARGIN + 28}" y="{y + 5}">{escape(arrow["step"])}</text>'
    yield "</svg>"


def _corner(column: float, row: float) -> Point:
    return MARGIN + column * (CELL[0] + GAP[0]), MARGIN + row * (CELL[1] + GAP[1])


def _group(group: dict[str, Any]) -> Iterator[str]:
    x, y = _corner(*group["from"])
    right, bottom = _corner(*group["to"])
    around = 14
    width, height = right + CELL[0] - x + 2 * around, bottom + CELL[1] - y + 2 * around + 8
    yield f'  <rect class="group" x="{x - around}" y="{y - around - 8}" width="{width}" height="{height}" rx="10"/>'
    yield f'  <text class="label" x="{x - around + 10}" y="{y - 7}">{escape(group["label"])}</text>'


def _box(box: dict[str, Any], place: _Box) -> Iterator[str]:
    yield (
        f'  <rect class="box {escape(box["kind"])}" x="{place.x}" y="{place.y}" '
        f'width="{CELL[0]}" height="{CELL[1]}" rx="8"/>'
    )
    lines = [("title", box["title"]), *(("", text) for text in box.get("text", ()))]
    x, y = place.x + CELL[0] / 2, place.y + CELL[1] / 2 - 8.5 * (len(lines) - 1) + 4.5
    for number, (kind, text) in enumerate(lines):
        style = f' class="{kind}"' if kind else ""
        yield f'  <text{style} x="{x:g}" y="{y + 17 * number:g}" text-anchor="middle">{escape(text)}</text>'


def _way(arrow: dict[str, Any], boxes: dict[str, _Box]) -> list[Point]:
    (start, leaving), (end, arriving) = (_end(arrow[key], boxes) for key in ("from", "to"))
    via = arrow.get("via")
    if via is not None:
        axis, _, place = via.partition("=")
        x, y = _between(float(place))
        bends = [(x, start[1]), (x, end[1])] if axis == "x" else [(start[0], y), (end[0], y)]
    elif start[0] == end[0] or start[1] == end[1]:
        bends = []
    elif leaving in ("left", "right") and arriving in ("left", "right"):
        bends = [((start[0] + end[0]) / 2, start[1]), ((start[0] + end[0]) / 2, end[1])]
    elif leaving in ("top", "bottom") and arriving in ("top", "bottom"):
        bends = [(start[0], (start[1] + end[1]) / 2), (end[0], (start[1] + end[1]) / 2)]
    else:
        bends = [(end[0], start[1])] if leaving in ("left", "right") else [(start[0], end[1])]
    return [start, *bends, end]


def _end(text: str, boxes: dict[str, _Box]) -> tuple[Point, str]:
    name, side, *share = text.split(".")
    return boxes[name].at(side, float(share[0]) / 100 if share else 0.5), side


def _between(place: float) -> Point:
    """Return the coordinates of a position in cells, where the half between two cells is the middle of the gap."""
    x, y = _corner(place, place)
    return x + CELL[0] / 2, y + CELL[1] / 2


def _line(way: list[Point], *, dashed: bool) -> Iterator[str]:
    path = "L".join(f"{x:g} {y:g}" for x, y in way)
    yield f'  <path class="arrow{" dashed" if dashed else ""}" d="M{path}" marker-end="url(#head)"/>'


def _middle(way: list[Point]) -> Point:
    """Return the middle of the longest stretch."""
    stretches = [(abs(a[0] - b[0]) + abs(a[1] - b[1]), a, b) for a, b in itertools.pairwise(way)]
    _, a, b = max(stretches, key=lambda stretch: stretch[0])
    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2


def _badge(place: Point, number: int) -> Iterator[str]:
    x, y = place
    yield f'  <circle class="step" cx="{x:g}" cy="{y:g}" r="9"/>'
    yield f'  <text class="number" x="{x:g}" y="{y + 4:g}" text-anchor="middle">{number}</text>'
