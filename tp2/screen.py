"""What the commands show to people: tables, with rich."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_STATE_STYLES = {"active": "green", "ready": "green", "draining": "yellow", "starting": "yellow", "degraded": "red"}


def mappings(answer: dict[str, Any]) -> None:
    """Print the table of ``tp2 mappings``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "address", "local", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("open", "total", "sent", "received", "last used", "expires in"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = sorted(answer["mappings"], key=lambda row: (row["name"], row["address"], row["port"]))
    for row in rows:
        table.add_row(
            row["name"],
            _pair(row["address"], row["port"]),
            _pair(row["local_address"], row["local_port"]),
            _styled(row["state"]),
            str(row["connections"]),
            str(row["total_connections"]),
            _bytes(row["bytes_sent"]),
            _bytes(row["bytes_received"]),
            _ago(row["last_used"]),
            "-" if row["expires_in"] is None else _duration(row["expires_in"]),
        )
    console = Console()
    if rows:
        console.print(table)
    else:
        console.print("No mappings yet: look a service up by name, and its ports appear here.")


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
    table.add_row("cluster", f"{cluster['context']} at {cluster['server']}: {cluster['services']} services, {synced}")
    if cluster.get("last_error") and not cluster["synced"]:
        table.add_row("", f"[red]{cluster['last_error']}[/]")
    table.add_row("tunnel", f"{tunnel['remote']}: {tunnel['state']}, {tunnel['reconnects']} reconnects")
    if tunnel["last_error"] and tunnel["state"] != "connected":
        table.add_row("", f"[red]{tunnel['last_error']}[/]")
    table.add_row("dns", f"{dns['listen']}, captures {', '.join(dns['captured'])}, asks {', '.join(dns['upstream'])}")
    counts = f"{dns['cluster_answers']} answered, {dns['forwarded']} forwarded, {dns['failures']} failed"
    table.add_row("", f"{dns['queries']} queries: {counts}")
    table.add_row("socks", answer["socks"]["listen"])
    table.add_row("mappings", f"{answer['mappings']['live']} of at most {answer['mappings']['capacity']}")
    Console().print(table)


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
