"""``tp2 top``: keys do what the last line says, whatever a terminal sends; and it fits, whatever there is to show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from tests.unit.terminal.test_rows import row
from tp2.runtime import RuntimeDirectory
from tp2.terminal import topscreen
from tp2.terminal.keyboard import keys
from tp2.terminal.rows import KEYS
from tp2.terminal.top import Look, Quit, View, pressed

NAMES = {"escape", "enter", "backspace", "clear", "up", "down", "home", "end", "page up", "page down"}

STATUS: dict[str, Any] = {
    "state": "degraded",
    "mode": "portmap",
    "pid": 4711,
    "since": "2026-01-01T00:00:00.000Z",
    "cluster": {"context": "arn:[bold]staging", "services": 142, "synced": True},
    "tunnel": {
        "remote": "me@bastion:22",
        "state": "reconnecting",
        "reconnects": 3,
        "last_error": "no route to host\x1b[2J",
    },
    "dns": {"queries": 10, "cluster_answers": 5, "forwarded": 3, "failures": 2},
    "mappings": {"live": 7, "capacity": 1000},
    "connections": {"open": 1, "bytes_sent": 5, "bytes_received": 6_000_000},
    "canary": {"ok": False, "why": "a canary"},
}


def after(view: View, *pressings: str) -> View:
    for key in pressings:
        view = pressed(view, key, 10)
    return view


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1bOB", ["up", "down"]),
        (b"\x1b", ["escape"]),
        (b"/web\r", ["/", "w", "e", "b", "enter"]),
        ("é日".encode(), ["é", "日"]),
        (b"\x1b[5~\x1b[6~\x1b[H", ["page up", "page down", "home"]),
        (b"\x1b[1;5C\x1b[200~x", ["x"]),
        (b"\x7f\x00\x01", ["backspace"]),
    ],
)
def test_keys(data: bytes, expected: list[str]) -> None:
    assert list(keys(data)) == expected


@given(st.binary(max_size=50))
def test_whatever_the_terminal_sends_is_keys_or_nothing(data: bytes) -> None:
    view = View()
    for key in keys(data):
        assert key in NAMES or (len(key) == 1 and key.isprintable())
        try:
            view = pressed(view, key, 10)
        except Quit:
            return


def test_s_goes_through_all_orders_and_comes_back() -> None:
    view, seen = View(), []
    for _ in KEYS:
        view = after(view, "s")
        seen.append(view.sort)
    assert sorted(seen) == sorted(KEYS)
    assert view.sort == "name"
    assert after(view, "s", "S").sort == "name"


def test_a_filter_applies_while_it_is_typed_and_is_kept_by_enter_only() -> None:
    view = after(View(), "/", "w", "q", "backspace", "e")
    assert (view.words, view.filter) == (["we"], "")
    assert after(view, "enter").words == ["we"]
    assert after(view, "escape").words == []
    assert after(view, "enter", "/", "clear").words == []
    assert after(view, "enter", "escape").words == []


def test_q_quits_but_not_from_a_filter() -> None:
    with pytest.raises(Quit):
        after(View(), "q")
    assert after(View(), "/", "q").words == ["q"]


def look(mappings: int, questions: int) -> Look:
    rows = [
        row(f"a-rather-long-name-of-a-service-{n}.[red]shop", f"10.96.0.{n % 250}", sent_rate=n, receive_rate=0)
        | {"received_rate": 0}
        for n in range(mappings)
    ]
    asked = [
        {"at": "2026-01-01T00:00:00.000Z", "name": "x." * 120, "type": "A", "who": "failed", "why": "w " * 99, "ms": 1}
        for _ in range(questions)
    ]
    return Look(RuntimeDirectory(Path("/nowhere")), status=STATUS, rows=rows, recent=asked)


@settings(deadline=None, max_examples=20)
@given(
    width=st.integers(40, 250), height=st.integers(16, 80), mappings=st.integers(0, 50), questions=st.integers(0, 50)
)
def test_it_fits_every_terminal_with_the_keys_on_the_last_line(
    width: int, height: int, mappings: int, questions: int
) -> None:
    drawn, view, page = topscreen._draw(look(mappings, questions), View(first=10**6), width, height)
    out = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, no_color=True, legacy_windows=False
    )
    with out.capture() as captured:
        out.print(drawn)
    lines = Text.from_ansi(captured.get().removesuffix("\n")).plain.split("\n")
    assert len(lines) == height
    assert "quit" in lines[-1]
    # As far down as there is something, and no further.
    assert view.first == max(0, mappings - page)


def test_off_a_terminal_all_of_it_is_printed_plain(capsys: pytest.CaptureFixture[str]) -> None:
    topscreen.once(look(50, 2), View(filter="service-1"))
    text = capsys.readouterr().out
    # Words of servers are shown, not obeyed.
    assert "\x1b" not in text
    assert "tp2 degraded" in text
    assert "arn:[bold]staging" in text
    assert "trouble  no route to host" in text
    assert text.count(".[red]shop") == 11
