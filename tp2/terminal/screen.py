"""What the commands show to people: tables, with rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tp2.terminal.rows import pair


class Column(NamedTuple):
    """A column of ``tp2 mappings``, shown on terminals of at least ``from_width`` characters."""

    heading: str
    text: Callable[[dict[str, Any]], str]
    justify: Literal["left", "right"] = "left"
    from_width: int = 0


_COLUMNS = [
    Column("name", lambda row: _safe(row["name"])),
    Column("address", lambda row: _pair(row["address"], row["port"])),
    Column("local", lambda row: _pair(row["local_address"], row["local_port"]), from_width=60),
    Column("state", lambda row: _styled(row["state"])),
    Column("open", lambda row: str(row["connections"]), "right"),
    Column("total", lambda row: str(row["total_connections"]), "right", 60),
    Column("sent", lambda row: in_bytes(row["bytes_sent"]), "right", 100),
    Column("received", lambda row: in_bytes(row["bytes_received"]), "right", 100),
    Column("last used", lambda row: _ago(row["last_used"]), "right", 120),
    Column("expires in", lambda row: "-" if row["expires_in"] is None else _duration(row["expires_in"]), "right", 120),
]

#: How states are shown, where there are colours.
STATE_STYLES = {
    "active": "green",
    "pinned": "cyan",
    "ready": "green",
    "draining": "yellow",
    "starting": "yellow",
    "degraded": "red",
}


#: Characters that a rate needs with the space before it.
_WIDTH_OF_RATES = 12

#: What is shown besides while they are watched.
_RATES = [
    Column("sending", lambda row: _rate(row["sent_rate"]), "right"),
    Column("receiving", lambda row: _rate(row["received_rate"]), "right"),
]


def mappings(answer: dict[str, Any], *, filtered: bool = False) -> None:
    """Print the table of ``tp2 mappings``.

    :param filtered: whether there may be others that were not asked for.
    """
    out = console()
    out.print(_mappings(answer, out, filtered=filtered))


@contextmanager
def live_mappings(*, filtered: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that shows an answer in the place of the one before; where there is no terminal, below it."""
    out = console()
    if not out.is_terminal:
        yield lambda answer: out.print(_mappings(answer, out, filtered=filtered))
        return
    with Live(console=out, auto_refresh=False, vertical_overflow="ellipsis") as live:

        def show(answer: dict[str, Any]) -> None:
            live.update(_mappings(answer, out, filtered=filtered), refresh=True)

        yield show


def _mappings(answer: dict[str, Any], console: Console, *, filtered: bool) -> Table | str:
    rows = answer["mappings"]
    if not rows:
        if filtered:
            return "No such mapping."
        if answer["mode"] == "origdst":
            return "No connections yet: each destination appears here with its first."
        return "No mappings yet: look a service up by name, and its ports appear here."
    # A narrow terminal shows what tells mappings apart, whole, rather than all of it in pieces.
    rates = _RATES if "sent_rate" in rows[0] else []
    columns = [column for column in _COLUMNS if column.from_width <= console.width - _WIDTH_OF_RATES * len(rates)]
    at = next((i for i, column in enumerate(columns) if column.heading == "sent"), len(columns))
    columns[at:at] = rates
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    return table


