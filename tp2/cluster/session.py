"""The one client that all streams of a cluster share, and the renewal of its credentials.

A session lives as long as the cluster connection; its client is replaced when the server no longer accepts its
credentials. Several streams notice that at about the same time: the first one logs in again, the others wait for
it. Logging in may run a plugin that opens a browser, so it is not repeated without pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import aiohttp

from tp2.backoff import Backoff
from tp2.cluster.failure import ApiError
from tp2.cluster.kubeconfig import Access
from tp2.system.environment import has_address

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

ERROR_BODY_LIMIT = 64 * 1024
RETRY_AFTER_LIMIT = 60.0

# After a change of the network, connections that wait for reuse may be dead, and a request on one of them would hang.
_NO_REUSE = {"Connection": "close"}

# When there is reason to doubt a connection: it is known to be dead after three seconds.
_PROBE = {"TCP_KEEPIDLE": 1, "TCP_KEEPALIVE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2}

# A laptop that changes its network hears nothing more from a server that is well: ask after 30 s of silence.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Session:
    """Requests to one Kubernetes API. ``login`` counts the clients there were, for :meth:`renew`; ``opened`` is set
    when there is one."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.login = 0
        self.opened = asyncio.Event()
        self._client: ApiClient | None = None
        self._lent: Counter[ApiClient] = Counter()
        self._responses: WeakSet[aiohttp.ClientResponse] = WeakSet()
        self._renewing = asyncio.Lock()
        self._renewals = Backoff(first=1.0, ceiling=60.0)
        self._nudged = asyncio.Event()

    async def open(self) -> None:
        """Log in.

        :raises ClusterError: the credentials cannot be had.
        """
        client = await self.access.connect()
        old, self._client = self._client, client
        self.login += 1
        self.opened.set()
        # A watch would otherwise wait for the end of its connection's TLS, for as long as the server likes.
        for response in list(self._responses):
            response.close()
        if old is not None and not self._lent[old]:
            await old.close()

    def lend(self) -> ApiClient:
        """The client of now, for a connection that is to outlive it: a login leaves it open until :meth:`take_back`."""
        assert self._client is not None
        self._lent[self._client] += 1
        return self._client

    async def take_back(self, client: ApiClient) -> None:
        """The connection that *client* was lent for has ended."""
        self._lent[client] -= 1
        if not self._lent[client]:
            del self._lent[client]
            if client is not self._client:
                await client.close()

    async def renew(self, login: int) -> None:
        """Log in again, unless somebody has done so since *login*.

        :raises ClusterError: the credentials cannot be had.
        """
        async with self._renewing:
            if login == self.login:
                clock = asyncio.get_running_loop().time
                self._nudged.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._renewals.failed(clock())):
                        await self._nudged.wait()
                # Somebody else may have logged in meanwhile: the kubeconfig has changed.
                if login == self.login:
                    await self.open()
                    self._renewals.succeeded(clock())

    def nudge(self) -> None:
        """The machine woke up, or its network changed: what kept a login from succeeding may be over."""
        self._renewals.reset()
        self._nudged.set()

    async def get(self, path: str, query: Mapping[str, str], timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """GET *path*; the caller reads and releases the response, whose status is 2xx.

        :raises ApiError: any other status, with the Status object's message.
        :raises OSError, aiohttp.ClientError, ValueError: as aiohttp does.
        """
        return await self.request("GET", path, query, timeout)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> aiohttp.ClientResponse:
        """Any request; as :meth:`get`. *body* is sent as JSON, which is what every *content_type* of the API takes."""
        assert self._client is not None
        response: aiohttp.ClientResponse = await self._client.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": accept, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=timeout,
        )
        if 200 <= response.status < 300:
            _keep_alive(response)
            self._responses.add(response)
            return response
        async with response:
            raise await api_error(response)

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes:
        """The whole body of the answer to a :meth:`request`; logs in again, once, if the credentials have expired.

        :raises ClusterError: new credentials cannot be had.
        """

        async def attempt() -> bytes:
            async with await self.request(
                method, path, query, timeout, body=body, content_type=content_type, accept=accept
            ) as response:
                return await response.read()

        login = self.login
        try:
            return await attempt()
        except ApiError as error:
            if error.status != 401:
                raise
        await self.renew(login)
        return await attempt()

    async def close(self) -> None:
        """Close the client and its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


async def api_error(response: aiohttp.ClientResponse) -> ApiError:
    """What *response* refuses a request with; reads it, up to :data:`ERROR_BODY_LIMIT` bytes."""
    body = b""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > ERROR_BODY_LIMIT:
                break
    try:
        status: Any = json.loads(body)
    except (ValueError, RecursionError):
        # An unknown API group, or something between here and the API server, answers in plain words.
        text = " ".join(body.decode("utf-8", "replace").split())
        status = {"message": text[:200] or response.reason}
    return ApiError.from_status(status, status=response.status, retry_after=_retry_after(response))


def _retry_after(response: aiohttp.ClientResponse) -> float:
    try:
        # Kubernetes sends seconds; the other form, a date (RFC 9110 section 10.2.3), is for caches.
        seconds = float(response.headers.get("Retry-After", "0"))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_LIMIT) if seconds == seconds else 0.0


def probe(response: aiohttp.ClientResponse) -> None:
    """Find out within seconds whether the connection of *response* is alive; it ends with an error if it is not.

    A connection from an address that the machine has lost is ended at once.
    """
    sock = _socket_of(response)
    if sock is None:
        return
    if not has_address(sock.getsockname()[0]):
        response.close()
        return
    _set_keepalive(sock, _PROBE)
    # Answered or not, it is known by then.
    asyncio.get_running_loop().call_later(5.0, _set_keepalive, sock, _KEEPALIVE)


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    sock = _socket_of(response)
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _set_keepalive(sock, _KEEPALIVE)


def _set_keepalive(sock: socket.socket, options: Mapping[str, int]) -> None:
    # Closed meanwhile: asyncio raises the first, uvloop the second.
    with contextlib.suppress(OSError, ValueError):
        for option, value in options.items():
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _socket_of(response: aiohttp.ClientResponse) -> socket.socket | None:
    connection = response.connection
    transport = connection.transport if connection else None
    return transport.get_extra_info("socket") if transport else None
