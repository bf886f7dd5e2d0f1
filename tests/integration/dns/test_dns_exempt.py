"""Sockets for upstream queries: exempted before use, and no source port is used for two queries."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tp2.dns import exempt
from tp2.dns.exempt import ExemptSockets
from tp2.forward.pf import Pf
from tp2.forward.pfrules import EXEMPT_PORTS


async def ports_of(sockets: ExemptSockets, count: int) -> list[int]:
    """The source ports of that many queries, one after the other."""
    ports = []
    for _ in range(count):
        async with sockets.udp(("127.0.0.1", 9)) as sock:
            ports.append(sock.getsockname()[1])
    return ports


async def test_where_a_port_is_given_up_its_socket_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exempt, "_PORT_RANGE", Path("/dev/null"))
    exempted: list[socket.socket] = []

    async def mark(sock: socket.socket) -> None:
        exempted.append(sock)

    sockets = ExemptSockets(mark)
    assert len(set(await ports_of(sockets, 8))) > 1
    assert len(exempted) == 1
    sockets.close()


@pytest.mark.parametrize("ports", ["32768 60999", "1024 65535"])
async def test_what_others_send_before_a_socket_is_connected_is_not_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ports: str
) -> None:
    (tmp_path / "range").write_text(ports)
    monkeypatch.setattr(exempt, "_PORT_RANGE", tmp_path / "range")
    bind = exempt._Ports.bind

    def bind_and_be_attacked(self: exempt._Ports, sock: socket.socket) -> None:
        bind(self, sock)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            for _ in range(3):
                if port := sock.getsockname()[1]:
                    attacker.sendto(b"forged", ("127.0.0.1", port))

    monkeypatch.setattr(exempt._Ports, "bind", bind_and_be_attacked)

    async def mark(sock: socket.socket) -> None:
        return

    sockets = ExemptSockets(mark)
    async with sockets.udp(("127.0.0.1", 9)) as sock:
        assert (sock.getsockname()[1] < 32768 or sock.getsockname()[1] > 60999) or ports != "32768 60999"
        with pytest.raises(BlockingIOError):
            sock.recv(100)
    sockets.close()


async def test_where_a_socket_is_exempted_by_its_port_every_query_has_another() -> None:
    pf = Pf()

    async def bind(sock: socket.socket) -> None:
        pf.exempt(sock)

    sockets = ExemptSockets(bind)
    ports = await ports_of(sockets, 8)
    assert set(ports) <= set(EXEMPT_PORTS)
    assert len(set(ports)) > 1  # chosen anew each time
    sockets.close()
