"""A byte stream to a port of a pod, through the API server: ``pods/portforward`` over a WebSocket.

It needs no address of the cluster's that can be reached from here, only what `kubectl port-forward` needs. Over time:
:func:`forward` opens the WebSocket and returns; the pod is dialled by its node at the same time, so that nobody
listens there shows a moment later. Then :meth:`PortForward.create_connection` gives the stream to a protocol, as
:meth:`asyncio.loop.create_connection` would give it a socket, until either side ends it. There is no half-close: the
end of one direction is the end of both, and an end that was not ours is always an error, with the server's words.

One WebSocket is one TCP connection in the pod. Each direction has one bounded buffer, and holds its sender back when
that is full; a path that has died is noticed by pings.

https://kubernetes.io/docs/reference/using-api/api-concepts/ (WebSockets);
https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/4006-transition-spdy-to-websockets
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, cast
from urllib.parse import quote

import aiohttp

from tp2.cluster.failure import ApiError, NotKubernetes
from tp2.cluster.portforward_frames import (
    PAYLOAD_LIMIT,
    SUBPROTOCOL,
    NotPortForward,
    Reader,
    frame,
)
from tp2.cluster.portforward_reasons import Place, broken, no_answer, not_opened
from tp2.cluster.portforward_websocket import WebSocket, open_websocket
from tp2.cluster.session import Session

OPEN_TIMEOUT = 10.0
"""Seconds for the handshake, in which the API server connects to the pod's node."""

PING_INTERVAL = 5.0
PING_MISSES = 3
"""A server that has been silent for an interval is asked once per interval; :data:`PING_MISSES` intervals after its
last word, and before another one has passed, it is given up: 20 s at most."""

HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024
"""Bytes that wait to be sent when the writer is asked to pause, and to go on: asyncio's own for a socket."""

_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)


async def forward(session: Session, namespace: str, pod: str, port: int) -> PortForward:
    """Open a stream to *port* of *pod*; logs in again, once, if the credentials have expired.

    :raises ClusterError: the API server cannot be reached, or does not allow it; new credentials cannot be had.
    :raises EndpointError: the pod is gone, or its node cannot be reached.
    """
    place = Place(namespace, pod, port)
    login = session.login
    try:
        try:
            websocket = await _open(session, place)
        except ApiError as error:
            if error.status != 401:
                raise
            await session.renew(login)
            websocket = await _open(session, place)
    except _Unanswered:
        raise no_answer(session.access, place, OPEN_TIMEOUT) from None
    except (ApiError, NotKubernetes, OSError, aiohttp.ClientError, ValueError) as error:
        raise not_opened(error, session.access, place) from error
    return PortForward(websocket, place)


class _Unanswered(Exception):
    pass


async def _open(session: Session, place: Place) -> WebSocket:
    path = f"/api/v1/namespaces/{quote(place.namespace, safe='')}/pods/{quote(place.pod, safe='')}/portforward"
    try:
        async with asyncio.timeout(OPEN_TIMEOUT) as bound:
            return await open_websocket(session, path, {"ports": str(place.port)}, SUBPROTOCOL)
    except TimeoutError:
        if bound.expired():
            raise _Unanswered from None
        raise


class _Closed(Exception):
    """The stream is over because our side ended it."""


