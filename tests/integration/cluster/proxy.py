"""Proxies of the test's own: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928), on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping


class Proxy:
    """A proxy. ``tunnels`` has what it was asked to connect to, in order.

    :param scheme: ``http``, ``https`` or ``socks5``.
    :param names: addresses of the names that it knows; the machine's own resolver is not asked.
    :param login: ``user:password`` that it wants, if it wants one.
    """

    def __init__(self, scheme: str, names: Mapping[str, str], login: str, tls: ssl.SSLContext | None) -> None:
        self.tunnels: list[str] = []
        self.refusal = ""
        self.port = 0
        self._scheme = scheme
        self._names = names
        self._login = login
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        login = f"{self._login}@" if self._login else ""
        return f"{self._scheme}://{login}127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Cut every tunnel."""
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await (self._socks(reader, writer) if self._scheme == "socks5" else self._connect(reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self._open.discard(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split()
        assert method == "CONNECT", "what is inside TLS is not the proxy's to see"
        wanted = f"Proxy-Authorization: Basic {base64.b64encode(self._login.encode()).decode()}"
        if self._login and wanted not in head:
            self.refusal = "407 Proxy Authentication Required"
        if self.refusal:
            writer.write(f"HTTP/1.1 {self.refusal}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        host, _, port = target.rpartition(":")
        await self._tunnel(reader, writer, host.strip("[]"), int(port), b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def _socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        await reader.readexactly(count)
        writer.write(b"\x05\x00")
        _, _, _, kind = await reader.readexactly(4)
        length = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        address = await reader.readexactly(length)
        host = ".".join(map(str, address)) if kind == 1 else address.decode()
        port = int.from_bytes(await reader.readexactly(2), "big")
        if self.refusal:
            writer.write(b"\x05\x02\x00\x01" + bytes(6))
            await writer.drain()
            return
        await self._tunnel(reader, writer, host, port, b"\x05\x00\x00\x01" + bytes(6))

    async def _tunnel(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, granted: bytes
    ) -> None:
        self.tunnels.append(f"{host}:{port}")
        there, back = await asyncio.open_connection(self._names.get(host, host), port)
        writer.write(granted)
        try:
            await asyncio.wait(
                [asyncio.create_task(_pump(reader, back)), asyncio.create_task(_pump(there, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            back.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def proxy(
    scheme: str = "http",
    *,
    names: Mapping[str, str] | None = None,
    login: str = "",
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Proxy]:
    """Run a :class:`Proxy`."""
    one = Proxy(scheme, names or {}, login, tls)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0, ssl=tls)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        one.cut()
