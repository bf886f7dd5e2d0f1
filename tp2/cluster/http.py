"""The HTTP client below the Kubernetes client: through which proxy it goes, and what it does not do unasked.

kubernetes_asyncio lets aiohttp look at the environment. There it would find proxies by other rules than kubectl's
(:mod:`tp2.cluster.proxies`), and, in ``~/.netrc``, passwords for the server that would take the place of the
kubeconfig's token. So the client gets a session that looks at nothing and is told the proxy.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tp2.cluster.proxies import SOCKS, without_password

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient, Configuration

BUFFER: Final = 2 * 1024 * 1024
"""Bytes that a response may have waiting: kubernetes_asyncio's own, for watch events of large objects."""

REUSE: Final = 1.0
"""Seconds for which a connection waits for another request. After a change of the network it would be a dead one, on
which the request hangs; and requests that follow from one another come within a moment."""


class SocksFailed(aiohttp.ClientConnectionError):
    """A SOCKS5 proxy cannot be reached, or does not connect; in words."""


def session(proxy: str | None, tls: ssl.SSLContext, **options: Any) -> aiohttp.ClientSession:
    """Return a session that goes through *proxy* if that is a SOCKS proxy; others are named with each request.

    :param tls: how servers are trusted.
    """
    connector: aiohttp.TCPConnector
    if proxy and _is_socks(proxy):
        connector = _SocksConnector(proxy, tls)
    else:
        connector = aiohttp.TCPConnector(ssl=tls, keepalive_timeout=REUSE)
    return aiohttp.ClientSession(connector=connector, trust_env=False, read_bufsize=BUFFER, **options)


def http_proxy(proxy: str | None) -> str | None:
    """The proxy to name with a request: *proxy*, unless it is a SOCKS proxy."""
    return None if proxy is None or _is_socks(proxy) else proxy


async def lead(client: ApiClient, proxy: str | None) -> ApiClient:
    """Have *client* go through *proxy*, or directly, whatever the environment says; return it."""
    rest: Any = client.rest_client
    await rest.pool_manager.close()
    rest.pool_manager = session(proxy, _tls(client.configuration))
    rest.proxy = http_proxy(proxy)
    return client


def _is_socks(proxy: str) -> bool:
    return proxy.partition(":")[0] in SOCKS


def _tls(configuration: Configuration) -> ssl.SSLContext:
    """As kubernetes_asyncio makes it."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class _SocksConnector(aiohttp.TCPConnector):
    """Connects through a SOCKS5 proxy, which resolves the names.

    aiohttp has no place for this; the method that is replaced here is the one that SOCKS libraries for aiohttp replace.
    """

    def __init__(self, proxy: str, tls: ssl.SSLContext) -> None:
        # The proxy has the limit, and a name that it is to resolve is no address that could be remembered.
        super().__init__(ssl=tls, resolver=_Unresolved(), use_dns_cache=False, keepalive_timeout=REUSE)
        self._proxy = proxy

    async def _wrap_create_connection(self, *args: Any, req: Any, timeout: Any, **options: Any) -> Any:
        options = {key: value for key, value in options.items() if key in ("ssl", "server_hostname")}
        sock = await _dial(self._proxy, req.url.host, req.url.port, timeout.sock_connect)
        return await asyncio.get_running_loop().create_connection(*args, **options, sock=sock)


class _Unresolved(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host=host, port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass


async def _dial(proxy: str, host: str, port: int, timeout: float | None) -> socket.socket:
    # A quarter of a second that only those pay who have such a proxy.
    from python_socks import ProxyError
    from python_socks.async_.asyncio import Proxy

    url = proxy.replace("socks5h:", "socks5:", 1)
    try:
        sock: socket.socket = await Proxy.from_url(url, rdns=True).connect(host, port, timeout=timeout)
    except (ProxyError, OSError) as error:
        raise SocksFailed(f"{without_password(proxy)}: {error}") from error
    return sock