class PortForward(asyncio.Transport):
    """An open stream. As a transport it knows the addresses and the socket of the connection to the API server.

    ``peer`` is the address and port that this machine is connected to, ``local`` its own address there.
    """

    def __init__(self, websocket: WebSocket, place: Place) -> None:
        below = websocket.transport
        super().__init__({name: below.get_extra_info(name) for name in ("socket", "sockname", "peername")})
        self.peer: tuple[str, int] = self.get_extra_info("peername")[:2]
        self.local: str = self.get_extra_info("sockname")[0]
        self._websocket = websocket
        self._place = place
        self._reader = Reader(place.port)
        self._protocol: asyncio.Protocol | None = None
        self._carrying: asyncio.Task[None] | None = None
        self._aborted = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._silences = 0
        self._unsent = bytearray()
        self._to_send = asyncio.Event()
        self._closing = False
        self._holding = False
        self._high, self._low = HIGH_WATER, LOW_WATER

    async def create_connection(
        self, protocol_factory: Callable[[], _Protocol], host: str, port: int
    ) -> tuple[PortForward, _Protocol]:
        """Give the stream to a new protocol, once. The host and port are those that asyncssh thinks it connects to."""
        assert self._protocol is None
        assert self._carrying is None
        protocol = protocol_factory()
        self._protocol = protocol
        protocol.connection_made(self)
        self._carrying = asyncio.create_task(self._carry(), name=f"port-forward to {self._place}")
        return self, protocol

    async def wait_closed(self) -> None:
        """Return when an end that has begun is over, and nothing is left of the stream."""
        if self._carrying is not None:
            await asyncio.wait([self._carrying])

    # asyncio.Transport

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The protocol that has the stream."""
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the stream to another protocol."""
        self._protocol = cast(asyncio.Protocol, protocol)

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._closing

    def close(self) -> None:
        """Send what was written, then end the stream."""
        if self._protocol is None:
            self.abort()
        self._closing = True
        self._to_send.set()

    def abort(self) -> None:
        """End the stream at once."""
        self._closing = True
        self._aborted.set()
        if self._protocol is None and self._carrying is None:
            self._websocket.abort()
            self._carrying = asyncio.create_task(self._websocket.release())

    def is_reading(self) -> bool:
        """Whether the protocol is given what comes."""
        return self._may_read.is_set() and not self._closing

    def pause_reading(self) -> None:
        """Take nothing more from the server, which is then held back by TCP."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Go on after :meth:`pause_reading`."""
        self._may_read.set()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*; the protocol is asked to pause when more than the high-water mark waits."""
        if self._closing:
            return
        self._unsent += data
        self._to_send.set()
        if len(self._unsent) > self._high and not self._holding and self._protocol:
            self._holding = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Always False: there is no half-close."""
        return False

    def write_eof(self) -> None:
        """:raises NotImplementedError: there is no half-close."""
        raise NotImplementedError("a port-forward has no end of file")

    def get_write_buffer_size(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high-water mark, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set them, with asyncio's rules for what is left out."""
        self._high = high if high is not None else 4 * low if low is not None else HIGH_WATER
        self._low = low if low is not None else self._high // 4

    # What it does meanwhile: one task, with a child for each direction and one for each way to end it.

    async def _carry(self) -> None:
        reason: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self._receive(), self._send(), self._ask(), self._wait_for_abort()):
                    group.create_task(work)
        except BaseExceptionGroup as ends:
            reason = self._reason(ends.exceptions[0])
        finally:
            self._closing = True
            self._websocket.abort()
            if self._protocol is not None:
                self._protocol.connection_lost(reason)
            await self._websocket.release()

    def _reason(self, error: BaseException) -> Exception | None:
        if isinstance(error, _Closed):
            return None
        return broken(error, self._place) if isinstance(error, Exception) else None

    async def _receive(self) -> None:
        while True:
            message = await self._websocket.receive()
            self._silences = 0
            await self._may_read.wait()
            match message.type:
                case aiohttp.WSMsgType.BINARY:
                    data = self._reader.read(message.data)
                    if data and self._protocol is not None and not self._closing:
                        self._protocol.data_received(data)
                case aiohttp.WSMsgType.PING:
                    await self._websocket.pong(message.data)
                case aiohttp.WSMsgType.PONG:
                    pass
                case aiohttp.WSMsgType.CLOSING:
                    return
                case aiohttp.WSMsgType.CLOSE:
                    words = f": {message.extra}" if message.extra else ""
                    raise ConnectionError(f"the server closed it with WebSocket code {message.data}{words}")
                case aiohttp.WSMsgType.TEXT:
                    raise NotPortForward("a text message")
                case _:
                    raise ConnectionError("the connection to the Kubernetes API was lost")

    async def _send(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent:
                payload = bytes(self._unsent[:PAYLOAD_LIMIT])
                del self._unsent[:PAYLOAD_LIMIT]
                await self._websocket.send(frame(payload))
                if self._holding and len(self._unsent) <= self._low and self._protocol is not None:
                    self._holding = False
                    self._protocol.resume_writing()
            if self._closing:
                await self._websocket.say_goodbye()
                raise _Closed

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(PING_INTERVAL)
            if not self._may_read.is_set():
                # Nobody can know whether the server is silent.
                self._silences = 0
                continue
            if self._silences == PING_MISSES:
                silence = (PING_MISSES + 1) * PING_INTERVAL
                raise ConnectionError(f"the Kubernetes API was silent for {silence:g} s")
            # What waits to be sent asks as well as a ping would, and a ping would wait behind it.
            if self._silences and not self._websocket.transport.get_write_buffer_size():
                await self._websocket.ping()
            self._silences += 1

    async def _wait_for_abort(self) -> None:
        await self._aborted.wait()
        raise _Closed
