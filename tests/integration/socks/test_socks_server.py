"""What a program that speaks SOCKS5 may rely on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.socks.rig import (
    PATIENCE,
    echo,
    ending_of,
    eventually,
    nothing_there,
    serving,
    started,
    tunnel_to,
)
from tests.integration.socks.sshd import Sshd
from tp2.errors import AddressInUse, UsageError
from tp2.socks import server as server_module
from tp2.socks.connector import Connector
from tp2.socks.messages import Credentials, Reply
from tp2.socks.server import SocksServer
from tp2.socks.tunnel import Tunnel
from tp2.types import Destination

PAGE = b"<h1>shop</h1>"


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as running:
        yield running


@pytest.fixture
async def tunnel(sshd: Sshd) -> AsyncIterator[Tunnel]:
    async with started(tunnel_to(sshd, dial_timeout=PATIENCE)) as running:
        yield running


@pytest.fixture
async def socks(tunnel: Tunnel) -> AsyncIterator[SocksServer]:
    async with socks_server(tunnel) as running:
        yield running


@contextlib.asynccontextmanager
async def socks_server(
    tunnel: Tunnel, host: str = "127.0.0.1", credentials: Credentials | None = None
) -> AsyncIterator[SocksServer]:
    connector = Connector(tunnel)
    server = SocksServer(connector, host, 0, credentials=credentials)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        await connector.close()


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PAGE)


async def curl(*arguments: str) -> tuple[int, bytes]:
    """Return curl's exit code and what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--max-time", str(PATIENCE), *arguments, stdout=asyncio.subprocess.PIPE, env=environment
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output


def request(destination: Destination, command: int = 1) -> bytes:
    return b"\x05" + bytes([command]) + b"\x00\x01" + socket.inet_aton(destination.address) + port_of(destination)


def port_of(destination: Destination) -> bytes:
    return destination.port.to_bytes(2, "big")


async def handshake(socks: SocksServer, message: bytes) -> tuple[Reply, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*socks.address)
    writer.write(b"\x05\x01\x00" + message)
    assert await reader.readexactly(2) == b"\x05\x00"
    return Reply((await reader.readexactly(10))[1]), reader, writer


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_curl_fetches_a_page(socks: SocksServer, host: str) -> None:
    proxy = "{}:{}".format(*socks.address)
    async with serving(web) as destination:
        assert await curl("--socks5-hostname", proxy, f"http://{host}:{destination.port}/") == (0, PAGE)


async def test_curl_shows_the_password(tunnel: Tunnel) -> None:
    async with serving(web) as destination, socks_server(tunnel, credentials=Credentials("me", "secret")) as socks:
        host, port = socks.address
        url = f"http://{destination}/"
        assert await curl("--proxy", f"socks5h://me:secret@{host}:{port}", url) == (0, PAGE)
        assert await curl("--proxy", f"socks5h://me:guess@{host}:{port}", url) == (97, b"")
        assert await curl("--proxy", f"socks5h://{host}:{port}", url) == (97, b"")


async def test_it_serves_on_ipv6_too(tunnel: Tunnel) -> None:
    async with serving(web) as destination, socks_server(tunnel, "::1") as socks:
        proxy = f"socks5h://[::1]:{socks.address[1]}"
        assert await curl("--proxy", proxy, f"http://{destination}/") == (0, PAGE)


async def test_an_optimistic_client_loses_nothing(socks: SocksServer) -> None:
    async with serving(echo) as destination:
        reader, writer = await asyncio.open_connection(*socks.address)
        writer.write(b"\x05\x01\x00" + request(destination) + b"hello")
        writer.write_eof()
        assert await reader.read() == b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6) + b"hello"
        writer.close()


async def test_a_service_may_speak_first(socks: SocksServer) -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        await reader.read()

    async with serving(banner) as destination:
        reply, reader, writer = await handshake(socks, request(destination))
        assert reply is Reply.SUCCEEDED
        assert await reader.readline() == b"220 ready\r\n"
        writer.close()


async def test_a_refused_destination_is_said_to_be_refused(socks: SocksServer) -> None:
    with nothing_there() as destination:
        reply, reader, writer = await handshake(socks, request(destination))
    assert reply is Reply.CONNECTION_REFUSED
    assert await reader.read() == b""
    writer.close()


async def test_an_unknown_name_is_said_to_be_unreachable(socks: SocksServer) -> None:
    # A label longer than 63 bytes is no name, and every resolver knows that without asking anybody.
    reply, _, writer = await handshake(socks, b"\x05\x01\x00\x03\x40" + b"x" * 64 + b"\x00\x50")
    assert reply is Reply.HOST_UNREACHABLE
    writer.close()


async def test_forbidden_forwarding_is_said_to_be_not_allowed(tmp_path: Path) -> None:
    with Sshd(tmp_path / "strict", {"AllowTcpForwarding": "no"}) as sshd:
        async with started(tunnel_to(sshd)) as tunnel, socks_server(tunnel) as socks:
            reply, _, writer = await handshake(socks, request(Destination("127.0.0.1", 80)))
            assert reply is Reply.NOT_ALLOWED
            writer.close()


