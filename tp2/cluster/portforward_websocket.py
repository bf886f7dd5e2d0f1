"""A WebSocket to the Kubernetes API, with the session's credentials, TLS and proxy.

It outlives the login that it was opened with: when credentials expire, the session gets another client, and the one
that this WebSocket belongs to is kept until it has ended. If the server refuses the handshake, its answer is read, for
the reason is in its body, which aiohttp's WebSockets do not show.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from tp2.cluster.failure import ApiError, NotKubernetes
from tp2.cluster.session import Session, api_error

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

CONNECT_TIMEOUT = 5.0
"""Seconds for each address of the API server (or proxy), TCP only."""

CLOSE_TIMEOUT = 10.0
"""Seconds that the other side has to answer a Close frame, by which it has taken all that was sent before it."""


class _Handshake:
    """Sees the answer to the handshake before aiohttp judges it."""

    def __init__(self) -> None:
        self.response: aiohttp.ClientResponse | None = None
        self.refusal: ApiError | None = None
        self.trace = aiohttp.TraceConfig()
        self.trace.on_request_end.append(self._answered)

    async def _answered(
        self, _session: aiohttp.ClientSession, _context: SimpleNamespace, end: aiohttp.TraceRequestEndParams
    ) -> None:
        self.response = end.response
        if end.response.status != 101:
            self.refusal = await api_error(end.response)


class WebSocket:
    """An open WebSocket. ``transport`` is the connection below it, TLS included."""

    def __init__(
        self,
        stream: aiohttp.ClientWebSocketResponse,
        response: aiohttp.ClientResponse,
        http: aiohttp.ClientSession,
        session: Session,
        client: ApiClient,
    ) -> None:
        assert response.connection is not None
        assert response.connection.transport is not None
        self.transport: asyncio.Transport = response.connection.transport
        self.receive = stream.receive
        self.send = stream.send_bytes
        self.ping = stream.ping
        self.pong = stream.pong
        self._stream = stream
        self._response = response
        self._http = http
        self._session = session
        self._client = client

    async def say_goodbye(self) -> None:
        """Send a Close frame and wait for the other side's; whoever receives meanwhile is told CLOSING."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._stream.close()

    def abort(self) -> None:
        """End it at once: TLS would otherwise wait for a dead path to say goodbye."""
        self.transport.abort()
        self._response.close()

    async def release(self) -> None:
        """Give back what it was made with, after :meth:`abort`."""
        await self._http.close()
        await self._session.take_back(self._client)


async def open_websocket(session: Session, path: str, query: Mapping[str, str], subprotocol: str) -> WebSocket:
    """Open a WebSocket; pings are the caller's to send and to answer.

    :raises ApiError: the server refused it, with the Status object's message.
    :raises OSError, aiohttp.ClientError, NotKubernetes: as :meth:`Session.get` does.
    """
    client = session.lend()
    handshake = _Handshake()
    http = aiohttp.ClientSession(
        connector=client.rest_client.pool_manager.connector,
        connector_owner=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        trace_configs=[handshake.trace],
    )
    try:
        stream = await _shake_hands(http, client, path, query, subprotocol, handshake)
        assert handshake.response is not None
        return WebSocket(stream, handshake.response, http, session, client)
    except BaseException:
        if handshake.response is not None:
            handshake.response.close()
        await http.close()
        await session.take_back(client)
        raise


async def _shake_hands(
    http: aiohttp.ClientSession,
    client: ApiClient,
    path: str,
    query: Mapping[str, str],
    subprotocol: str,
    handshake: _Handshake,
) -> aiohttp.ClientWebSocketResponse:
    headers: dict[str, str] = dict(client.default_headers)
    parameters: list[tuple[str, Any]] = list(query.items())
    await client.update_params_for_auth(headers, parameters, ["BearerToken"])
    rest = client.rest_client
    # kubernetes_asyncio has no types; it gives these only where the kubeconfig does.
    ways: dict[str, Any] = {
        "proxy": rest.proxy,
        "proxy_headers": rest.proxy_headers,
        "server_hostname": rest.server_hostname,
    }
    try:
        stream = await http.ws_connect(
            f"{client.configuration.host}{path}",
            protocols=(subprotocol,),
            params=parameters,
            headers=headers,
            autoping=False,
            **{name: way for name, way in ways.items() if way},
        )
    except aiohttp.WSServerHandshakeError as error:
        raise handshake.refusal or NotKubernetes(
            f"its answer to a WebSocket handshake is wrong: {error.message}"
        ) from None
    return cast(aiohttp.ClientWebSocketResponse, stream)