def status(answer: dict[str, Any]) -> None:
    """Print the summary of ``tp2 status``."""
    cluster, tunnel, dns = answer["cluster"], answer["tunnel"], answer["dns"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row(
        "state",
        f"{_styled(answer['state'])}, mode {answer['mode']}, process {answer['pid']}, up {_ago(answer['since'], '')}",
    )
    synced = "synced" if cluster["synced"] else "[red]not in touch with the API[/]"
    if not cluster["synced"] and cluster.get("as_of"):
        synced += f", answers as of {_ago(cluster['as_of'])}"
    where = f"{_safe(cluster['context'])} at {_safe(cluster['server'])}"
    table.add_row("cluster", f"{where}: {cluster['services']} services, {synced}")
    if cluster.get("last_error") and not cluster["synced"]:
        table.add_row("", f"[red]{_safe(cluster['last_error'])}[/]")
    if cluster.get("scope"):
        table.add_row("", f"only the namespaces {', '.join(cluster['scope'])}")
    table.add_row("tunnel", f"{_safe(tunnel['remote'])}: {tunnel['state']}, {tunnel['reconnects']} reconnects")
    if tunnel.get("through"):
        table.add_row("", f"through {_safe(tunnel['through'])}")
    if tunnel["last_error"] and tunnel["state"] != "connected":
        table.add_row("", f"[red]{_safe(tunnel['last_error'])}[/]")
    canary = answer.get("canary")
    if canary and not canary["ok"]:
        table.add_row("test", f"[red]{_safe(canary['why'])}[/]")
        table.add_row("", _safe(canary["remedy"]))
    hears = f"captures {', '.join(dns['captured'])}" if dns["captured"] else "hears what is below the cluster's domains"
    table.add_row("dns", _safe(f"{dns['listen']}, {hears}, asks {', '.join(dns['upstream'])}"))
    counts = f"{dns['cluster_answers']} answered, {dns['forwarded']} forwarded, {dns['failures']} failed"
    table.add_row("", f"{dns['queries']} queries: {counts}")
    table.add_row("socks", _safe(answer["socks"]["listen"]))
    _add_capture(table, answer)
    console().print(table)


def configuration(answer: dict[str, Any]) -> None:
    """Print the table of ``tp2 config``."""
    out = console()
    if (file := answer["file"]) is not None:
        out.print(f"file: {file['path']}{'' if file['exists'] else ' (there is none)'}", markup=False)
    out.print(f"runtime directory: {answer['runtime_dir']}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("option", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for name, row in answer["settings"].items():
        value, origin = row["value"], row["origin"]
        # Two have a name of their own that says which they are.
        source = origin if origin and row["source"] in ("flag", "environment", "file") else row["source"]
        source = f"{source}: {origin}" if origin and source != origin else source
        table.add_row(
            name,
            Text(row["words"], style="dim") if row["words"] else Text(_written(value)),
            Text(source, style="" if row["source"] == "default" else "cyan"),
        )
    out.print(table)


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _add_capture(table: Table, answer: dict[str, Any]) -> None:
    mappings, capture = answer["mappings"], answer["capture"]
    if mappings["capacity"] is None:
        table.add_row("capture", f"{capture['addresses']} addresses, {mappings['live']} destinations in use")
    else:
        table.add_row("mappings", f"{mappings['live']} of at most {mappings['capacity']}")
    if mappings["failed_lookups"]:
        words = f"{mappings['failed_lookups']} lookups failed for want of room, the last one"
        table.add_row("", f"[red]{words} {_ago(mappings['last_failed'])}: {_safe(mappings['why'])}[/]")
    refused = capture["refused"]
    if refused["connections"]:
        most = ", ".join(
            f"{escape(pair(row['address'], row['port']))} ({row['connections']})" for row in refused["destinations"]
        )
        table.add_row("refused", f"[yellow]{refused['connections']} connections[/] that nothing is mapped for: {most}")
    for group in capture["left_alone"]:
        more = f" and {group['count'] - len(group['addresses'])} more"
        named = ", ".join(group["addresses"]) + (more if group["count"] > len(group["addresses"]) else "")
        table.add_row("left alone", _safe(f"{named}: {group['why']}"))
    if capture["containers"]:
        table.add_row("containers", ", ".join(capture["containers"]))


def _styled(state: str) -> str:
    style = STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def _pair(address: str, port: int) -> str:
    return escape(pair(address, port))


def _rate(count: float) -> str:
    return f"{in_bytes(count)}/s" if count else "-"


def printable(text: object) -> str:
    """Return *text* without what a terminal would take for orders: some of it comes from servers."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def _safe(text: object) -> str:
    """Return *text* so that neither the terminal nor rich's markup takes any of it for something else."""
    return escape(printable(text))


def in_bytes(count: float) -> str:
    """Return *count* with a unit of bytes, in about four characters."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def in_words(time: str) -> str:
    """Return how long ago *time*, RFC 3339, was."""
    return _ago(time, "")


def _ago(time: str, suffix: str = " ago") -> str:
    passed = datetime.now(UTC) - datetime.fromisoformat(time)
    return _duration(max(0.0, passed.total_seconds())) + suffix


def console() -> Console:
    """Return the console of standard output; without a terminal to fit, lines are as long as they need to be."""
    out = Console()
    return out if out.is_terminal else Console(width=200)
