"""What ``tp2 top`` looks like, with rich: it fits the terminal, whatever its size, and needs no colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tp2.terminal.rows import pair
from tp2.terminal.screen import STATE_STYLES, console, in_bytes, in_words, printable
from tp2.terminal.top import SORTS, Look, View

Row = dict[str, Any]


class _Column(NamedTuple):
    """``sort`` is the order in which this column has its largest or first on top; shown from a width on."""

    heading: str
    text: Callable[[Row], str]
    sort: str = ""
    right: bool = False
    from_width: int = 0


_MAPPINGS: Final = [
    _Column("name", lambda row: str(row["name"]), "name"),
    _Column("address", lambda row: pair(row["address"], row["port"]), "address"),
    _Column("local", lambda row: pair(row["local_address"], row["local_port"]), from_width=120),
    _Column("state", lambda row: str(row["state"]), "state"),
    _Column("open", lambda row: str(row["connections"]), "open", right=True),
    _Column("total", lambda row: str(row["total_connections"]), "total", right=True, from_width=100),
    _Column("sending", lambda row: _rate(row["sent_rate"]), "rate", right=True),
    _Column("receiving", lambda row: _rate(row["received_rate"]), "rate", right=True),
    _Column("sent", lambda row: in_bytes(row["bytes_sent"]), "sent", right=True, from_width=120),
    _Column("received", lambda row: in_bytes(row["bytes_received"]), "received", right=True, from_width=120),
    _Column("last used", lambda row: _time(row["last_used"]), "used", right=True, from_width=120),
]

_RECENT: Final = [
    _Column("time", lambda row: _time(row["at"])),
    _Column("question", lambda row: f"{row['name']} {row['type']}"),
    _Column("who", lambda row: str(row["who"])),
    _Column("ms", lambda row: f"{row['ms']:.1f}", right=True),
    _Column("why", lambda row: str(row["why"]), from_width=120),
]


def is_terminal() -> bool:
    """Whether there is a terminal that can be drawn on."""
    out = Console()
    return out.is_terminal and not out.is_dumb_terminal


def once(look: Look, view: View) -> None:
    """Print it as it is, whole."""
    out = console()
    mappings, recent = look.shown(view)
    out.print(Group(*_head(look, out.width), *_lists(view, mappings, recent, out.width)))


@contextmanager
def screen() -> Iterator[Callable[[Look, View], tuple[View, int]]]:
    """Take the whole terminal; give a function that draws a look.

    It returns the view, with its first row where there is one, and how many mappings there is room for.
    """
    out = Console()
    with Live(console=out, screen=True, auto_refresh=False, vertical_overflow="crop") as live:

        def show(look: Look, view: View) -> tuple[View, int]:
            # What is drawn fills the screen but for nothing, so its size is asked for each time.
            drawn, view, page = _draw(look, view, *out.size)
            live.update(drawn, refresh=True)
            return view, page

        yield show


def _draw(look: Look, view: View, width: int, height: int) -> tuple[RenderableType, View, int]:
    head = _head(look, width)
    mappings, recent = look.shown(view)
    # Besides the rows: a blank line, a heading each, the line between, and the keys.
    others = len(head) + 5
    room = max(0, height - others)
    for_recent = min(len(recent), max(room // 3, room - len(mappings)))
    page = max(1, room - for_recent)
    view = replace(view, first=max(0, min(view.first, len(mappings) - page)))
    rows = mappings[view.first : view.first + page]
    lists = _lists(view, rows, recent[:for_recent], width, count=len(mappings))
    blank = [Text("")] * max(0, height - others - len(rows) - for_recent)
    return Group(*head, *lists, *blank, _foot(view, width)), view, page


def _head(look: Look, width: int) -> list[Text]:
    status = look.status
    cluster, tunnel, dns = status["cluster"], status["tunnel"], status["dns"]
    mappings, connections = status["mappings"], status["connections"]
    state = Text.assemble(
        "tp2 ",
        (status["state"], STATE_STYLES.get(status["state"], "")),
        f"   mode {status['mode']}   up {in_words(status['since'])}   process {status['pid']}",
    )
    synced = "synced" if cluster["synced"] else "not in touch with the API"
    lines = [
        state,
        _labelled("cluster", f"{cluster['context']}, {cluster['services']} services, {synced}", ok=cluster["synced"]),
        _labelled(
            "tunnel",
            f"{tunnel['remote']}: {tunnel['state']}, {tunnel['reconnects']} reconnects",
            ok=tunnel["state"] == "connected",
        ),
        _labelled(
            "dns",
            f"{look.queries:.0f}/s of {dns['queries']} queries: {dns['cluster_answers']} answered,"
            f" {dns['forwarded']} forwarded, {dns['failures']} failed",
        ),
        _labelled(
            "traffic",
            f"{mappings['live']} mappings{_of(mappings['capacity'])}, {connections['open']} connections,"
            f" {in_bytes(connections['bytes_sent'])} sent, {in_bytes(connections['bytes_received'])} received",
        ),
    ]
    canary = status["canary"]
    trouble = canary["why"] if canary and not canary["ok"] else None
    if tunnel["state"] != "connected" and tunnel["last_error"]:
        trouble = tunnel["last_error"]
    if trouble:
        lines.append(_labelled("trouble", trouble, ok=False))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _labelled(label: str, words: str, *, ok: bool = True) -> Text:
    return Text.assemble((f"{label:<9}", "bold"), (printable(words), "" if ok else "red"))


def _of(capacity: int | None) -> str:
    return "" if capacity is None else f" of at most {capacity}"


def _lists(
    view: View, mappings: list[Row], recent: list[Row], width: int, count: int | None = None
) -> list[RenderableType]:
    count = len(mappings) if count is None else count
    words = f" with {' '.join(view.words)!r}" if view.words else ""
    above = f", from the {view.first + 1}. on" if view.first else ""
    return [
        Text(""),
        _table(_MAPPINGS, mappings, width, view.sort) if mappings else _note(f"no mappings{words}", width),
        _note(f"{count} mappings{words}, by {view.sort}{above}; recent DNS questions:", width),
        _table(_RECENT, recent, width) if recent else _note(f"no questions{words}", width),
    ]


def _note(words: str, width: int) -> Text:
    note = Text(printable(words), style="dim")
    note.truncate(width, overflow="ellipsis")
    return note


def _table(columns: list[_Column], rows: list[Row], width: int, sort: str = "") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", width=width)
    for column in columns:
        if column.from_width <= width:
            marked = column.heading + ("*" if sort and column.sort == sort else "")
            # What is long gives way: names and reasons, never figures.
            yields = column.heading in ("name", "question", "why")
            table.add_column(
                marked,
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if yields else None,
            )
    for row in rows:
        style = "red" if row.get("who") in ("failed", "refused") else STATE_STYLES.get(str(row.get("state")), "")
        table.add_row(
            *(Text(printable(column.text(row))) for column in columns if column.from_width <= width), style=style
        )
    return table


def _foot(view: View, width: int) -> Text:
    if view.typing is not None:
        typing = Text.assemble(("filter: ", "bold"), view.typing, ("_", "blink"), "   Enter keep   Esc drop")
        typing.truncate(width, overflow="ellipsis")
        return typing
    keys = [
        ("q", "quit"),
        ("s/S", "sort"),
        ("/", "filter"),
        ("Esc", "all"),
        ("p", "paused" if view.paused else "pause"),
    ]
    line = Text()
    for key, words in [*keys, ("up/down", "scroll")]:
        line.append(key, "reverse").append(f" {words}   ")
    if width >= 140:
        line.append(f"order: {', '.join(SORTS)}", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _rate(count: float) -> str:
    return f"{in_bytes(count)}/s" if count else "-"


def _time(text: str) -> str:
    return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S")
