"""The sandbox's port-forward answers as recordings of a real API server and kubelet do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from tests.integration.cluster.portforward.rig import PATIENCE, Rig, echo, nothing, pod, running
from tests.unit.cluster.recordings import lines
from tp2.sandbox.kubeapi_resources import PODS
from tp2.sandbox.kubeapi_rights import USER
from tp2.sandbox.tls import KeyPair

V4 = "v4.channel.k8s.io"


class Client:
    """WebSockets to a rig's API."""

    def __init__(self, rig: Rig, http: aiohttp.ClientSession, context: ssl.SSLContext) -> None:
        self._rig = rig
        self._http = http
        self._context = context
        self._headers = {"Authorization": "Bearer secret"}

    async def connect(self, *ports: int, offered: tuple[str, ...] = (V4,)) -> aiohttp.ClientWebSocketResponse:
        path = "/api/v1/namespaces/shop/pods/db-1/portforward?" + urlencode([("ports", port) for port in ports])
        return await self._http.ws_connect(
            self._rig.api.url + path, protocols=offered, headers=self._headers, ssl=self._context
        )

    async def shake_hands(self, handshake: Any) -> tuple[int, str]:
        """Send the handshake of a recording; return the status and body of the answer."""
        method, path, _ = handshake["request"].split(" ")
        headers = {**handshake["request_headers"], **self._headers}
        async with self._http.request(method, self._rig.api.url + path, headers=headers, ssl=self._context) as response:
            return response.status, "" if response.status == 101 else await response.text()


@pytest.fixture
async def client(rig: Rig, authority: KeyPair) -> AsyncIterator[Client]:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as http:
        yield Client(rig, http, context)


async def received(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[bytes]:
    """The next messages."""
    async with asyncio.timeout(PATIENCE):
        return [await socket.receive_bytes() for _ in range(count)]


@pytest.mark.parametrize(
    "name",
    [
        "rbac-create-only",
        "rbac-get-only",
        "rbac-get-and-create",
        "rbac-create-only-post",
        "refused-unknown-pod",
        "refused-pod-completed",
        "refused-kubelet-unreachable",
        "refused-no-ports",
        "refused-port-not-a-number",
        "refused-port-out-of-range",
        "negotiation-unknown",
        "negotiation-none",
        "negotiation-v5-v4",
    ],
)
async def test_a_handshake_is_answered_as_recorded(rig: Rig, client: Client, name: str) -> None:
    rig.api.store.create(PODS, "shop", pod("done", phase="Succeeded"))
    match name:
        case "rbac-create-only":
            rig.api.forbid("pods/portforward", verbs=("get",))
        case "rbac-get-only":
            rig.api.forbid("pods/portforward", verbs=("create",))
        case "refused-kubelet-unreachable":
            rig.api.port_forwards.kubelet = False
    handshake = lines(f"portforward-{name}.jsonl")[0]["handshake"]
    status, body = await client.shake_hands(handshake)
    assert status == handshake["status"]
    expected = handshake.get("body", "").replace("system:serviceaccount:shop:pf-create", USER)
    if expected.startswith("{"):
        assert json.loads(body) == json.loads(expected)
    else:
        assert body == expected


async def test_an_echo_looks_as_recorded(client: Client) -> None:
    async with running(echo) as port:
        socket = await client.connect(port)
        assert socket.protocol == V4
        announced = port.to_bytes(2, "little")
        assert await received(socket, 2) == [b"\0" + announced, b"\1" + announced]
        await socket.send_bytes(b"\0hello\n")
        assert await received(socket, 1) == [b"\0hello\n"]
        await socket.send_bytes(b"\0" + b"x" * 70_000)
        answer = b""
        while len(answer) < 70_000:
            (message,) = await received(socket, 1)
            assert message[0] == 0
            assert len(message) <= 32769
            answer += message[1:]
        assert answer == b"x" * 70_000
        await socket.close()
        assert socket.close_code == 1000


async def test_a_port_where_nothing_listens_is_announced_refused_and_closed(client: Client) -> None:
    with nothing() as port:
        socket = await client.connect(port)
        announced = port.to_bytes(2, "little")
        *first, words = await received(socket, 3)
        assert first == [b"\0" + announced, b"\1" + announced]
        assert words.startswith(f"\1error forwarding port {port} to pod ".encode())
        assert b"connection refused" in words
        end = await socket.receive()
        assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1000)


async def test_a_refused_port_leaves_the_other_one_alone(client: Client) -> None:
    async with running(echo) as good:
        with nothing() as bad:
            socket = await client.connect(bad, good)
            first = await received(socket, 5)
            assert [message[0] for message in first] == [0, 1, 2, 3, 1]
            await socket.send_bytes(b"\0nobody hears this")
            await socket.send_bytes(b"\7nor this")
            await socket.send_bytes(b"\2still there?")
            assert await received(socket, 1) == [b"\2still there?"]
            await socket.close()


async def test_the_same_port_twice_is_two_connections(client: Client) -> None:
    async with running(echo) as port:
        socket = await client.connect(port, port)
        await received(socket, 4)
        await socket.send_bytes(b"\0a")
        assert await received(socket, 1) == [b"\0a"]
        await socket.send_bytes(b"\2b")
        assert await received(socket, 1) == [b"\2b"]
        await socket.close()


async def test_a_program_that_shuts_down_its_side_still_hears_the_client_for_a_while(client: Client) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        heard.set_result(await reader.read(100))
        await reader.read()

    async with running(half) as port:
        socket = await client.connect(port)
        await received(socket, 2)
        await socket.send_bytes(b"\0late")
        async with asyncio.timeout(PATIENCE):
            assert await heard == b"late"
            end = await socket.receive()
        assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1000)


async def test_a_client_that_vanishes_is_an_end_of_file_for_the_program(client: Client) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    async with running(wait) as port:
        socket = await client.connect(port)
        await received(socket, 2)
        transport = socket.get_extra_info("ssl_object")
        assert transport is not None
        await socket.close()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
