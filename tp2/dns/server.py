"""The sockets: requests over UDP and TCP, on loopback, on one port.

Both transports are bounded. UDP holds nothing but the queries that wait (see :mod:`tp2.dns.responder`). TCP (RFC 7766)
bounds the connections, the queries that one connection has under way, and the time that it may be silent; replies
leave in the order in which they become ready, and one that nobody reads holds up its own connection only. When there
are too many connections, the one that has been silent for longest makes room; one that waits for an answer, only if all
of them do.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from tp2.cluster.catalog import Catalog
from tp2.dns.datagrams import Datagrams, Respond, serve_datagrams
from tp2.dns.recent import Asked
from tp2.dns.responder import Capture, Counters, Responder
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig
from tp2.errors import AddressInUse

logger = logging.getLogger(__name__)

_MOST_CONNECTIONS = 200
_MOST_PIPELINED = 32
# Seconds. RFC 7766 section 6.2.3 asks for the order of a few; a client comes back with a new connection at no cost.
_IDLE_TIMEOUT = 10.0
# A port that is free for UDP may be taken for TCP; so often we try another.
_PORT_ATTEMPTS = 50
# Bursts that arrive while the loop is busy wait here.
_RECEIVE_BUFFER = 1 << 20


class DnsServer:
    """tp2's DNS server.

    :param catalog: gives the cluster as it is now.
    :param synced: whether the cluster has been listed; until then its names are answered with SERVFAIL.
    :param capture: makes the destinations of an answer reachable before it leaves.
    :param upstream: takes what is not the cluster's. The server does not close it.
    :param config: the cluster's domain and how the user wants names looked up.
    :param why_unsynced: says, for the client to read, why the cluster has not been listed.
    :param hear: gives the address of a name that is not the cluster's but our own, None for any other.

    ``port`` is what it listens on, 0 before :meth:`start`.
    """

    def __init__(
        self,
        *,
        catalog: Callable[[], Catalog],
        synced: Callable[[], bool],
        capture: Capture,
        upstream: Upstream,
        config: ZoneConfig,
        why_unsynced: Callable[[], str] = lambda: "tp2 has not listed the cluster's services yet",
        hear: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._responder = Responder(
            catalog=catalog,
            synced=synced,
            capture=capture,
            upstream=upstream,
            config=config,
            why_unsynced=why_unsynced,
            hear=hear,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        # The one that has been silent for longest is first.
        self._connections: dict[_Connection, None] = {}
        self._closing = False
        self._datagrams: list[Datagrams] = []
        self._servers: list[asyncio.Server] = []
        # What is listened on besides, by interface.
        self._elsewhere: dict[str, tuple[list[Datagrams], list[asyncio.Server]]] = {}
        #: The port that is listened on; 0 before :meth:`start`.
        self.port = 0

    @property
    def counters(self) -> Counters:
        """What has been asked and answered so far."""
        return self._responder.counters

    @property
    def recent(self) -> list[Asked]:
        """The last questions, the latest first, but for those that the cache answered."""
        return self._responder.recent.latest()

    def set_config(self, config: ZoneConfig) -> None:
        """Look names up like this from now on: the search list or the context has changed."""
        self._responder.set_config(config)

    def turn(self, former: Catalog) -> None:
        """See :meth:`tp2.dns.responder.Responder.turn`."""
        self._responder.turn(former)

    def turned(self) -> None:
        """See :meth:`tp2.dns.responder.Responder.turned`."""
        self._responder.turned()

    async def start(self, addresses: Sequence[str] = ("127.0.0.1",), port: int = 0) -> int:
        """Listen on all *addresses*, over both transports.

        :param port: 0 for any that is free.
        :returns: the port, the same everywhere.
        :raises AddressInUse: the port is taken, or an address is not this machine's.
        """
        port, datagrams, streams = _bind(addresses, port)
        for sock in datagrams:
            self._datagrams.append(await serve_datagrams(sock, self._responder.respond, self.spawn))
        for sock in streams:
            self._servers.append(await asyncio.start_server(self._connected, sock=sock))
        self.port = port
        return port

    async def listen_on(self, device: str, addresses: Sequence[str]) -> int:
        """Listen on *addresses* of an interface too, and hear only what comes in by it (Linux).

        :returns: the port, the same everywhere.
        :raises AddressInUse: an address is not this machine's, or there is no such interface.
        """
        port, datagrams, streams = _bind(addresses, 0, device)
        self._elsewhere[device] = (
            [await serve_datagrams(s, self._responder.respond, self.spawn, batched=False) for s in datagrams],
            [await asyncio.start_server(self._connected, sock=sock) for sock in streams],
        )
        return port

    async def leave(self, device: str) -> None:
        """Stop listening on *device*; connections that came in by it go on."""
        datagrams, servers = self._elsewhere.pop(device, ([], []))
        for server in servers:
            server.close()
        for datagram in datagrams:
            await datagram.close()

    async def close(self) -> None:
        """Stop listening, drop the queries under way, and return when nothing of them is left."""
        self._closing = True
        for device in list(self._elsewhere):
            await self.leave(device)
        for server in self._servers:
            server.close()
        for datagrams in self._datagrams:
            await datagrams.close()
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            # Not gather(): from Python 3.12 on it does not wait at all for tasks that are done already, and so those
            # would never come to leave the set.
            await asyncio.wait(tasks)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()
        self._datagrams.clear()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* until it is done or the server closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:
            writer.transport.abort()
            return
        if len(self._connections) >= _MOST_CONNECTIONS:
            oldest = next(iter(self._connections))
            silent = next((each for each in self._connections if not each.under_way), oldest)
            del self._connections[silent]
            silent.abort()
        connection = _Connection(self._responder.respond, self._heard, reader, writer)
        self._connections[connection] = None
        self.spawn(self._serve(connection))

    def _heard(self, connection: _Connection) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._connections[connection] = None

    async def _serve(self, connection: _Connection) -> None:
        try:
            await connection.run()
        except* OSError:
            pass  # The client went away, or does not read: that is how connections end.
        finally:
            self._connections.pop(connection, None)
            await connection.close()


class _Connection:
    """One TCP connection: requests are read one by one and answered side by side."""

    def __init__(
        self,
        respond: Respond,
        heard: Callable[[_Connection], None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._respond = respond
        self._heard = heard
        self._reader = reader
        self._writer = writer
        self._room = asyncio.Semaphore(_MOST_PIPELINED)
        #: How many of its queries have no reply yet.
        self.under_way = 0

    def abort(self) -> None:
        """End at once, whatever is under way."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Likewise, and return when it is closed."""
        self.abort()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def run(self) -> None:
        """Serve until the client ends the connection, or is silent for too long."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._room.acquire()
                request = await self._next()
                if request is None:
                    break  # A client may close its side when it has asked all; the group still answers it.
                self._heard(self)
                self.under_way += 1
                group.create_task(self._answer(request))
        self._writer.close()
        async with asyncio.timeout(_IDLE_TIMEOUT):
            await self._writer.wait_closed()

    async def _next(self) -> bytes | None:
        try:
            async with asyncio.timeout(_IDLE_TIMEOUT):
                length = int.from_bytes(await self._reader.readexactly(2))
                return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            return None

    async def _answer(self, request: bytes) -> None:
        reply = self._respond(request, tcp=True)
        if not isinstance(reply, bytes):
            reply = await reply()
        if reply:
            self._writer.write(len(reply).to_bytes(2) + reply)
            async with asyncio.timeout(_IDLE_TIMEOUT):
                await self._writer.drain()
        self.under_way -= 1
        self._room.release()


def _bind(
    addresses: Sequence[str], port: int, device: str | None = None
) -> tuple[int, list[socket.socket], list[socket.socket]]:
    """Sockets for both transports on all *addresses*, on one port."""
    for _ in range(_PORT_ATTEMPTS):
        sockets: list[socket.socket] = []
        chosen = port
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                for address in addresses:
                    sockets.append(_bound(address, chosen, kind, device))
                    chosen = sockets[0].getsockname()[1]
        except OSError as error:
            for sock in sockets:
                sock.close()
            # Only a port that we chose ourselves can be exchanged for another.
            if port == 0 and sockets:
                continue
            raise AddressInUse(
                f"cannot listen for DNS on {address} port {chosen or 'any'}",
                (error.strerror or str(error)).lower(),
                "stop the program that has the port, or choose another one",
            ) from error
        return chosen, sockets[: len(addresses)], sockets[len(addresses) :]
    raise AddressInUse(
        f"cannot listen for DNS on {', '.join(addresses)}",
        f"none of {_PORT_ATTEMPTS} ports was free for both UDP and TCP",
        "close programs that hold many ports open, or choose a port that is free",
    )


def _bound(address: str, port: int, kind: socket.SocketKind, device: str | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        else:
            # A connection of the previous run in TIME_WAIT must not keep the port from us.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if device is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock
