"""Sockets for upstream queries: exempted before use, and no source port is used for two queries."""

from __future__ import annotations

import socket

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


async def test_where_a_port_is_given_up_its_socket_is_kept() -> None:
    exempted: list[socket.socket] = []

    async def mark(sock: socket.socket) -> None:
        exempted.append(sock)

    sockets = ExemptSockets(mark)
    assert len(set(await ports_of(sockets, 8))) > 1
    assert len(exempted) == 1
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
