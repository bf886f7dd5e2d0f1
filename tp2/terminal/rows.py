"""The rows of ``tp2 mappings``: which are shown, in which order, and how fast bytes flow in each. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any, Final

Row = dict[str, Any]

#: What ``--sort`` can be, and the key that it means; the largest number comes first.
KEYS: Final[dict[str, Callable[[Row], Any]]] = {
    "name": lambda row: (),
    "address": lambda row: (":" in row["address"], int(ip_address(row["address"])), row["port"]),
    "state": lambda row: row["state"],
    "open": lambda row: -row["connections"],
    "total": lambda row: -row["total_connections"],
    "sent": lambda row: -row["bytes_sent"],
    "received": lambda row: -row["bytes_received"],
    "rate": lambda row: -(row.get("sent_rate", 0) + row.get("received_rate", 0)),
    "used": lambda row: _descending(row["last_used"]),
}


def pair(address: str, port: int) -> str:
    """Return ``ADDRESS:PORT``, with brackets where they are needed."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def matching(rows: Iterable[Row], words: Sequence[str]) -> list[Row]:
    """Return the rows that have each of *words* in their name or in an address with its port, or are in that state."""
    return [row for row in rows if all(_has(row, word.lower()) for word in words)]


def ordered(rows: Iterable[Row], key: str) -> list[Row]:
    """Return *rows* in the order of *key*; those that are equal in it by their name and address."""
    return sorted(rows, key=lambda row: (KEYS[key](row), row["name"], *KEYS["address"](row)))


class Rates:
    """How many bytes a second each mapping has carried from one answer to the next."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, int], tuple[int, int]] = {}
        self._at: float | None = None

    def add_to(self, rows: Sequence[Row], now: float) -> list[Row]:
        """Return *rows* with ``sent_rate`` and ``received_rate``, which are 0 for those that were not there before."""
        passed = now - self._at if self._at is not None and now > self._at else None
        rated = []
        for row in rows:
            before = self._before.get((row["address"], row["port"]))
            counts = (row["bytes_sent"], row["bytes_received"])
            # One that has gone and come back in between counts from zero again.
            known = before is not None and passed is not None and counts >= before
            sent, received = (
                ((counts[0] - before[0]) / passed, (counts[1] - before[1]) / passed)
                if known and before is not None and passed is not None
                else (0.0, 0.0)
            )
            rated.append({**row, "sent_rate": round(max(0.0, sent)), "received_rate": round(max(0.0, received))})
        self._before = {(row["address"], row["port"]): (row["bytes_sent"], row["bytes_received"]) for row in rows}
        self._at = now
        return rated


def _has(row: Row, word: str) -> bool:
    return (
        word in row["name"].lower()
        or word in pair(row["address"], row["port"])
        or word in pair(row["local_address"], row["local_port"])
        or word == row["state"]
    )


def _descending(text: str) -> tuple[int, ...]:
    # RFC 3339 in UTC sorts as text; the latest comes first.
    return tuple(-ord(character) for character in text)
