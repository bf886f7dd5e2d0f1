"""What the commands show to people: tables, with rich."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table


class Column(NamedTuple):
    """A column of ``tp2 mappings``, shown on terminals of at least ``from_width`` characters."""

    heading: str
    text: Callable[[dict[str, Any]], str]
    justify: Literal["left", "right"] = "left"
    from_width: int = 0


_COLUMNS = [
    Column("name", lambda row: str(row["name"])),
    Column("address", lambda row: _pair(row["address"], row["port"])),
    Column("local", lambda row: _pair(row["local_address"], row["local_port"])),
    Column("state", lambda row: _styled(row["state"])),
    Column("open", lambda row: str(row["connections"]), "right"),
    Column("total", lambda row: str(row["total_connections"]), "right"),
    Column("sent", lambda row: _bytes(row["bytes_sent"]), "right", 100),
    Column("received", lambda row: _bytes(row["bytes_received"]), "right", 100),
    Column("last used", lambda row: _ago(row["last_used"]), "right", 120),
    Column("expires in", lambda row: "-" if row["expires_in"] is None else _duration(row["expires_in"]), "right", 120),
]

_STATE_STYLES = {"active": "green", "ready": "green", "draining": "yellow", "starting": "yellow", "degraded": "red"}


def mappings(answer: dict[str, Any]) -> None:
    """Print the table of ``tp2 mappings``."""
    console = _console()
    rows = sorted(answer["mappings"], key=lambda row: (row["name"], row["address"], row["port"]))
    if not rows:
        console.print("No mappings yet: look a service up by name, and its ports appear here.")
        return
    # A narrow terminal shows what tells mappings apart, whole, rather than all of it in pieces.
    columns = [column for column in _COLUMNS if column.from_width <= console.width]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    console.print(table)


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
    table.add_row("cluster", f"{cluster['context']} at {cluster['server']}: {cluster['services']} services, {synced}")
    if cluster.get("last_error") and not cluster["synced"]:
        table.add_row("", f"[red]{cluster['last_error']}[/]")
    if cluster.get("scope"):
        table.add_row("", f"only the namespaces {', '.join(cluster['scope'])}")
    table.add_row("tunnel", f"{tunnel['remote']}: {tunnel['state']}, {tunnel['reconnects']} reconnects")
    if tunnel.get("through"):
        table.add_row("", f"through {tunnel['through']}")
    if tunnel["last_error"] and tunnel["state"] != "connected":
        table.add_row("", f"[red]{tunnel['last_error']}[/]")
    table.add_row("dns", f"{dns['listen']}, captures {', '.join(dns['captured'])}, asks {', '.join(dns['upstream'])}")
    counts = f"{dns['cluster_answers']} answered, {dns['forwarded']} forwarded, {dns['failures']} failed"
    table.add_row("", f"{dns['queries']} queries: {counts}")
    table.add_row("socks", answer["socks"]["listen"])
    table.add_row("mappings", f"{answer['mappings']['live']} of at most {answer['mappings']['capacity']}")
    _console().print(table)


def _styled(state: str) -> str:
    style = _STATE_STYLES.get(state)
    return f"[{style}]{state}[/]" if style else state


def _pair(address: str, port: int) -> str:
    return f"[{address}]:{port}".replace("[", r"\[") if ":" in address else f"{address}:{port}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _ago(time: str, suffix: str = " ago") -> str:
    passed = datetime.now(UTC) - datetime.fromisoformat(time)
    return _duration(max(0.0, passed.total_seconds())) + suffix


def _console() -> Console:
    """Return the console; where there is no terminal to fit, lines are as long as they need to be."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
