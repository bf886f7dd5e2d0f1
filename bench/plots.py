"""Draws what ``bench/results`` holds. scripts/bench runs it with its peers' Python: ``bench.plots RESULTS PLOTS``.

The same results make the same files, octet by octet.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pygal
from pygal.style import Style

Row = dict[str, Any]

REDSOCKS: Final = "redsocks + ssh -D"
#: The contenders that are drawn, and their colours, the same in every plot.
WAYS: Final = {
    REDSOCKS: "#9aa0a6",
    "sshuttle": "#5f6368",
    "tp2 portmap": "#1a73e8",
    "tp2 origdst": "#12a4af",
    "tp2 through the API": "#e8710a",
}

#: For the measures that the layout is made with; what is drawn looks as :data:`_LOOKS` says.
_STYLE: Final = Style(
    label_font_size=13, major_label_font_size=13, legend_font_size=13, title_font_size=16, value_font_size=10
)

_LOOKS: Final = """
text { font-family: Helvetica, Arial, sans-serif; font-size: 13px; fill: #202124; stroke: none; }
.title { font-size: 16px; text-anchor: middle; }
.axis.y text { text-anchor: end; }
.axis.x text { text-anchor: middle; }
.text-overlay text { font-size: 10px; text-anchor: middle; }
.background { fill: #ffffff; }
.line { stroke: #dadce0; fill: none; }
"""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _chart(kind: type[Any], title: str, **options: Any) -> Any:
    return kind(
        title=title,
        style=_STYLE,
        no_prefix=True,
        print_values_position="top",
        truncate_label=-1,
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        width=880,
        height=390,
        value_formatter=_number,
        **options,
    )


def _bars(title: str, rows: Sequence[Row], figures: dict[str, str], value: Callable[[Row], float | None]) -> Any:
    """Bars in groups: *figures* says which ones by their names, and what stands below them."""
    chart = _chart(pygal.Bar, title, include_x_axis=True, print_values=True)
    found = {(row["contender"], row["figure"]): value(row) for row in rows}
    chart.x_labels = list(figures.values())
    for way in WAYS:
        values = [found.get((way, figure)) for figure in figures]
        if any(value is not None for value in values):
            chart.add(way, values)
    return chart


def _ratio(row: Row) -> float | None:
    return 1.0 if row["contender"] == REDSOCKS else row["ratio_to"].get(REDSOCKS)


def _median(row: Row) -> float:
    return float(row["median"])


def path(rows: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """The byte path."""
    yield (
        "path",
        _bars(
            "Times what redsocks + ssh -D does (more is better)",
            rows,
            {
                "bulk up": "bulk up",
                "bulk down": "bulk down",
                "bulk up at 80 ms": "up, 80 ms",
                "bulk down at 80 ms": "down, 80 ms",
                "new connections": "connections/s",
                "kept-alive requests": "requests/s",
            },
            _ratio,
        ),
    )
    yield (
        "path-bulk",
        _bars(
            "Bulk transfers, Gbit/s (more is better)",
            rows,
            {
                f"bulk {where}{link}": f"{where}{words}"
                for link, words in (("", ""), (" at 20 ms", ", 20 ms"), (" at 80 ms", ", 80 ms"))
                for where in ("up", "down")
            },
            _median,
        ),
    )
    yield (
        "path-beside",
        _bars(
            "p99 of a small request, ms (less is better)",
            rows,
            {
                "small request, nothing beside it, p99": "nothing beside it",
                "small request beside a download, p99": "beside a download",
                "small request beside an upload, p99": "beside an upload",
            },
            _median,
        ),
    )


def start(rows: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """Start and stop."""
    figures = {row["figure"]: row["figure"] for row in rows}
    labels = ("first page by name", "down, or kill: rules gone", "kill: rules gone")
    yield "start", _bars("Start and stop, s (less is better)", rows, dict(zip(figures, labels, strict=True)), _median)


def soak(rows: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """Memory from rest to rest."""
    chart = _chart(pygal.Line, "Soak: memory of the daemon at rest, MB, after each round of work", include_x_axis=True)
    lines = {row["contender"]: row["values"] for row in rows if row["figure"] == "memory of the daemon at rest"}
    chart.x_labels = [str(number) for number in range(1, 1 + max(map(len, lines.values()), default=0))]
    for way in WAYS:
        if way in lines:
            chart.add(way, lines[way])
    yield "soak", chart


DRAWERS: Final = {"path": path, "start": start, "soak": soak}


def render(chart: Any) -> str:
    """Return the picture alone: what would answer to a mouse is left out, and so is when it was drawn."""
    root = chart.render_tree()
    root.attrib.pop("id", None)
    root.set("width", root.get("viewBox").split()[2])
    root.set("height", root.get("viewBox").split()[3])
    for parent in list(root.iter()):
        for child in list(parent):
            idle = "tooltip-overlay" in (child.get("class") or "")
            # A comment's tag is a function.
            tag = child.tag if isinstance(child.tag, str) else "comment"
            if idle or tag in ("comment", "script", "desc"):
                parent.remove(child)
            elif tag == "style":
                child.text = _LOOKS + "".join(
                    f".color-{number} {{ fill: {colour}; }}\n"
                    f".series.color-{number} .line {{ stroke: {colour}; stroke-width: 2; }}\n"
                    for number, colour in enumerate(WAYS[options["title"]] for _, options in chart.raw_series)
                )
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def main(results: Path, plots: Path) -> None:
    """Draw everything there is."""
    plots.mkdir(exist_ok=True)
    for bench, drawer in DRAWERS.items():
        file = results / f"{bench}.json"
        if file.exists():
            for name, chart in drawer(json.loads(file.read_text(encoding="utf-8"))["rows"]):
                (plots / f"{name}.svg").write_text(render(chart), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
