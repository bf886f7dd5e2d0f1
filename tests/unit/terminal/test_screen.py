"""What people see: the tables of ``tp2 mappings`` and ``tp2 status``."""

from __future__ import annotations

from typing import Any

import pytest

from tp2.terminal import screen

ROW = {
    "name": "web.shop",
    "address": "fd00:96::1",
    "port": 80,
    "local_address": "::1",
    "local_port": 29999,
    "state": "pinned",
    "connections": 2,
    "total_connections": 7,
    "bytes_sent": 1500,
    "bytes_received": 0,
    "last_used": "2026-01-01T00:00:00.000Z",
    "expires_in": None,
}


def status(**changes: Any) -> dict[str, Any]:
    answer = {
        "state": "ready",
        "mode": "portmap",
        "pid": 1,
        "since": "2026-01-01T00:00:00.000Z",
        "cluster": {
            "context": "staging",
            "server": "https://api",
            "synced": True,
            "services": 3,
            "last_error": None,
            "seconds_behind": None,
            "age": None,
        },
        "tunnel": {"state": "connected", "remote": "me@bastion", "reconnects": 0, "last_error": None},
        "dns": {
            "listen": "127.0.0.1:5353",
            "captured": ["192.0.2.53"],
            "upstream": ["192.0.2.53:53"],
            "queries": 1,
            "cluster_answers": 1,
            "forwarded": 0,
            "failures": 0,
        },
        "socks": {"listen": "127.0.0.1:1080"},
        "mappings": {"live": 3, "made": 4, "capacity": 10, "failed_lookups": 0, "last_failed": None, "why": None},
        "capture": {
            "addresses": 20,
            "left_alone": [],
            "refused": {"connections": 0, "destinations": []},
            "containers": [],
        },
        "forwarder": {"kind": "nftables", "helper_pid": 2},
    }
    return answer | changes


def shown(capsys: pytest.CaptureFixture[str], answer: dict[str, Any]) -> str:
    screen.status(answer)
    return capsys.readouterr().out


def test_mappings_are_shown_with_addresses_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    screen.mappings({"mode": "portmap", "mappings": [ROW]})
    out = capsys.readouterr().out
    assert "[fd00:96::1]:80" in out
    assert "[::1]:29999" in out
    assert "pinned" in out
    assert "sending" not in out


def test_while_they_are_watched_rates_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.live_mappings(filtered=False) as show:
        show({"mode": "portmap", "mappings": [{**ROW, "sent_rate": 2500, "received_rate": 0}]})
    out = capsys.readouterr().out
    assert "sending" in out
    assert "2.5 kB/s" in out


@pytest.mark.parametrize(
    ("mode", "filtered", "words"),
    [
        ("portmap", False, "look a service up by name"),
        ("origdst", False, "each destination appears here with its first"),
        ("portmap", True, "No such mapping."),
    ],
)
def test_when_there_are_none_it_says_why(
    capsys: pytest.CaptureFixture[str], mode: str, filtered: bool, words: str
) -> None:
    screen.mappings({"mode": mode, "mappings": []}, filtered=filtered)
    assert words in capsys.readouterr().out


def test_the_status_says_what_was_refused_and_what_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    capture = {
        "addresses": 20,
        "left_alone": [{"why": "this machine is on that network", "addresses": ["192.0.2.7"], "count": 3}],
        "refused": {"connections": 5, "destinations": [{"address": "fd00:96::1", "port": 81, "connections": 5}]},
        "containers": ["docker0"],
    }
    out = shown(capsys, status(capture=capture))
    assert "5 connections that nothing is mapped for: [fd00:96::1]:81 (5)" in out
    assert "192.0.2.7 and 2 more: this machine is on that network" in out
    assert "docker0" in out
    assert "3 of at most 10" in out


def test_the_status_says_that_there_was_no_room(capsys: pytest.CaptureFixture[str]) -> None:
    mappings = {
        "live": 10,
        "made": 12,
        "capacity": 10,
        "failed_lookups": 4,
        "last_failed": "2026-01-01T00:00:00.000Z",
        "why": "all 10 mappings are in use",
    }
    out = shown(capsys, status(mappings=mappings))
    assert "4 lookups failed for want of room" in out
    assert "all 10 mappings are in use" in out


def test_in_mode_origdst_it_counts_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    mappings = {"live": 3, "made": None, "capacity": None, "failed_lookups": 0, "last_failed": None, "why": None}
    assert "20 addresses, 3 destinations in use" in shown(capsys, status(mode="origdst", mappings=mappings))
