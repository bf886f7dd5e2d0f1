"""What is shown to people is what it is, whatever is in it."""

from __future__ import annotations

from typing import Any

import pytest

from tp2.terminal import screen

STATUS: dict[str, Any] = {
    "state": "degraded",
    "mode": "portmap",
    "pid": 4711,
    "since": "2026-01-01T00:00:00.000Z",
    "cluster": {
        "context": "[red]staging",
        "server": "https://[fd00::2]:6443",
        "services": 142,
        "synced": False,
        "last_error": "[/] \x1b[2J",
    },
    "tunnel": {
        "remote": "me@[fd00::1]:22",
        "state": "reconnecting",
        "reconnects": 3,
        "last_error": "[fd00::1]:22: no route to host",
    },
    "dns": {
        "listen": "[::1]:53",
        "captured": ["fd00::53"],
        "upstream": ["[fd00::53]:53"],
        "queries": 10,
        "cluster_answers": 5,
        "forwarded": 3,
        "failures": 2,
    },
    "socks": {"listen": "[::1]:1080"},
    "mappings": {"live": 7, "capacity": 1000, "failed_lookups": 0},
    "capture": {
        "refused": {"connections": 0},
        "left_alone": [{"addresses": ["[fd00::3]"], "count": 1, "why": "[bold]"}],
        "containers": [],
    },
    "canary": {"ok": False, "why": "no way to [fd00::1]", "remedy": "see [fd00::1]"},
}


def test_addresses_in_brackets_and_words_of_servers_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    screen.status(STATUS)
    text = capsys.readouterr().out
    for words in ("[red]staging", "https://[fd00::2]:6443", "me@[fd00::1]:22", "[fd00::1]:22: no route", "[::1]:1080"):
        assert words in text
    for words in ("[/]", "[::1]:53,", "[fd00::3]: [bold]", "no way to [fd00::1]", "see [fd00::1]"):
        assert words in text
    assert "\x1b" not in text
