"""``pods/portforward`` of the sandbox's Kubernetes API: the API server and the kubelet of every node in one.

It speaks ``v4.channel.k8s.io`` as recordings of Kubernetes 1.36 do: both verbs are checked, the port numbers come
first, even of a port where nothing listens; a failure is a text on the error channel; there is no half-close, and a
second after the pod's program has ended its side the port is over. When no port is left, the WebSocket is closed with
code 1000. A pod is dialled at its own address (``status.podIP``), where a kubelet would enter its network namespace.
The SPDY and base64 subprotocols, which tp2 does not offer, are refused like unknown ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

from aiohttp import WSMsgType, web

from tp2.sandbox.kubeapi_resources import PODS, Object, StatusError, Target
from tp2.sandbox.kubeapi_rights import Rights, forbidden
from tp2.sandbox.kubeapi_store import Store

logger = logging.getLogger(__name__)

_SUBPROTOCOL = "v4.channel.k8s.io"
_PAYLOAD = 32 * 1024
_AFTER_EOF = 1.0
_STILL_RUNNING = ("Pending", "Running", "Unknown")


class PortForwards:
    """All port-forwards that are open.

    ``kubelet`` says whether the kubelet of every node can be reached.
    """

    def __init__(self, store: Store, rights: Rights) -> None:
        self.kubelet = True
        self._store = store
        self._rights = rights
        self._open: dict[web.WebSocketResponse, web.Request] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()

    def __len__(self) -> int:
        return len(self._open)

    def cut(self) -> None:
        """Cut the connections of all port-forwards, without a Close frame, as an API server that ends does."""
        for request in self._open.values():
            if request.transport is not None:
                request.transport.abort()

    def hold(self, held: bool = True) -> None:
        """Take nothing from any port-forward, or give anything to one, as on a path that has died; or go on."""
        if held:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def serve(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Answer a handshake, and forward until either side has ended.

        :raises StatusError: it is refused.
        """
        if request.method != "GET":
            return web.Response(status=405, text="bad method")
        self._rights.check(target, "get")
        if not self._rights.may("create", "pods/portforward", "", target.namespace):
            raise forbidden(target, "")
        pod = self._store.get(PODS, target.namespace or "", target.name)
        if not self.kubelet:
            raise StatusError(500, "", "error dialing backend: dial tcp 198.18.5.2:10250: connect: connection refused")
        numbers = _numbers(request)
        if not numbers:
            return web.Response(status=400, text='query parameter "port" is required')
        if pod["status"].get("phase", "Running") not in _STILL_RUNNING:
            return web.Response(status=500, text=f'pod not found ("{target.name}_{target.namespace}")')
        if not pod["status"].get("podIP"):
            raise StatusError(400, "BadRequest", f"pod {target.name} does not have a host assigned")
        offered = [word.strip() for word in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        if _SUBPROTOCOL not in offered and offered != [""]:
            return web.Response(status=403)
        return await self._forward(request, pod, numbers)

    async def _forward(self, request: web.Request, pod: Object, numbers: list[int]) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=(_SUBPROTOCOL,), timeout=1.0, autoping=False)
        await socket.prepare(request)
        self._open[socket] = request
        ports = [_Port(socket, 2 * index, pod, number, self._flowing) for index, number in enumerate(numbers)]
        try:
            for port in ports:
                await port.announce()
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(socket, ports))
                await asyncio.wait([group.create_task(port.run()) for port in ports])
                reading.cancel()
            await socket.close()
        except* ConnectionError:
            logger.debug("the client of a port-forward to %s went away", pod["metadata"]["name"])
        finally:
            del self._open[socket]
        return socket

    async def _read(self, socket: web.WebSocketResponse, ports: list[_Port]) -> None:
        async for message in socket:
            await self._flowing.wait()
            if message.type == WSMsgType.PING:
                await socket.pong(message.data)
            # Frames for the error channel and for unknown ones are ignored.
            elif message.type == WSMsgType.BINARY and message.data and message.data[0] in range(0, 2 * len(ports), 2):
                await ports[message.data[0] // 2].send(message.data[1:])
        for port in ports:
            port.end()


class _Port:
    """One port of a port-forward: a TCP connection to the pod, on the data channel *channel* and the one after it."""

    def __init__(
        self, socket: web.WebSocketResponse, channel: int, pod: Object, number: int, flowing: asyncio.Event
    ) -> None:
        self._socket = socket
        self._channel = channel
        self._pod = pod
        self._number = number
        self._flowing = flowing
        self._writer: asyncio.StreamWriter | None = None
        self._dialled = asyncio.Event()
        self._ended = asyncio.Event()

    async def announce(self) -> None:
        """Send the port's number on both channels."""
        for channel in (self._channel, self._channel + 1):
            await self._socket.send_bytes(bytes([channel]) + self._number.to_bytes(2, "little"))

    def end(self) -> None:
        """The client has ended it."""
        self._ended.set()

    async def send(self, data: bytes) -> None:
        """Pass on what the client sent; what comes for a port that is refused vanishes."""
        await self._dialled.wait()
        if self._writer is None:
            return
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError as error:
            await self._complain(f"write: {_words(error)}")
            self._ended.set()

    async def run(self) -> None:
        """Dial the pod and pass on what it sends, until one of the two has ended."""
        address = self._pod["status"]["podIP"]
        try:
            reader, self._writer = await asyncio.open_connection(address, self._number)
        except OSError as error:
            await self._complain(f"failed to connect to {address}:{self._number}: connect: {_words(error)}")
            return
        finally:
            self._dialled.set()
        pumping = asyncio.create_task(self._pump(reader))
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait((pumping, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # First of all: the client may go away, which cancels this, while the rest waits.
            self._writer.close()
            self._writer = None
            for task in (pumping, ending):
                task.cancel()
            await asyncio.gather(pumping, ending, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PAYLOAD):
                await self._flowing.wait()
                await self._socket.send_bytes(bytes([self._channel]) + data)
        await asyncio.sleep(_AFTER_EOF)

    async def _complain(self, words: str) -> None:
        where = f"pod {self._pod['metadata'].get('uid')}, uid "
        text = f"error forwarding port {self._number} to {where}: failed to execute portforward: {words}"
        with contextlib.suppress(OSError):
            await self._socket.send_bytes(bytes([self._channel + 1]) + text.encode())


def _words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)


def _numbers(request: web.Request) -> list[int]:
    numbers = []
    for text in ",".join(request.query.getall("ports", [])).split(","):
        if not text:
            continue
        if not (text.isascii() and text.isdigit()):
            raise _not_a_port(text, "invalid syntax")
        if not 0 < int(text) < 65536:
            raise _not_a_port(text, "value out of range")
        numbers.append(int(text))
    return numbers


def _not_a_port(text: str, why: str) -> StatusError:
    message = f'cannot convert to []int32: strconv.ParseUint: parsing "{text}": {why}'
    return StatusError(400, "BadRequest", message)
