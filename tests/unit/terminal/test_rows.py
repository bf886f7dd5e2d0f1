"""``tp2 mappings``: filtered, in order, with rates."""

from __future__ import annotations

from typing import Any

import pytest

from tp2.cli import SORT_KEYS
from tp2.terminal.rows import KEYS, Rates, Row, matching, ordered


def row(name: str, address: str, port: int = 80, **changes: Any) -> Row:
    return {
        "name": name,
        "address": address,
        "port": port,
        "local_address": "127.0.0.1",
        "local_port": 20000,
        "state": "idle",
        "connections": 0,
        "total_connections": 0,
        "bytes_sent": 0,
        "bytes_received": 0,
        "last_used": "2026-01-01T00:00:00.000Z",
        "expires_in": 1.0,
        **changes,
    }


WEB = row("web.shop", "10.96.1.1", last_used="2026-01-01T00:00:03.000Z")
BLOG = row("web.blog", "10.96.0.2", 8080, state="active", connections=2, total_connections=9, local_port=20001)
SIX = row("six.shop", "fd00::1", local_address="::1", bytes_sent=7, last_used="2026-01-01T00:00:02.000Z")
ROWS = [SIX, WEB, BLOG]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["six.shop", "web.shop", "web.blog"]),
        (["web"], ["web.shop", "web.blog"]),
        (["WEB", "shop"], ["web.shop"]),
        (["10.96.1"], ["web.shop"]),
        (["[fd00::1]:80"], ["six.shop"]),
        ([":8080"], ["web.blog"]),
        (["127.0.0.1:20001"], ["web.blog"]),
        (["active"], ["web.blog"]),
        (["act"], []),
        (["web", "nosuch"], []),
    ],
)
def test_each_word_of_a_filter_has_to_be_there(words: list[str], names: list[str]) -> None:
    assert [found["name"] for found in matching(ROWS, words)] == names


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("name", ["six.shop", "web.blog", "web.shop"]),
        ("address", ["web.blog", "web.shop", "six.shop"]),
        ("state", ["web.blog", "six.shop", "web.shop"]),
        ("open", ["web.blog", "six.shop", "web.shop"]),
        ("total", ["web.blog", "six.shop", "web.shop"]),
        ("sent", ["six.shop", "web.blog", "web.shop"]),
        ("used", ["web.shop", "six.shop", "web.blog"]),
    ],
)
def test_what_comes_first(key: str, names: list[str]) -> None:
    assert [found["name"] for found in ordered(ROWS, key)] == names


def test_addresses_are_in_the_order_of_their_numbers() -> None:
    rows = [row("same", address) for address in ("10.96.0.10", "10.96.0.9", "fd00::10", "fd00::9")]
    assert [found["address"] for found in ordered(rows, "name")] == ["10.96.0.9", "10.96.0.10", "fd00::9", "fd00::10"]


def test_the_command_knows_all_orders() -> None:
    assert tuple(KEYS) == SORT_KEYS


def test_rates_are_bytes_a_second_since_the_last_look() -> None:
    rates = Rates()
    (first,) = rates.add_to([row("web", "10.96.1.1", bytes_sent=100, bytes_received=1000)], 10.0)
    assert (first["sent_rate"], first["received_rate"]) == (0, 0)
    (second,) = rates.add_to([row("web", "10.96.1.1", bytes_sent=300, bytes_received=1000)], 12.0)
    assert (second["sent_rate"], second["received_rate"]) == (100, 0)
    assert ordered([first, second], "rate")[0] is second


def test_a_mapping_that_has_gone_and_come_back_starts_again() -> None:
    rates = Rates()
    rates.add_to([row("web", "10.96.1.1", bytes_sent=1000, bytes_received=0)], 10.0)
    (again,) = rates.add_to([row("web", "10.96.1.1", bytes_sent=10, bytes_received=50)], 11.0)
    assert (again["sent_rate"], again["received_rate"]) == (0, 0)
