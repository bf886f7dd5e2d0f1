"""The service manager is told, where there is one, and nobody waits for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tp2 import start
from tp2.system import notify
from tp2.terminal.progress import Progress


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager, at a path or at an abstract address."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path if request.param == "path" else f"\0{path}")
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path if request.param == "path" else f"@{path}")
        yield sock


def test_the_manager_is_told(manager: socket.socket) -> None:
    assert notify.ready()
    assert notify.stopping()
    assert notify.status("cluster  staging\nREADY=1")
    assert [manager.recv(1000) for _ in range(3)] == [b"READY=1", b"STOPPING=1", b"STATUS=cluster staging READY=1"]


def test_every_stage_is_a_status_and_ready_is_said_once(manager: socket.socket) -> None:
    start._report(Progress(), "dns", "127.0.0.1:5353")
    start._report(Progress(), "ready", "in 1.00 s")
    told = [manager.recv(1000) for _ in range(3)]
    assert told == [b"STATUS=dns 127.0.0.1:5353", b"STATUS=ready in 1.00 s", b"READY=1"]


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234", "@nobody-listens-here"])
def test_without_a_manager_nothing_happens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.ready()
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify.ready()


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_PATIENCE", 0.05)
    while notify.ready():
        pass
    assert not notify.stopping()