@pytest.mark.parametrize("command", [2, 3])
async def test_bind_and_udp_associate_are_not_supported(socks: SocksServer, command: int) -> None:
    reply, _, writer = await handshake(socks, request(Destination("127.0.0.1", 80), command))
    assert reply is Reply.COMMAND_NOT_SUPPORTED
    writer.close()


async def test_it_stays_up_while_the_tunnel_is_down(sshd: Sshd, tunnel: Tunnel, socks: SocksServer) -> None:
    async with serving(web) as destination:
        sshd.stop()
        await eventually(lambda: tunnel.status()["state"] == "reconnecting")
        fetching = asyncio.create_task(
            curl("--socks5-hostname", "{}:{}".format(*socks.address), f"http://{destination}/")
        )
        await eventually(lambda: len(tunnel._waiters) == 1)
        sshd.start()
        assert await fetching == (0, PAGE)


async def test_without_a_tunnel_the_network_is_said_to_be_unreachable(tunnel: Tunnel, socks: SocksServer) -> None:
    await tunnel.close()
    reply, _, writer = await handshake(socks, request(Destination("127.0.0.1", 80)))
    assert reply is Reply.NETWORK_UNREACHABLE
    writer.close()


async def test_a_client_that_says_nothing_is_reset(socks: SocksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_TIMEOUT", 0.05)
    reader, writer = await asyncio.open_connection(*socks.address)
    writer.write(b"\x05")
    assert await ending_of(reader) == "reset"
    writer.close()


async def test_clients_that_hold_their_handshake_are_bounded(
    socks: SocksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_HANDSHAKES", 3)
    holding = [await asyncio.open_connection(*socks.address) for _ in range(3)]
    for reader, writer in holding:
        writer.write(b"\x05\x01\x00")
        await reader.readexactly(2)
    reader, writer = await asyncio.open_connection(*socks.address)
    assert await ending_of(reader) == "reset"
    for _, held in [*holding, (reader, writer)]:
        held.close()
    async with serving(web) as destination:
        await eventually(lambda: not socks._handshakes)
        reply, _, writer = await handshake(socks, request(destination))
        assert reply is Reply.SUCCEEDED
        writer.close()


async def test_a_taken_port_is_explained(tunnel: Tunnel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = SocksServer(Connector(tunnel), "127.0.0.1", port)
        with pytest.raises(AddressInUse) as caught:
            await server.start()
        assert str(port) in caught.value.what
        assert f"pid {os.getpid()}" in caught.value.why
        assert "--socks" in caught.value.remedy
        await server.close()


async def test_an_address_of_another_machine_is_explained(tunnel: Tunnel) -> None:
    with pytest.raises(UsageError):
        await SocksServer(Connector(tunnel), "192.0.2.1", 0).start()


async def test_closing_resets_who_is_in_the_handshake(tunnel: Tunnel) -> None:
    async with socks_server(tunnel) as socks:
        reader, writer = await asyncio.open_connection(*socks.address)
        writer.write(b"\x05\x01\x00")
        await reader.readexactly(2)
    assert await ending_of(reader) == "reset"
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*socks.address)


async def test_no_bytes_can_stop_it(tmp_path: Path) -> None:
    """Clients that send garbage, cut anywhere and leave in any way, do not keep the next one from its page."""
    # Garbage that happens to be a request must not make sshd connect to somebody.
    with Sshd(tmp_path / "local", {"PermitOpen": "127.0.0.1:*"}) as sshd:
        async with started(tunnel_to(sshd)) as tunnel, socks_server(tunnel) as socks:
            await babble_at(socks)
            async with serving(web) as destination:
                proxy = "{}:{}".format(*socks.address)
                assert await curl("--socks5-hostname", proxy, f"http://{destination}/") == (0, PAGE)
            await eventually(lambda: not socks._handshakes)


async def babble_at(socks: SocksServer) -> None:
    beginnings = [b"", b"\x05", b"\x05\x01\x00", b"\x05\x01\x00\x05\x01\x00\x03", b"\x05\x01\x00\x05\x01\x00\x01"]

    async def babble(seed: int) -> None:
        chance = random.Random(seed)
        reader, writer = await asyncio.open_connection(*socks.address)
        with contextlib.suppress(ConnectionError):
            writer.write(chance.choice(beginnings))
            for _ in range(chance.randrange(4)):
                writer.write(chance.randbytes(chance.randrange(300)))
                await writer.drain()
            leave: Callable[[], object] = chance.choice([writer.write_eof, writer.transport.abort, writer.close])
            leave()
            await reader.read()
        writer.close()

    async with asyncio.timeout(PATIENCE):
        for batch in range(20):
            await asyncio.gather(*(babble(10 * batch + seed) for seed in range(10)))
