"""UDP: requests come in as datagrams, and each reply goes to where its request came from.

Two implementations of one small interface: the event loop's own transport, which is everywhere, and
:mod:`tp2.dns.batched`, which is faster, on Linux.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from tp2.dns.responder import Deferred

logger = logging.getLogger(__name__)

Respond = Callable[..., bytes | Deferred]
Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Datagrams(Protocol):
    """A UDP socket that is being served."""

    async def close(self) -> None:
        """Close the socket and return when it is closed. May be called twice."""


async def serve_datagrams(
    sock: socket.socket, respond: Respond, spawn: Spawn, *, batched: bool = sys.platform == "linux"
) -> Datagrams:
    """Serve a bound, non-blocking *sock*, which belongs to the result from now on.

    :param respond: see :meth:`tp2.dns.responder.Responder.respond`.
    :param spawn: runs what has to be waited for.
    """
    if batched:
        from tp2.dns.batched import BatchedDatagrams

        return BatchedDatagrams(sock, respond, spawn)
    loop = asyncio.get_running_loop()
    _, protocol = await loop.create_datagram_endpoint(lambda: _Transported(respond, spawn), sock=sock)
    return protocol


class _Transported(asyncio.DatagramProtocol):
    def __init__(self, respond: Respond, spawn: Spawn) -> None:
        self._respond = respond
        self._spawn = spawn
        self._transport: asyncio.DatagramTransport
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        reply = self._respond(data, tcp=False)
        if not isinstance(reply, bytes):
            self._spawn(self._reply_later(reply, addr))
        elif reply:
            self._transport.sendto(reply, addr)

    async def _reply_later(self, waiting: Deferred, addr: tuple[Any, ...]) -> None:
        reply = await waiting()
        if reply and not self._transport.is_closing():
            self._transport.sendto(reply, addr)

    def error_received(self, exc: Exception) -> None:
        logger.debug("UDP: %s", exc)  # A client that did not wait for its answer.

    async def close(self) -> None:
        self._transport.abort()
        await self._closed.wait()
