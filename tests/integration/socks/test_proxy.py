"""Connections through somebody's own proxy, an OpenSSH ``ssh -D``, are what they would be without it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.socks.rig import (
    PATIENCE,
    echo,
    ending_of,
    eventually,
    open_files,
    portal,
    serving,
)
from tests.integration.socks.sshd import Sshd, reserve_port
from tp2.errors import EndpointError
from tp2.socks import proxy as proxies
from tp2.socks import splice
from tp2.socks.connector import Connector
from tp2.socks.messages import Reply, Send, Server
from tp2.socks.proxy import SocksProxy
from tp2.socks.reasons import ChannelRefused, Refusal
from tp2.socks.server import SocksServer

SIZE = 20_000_000


class SshD:
    """OpenSSH's ``ssh -D`` to *sshd*, on a port of its own."""

    def __init__(self, sshd: Sshd) -> None:
        self._sshd = sshd
        self._reservation = reserve_port()
        self.port: int = self._reservation.getsockname()[1]
        self._known_hosts = sshd.directory / "known_hosts"
        self._known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *("ssh", "-F", "none", "-N", "-D", f"127.0.0.1:{self.port}", "-p", str(self._sshd.port)),
                *("-i", self._sshd.identity, "-o", f"UserKnownHostsFile={self._known_hosts}"),
                *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", f"{self._sshd.user}@127.0.0.1"),
            ],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while socket.socket().connect_ex(("127.0.0.1", self.port)) != 0:
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(autouse=True)
def packets() -> None:
    """SSH is ssh's own here."""


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[SshD]:
    with Sshd(tmp_path / "sshd") as sshd:
        running = SshD(sshd)
        running.start()
        yield running
        running.stop()


@pytest.fixture
async def proxy(ssh: SshD) -> AsyncIterator[SocksProxy]:
    running = SocksProxy("127.0.0.1", ssh.port)
    await running.start(PATIENCE)
    yield running
    await running.close()


async def test_a_service_answers_after_eof_and_bytes_are_counted(proxy: SocksProxy) -> None:
    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest())

    async with serving(digest) as destination, portal(proxy, destination) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(b"hello").digest()
        await entrance.until(lambda: len(entrance.closed) == 1)
        (flow,) = entrance.closed
        assert flow.destination == destination
        assert (flow.bytes_sent, flow.bytes_received) == (5, 32)
        writer.close()
    assert proxy.status()["state"] == "connected"
    assert proxy.peer_addresses == (("127.0.0.1", int(str(proxy).rpartition(":")[2])),)


async def test_a_service_may_speak_first_and_end_first(proxy: SocksProxy) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        writer.write_eof()
        assert await reader.read() == b"QUIT\r\n"

    async with serving(speak) as destination, portal(proxy, destination) as entrance:
        reader, writer = await entrance.connect()
        assert await reader.read() == b"220 mail\r\n"
        writer.write(b"QUIT\r\n")
        writer.write_eof()
        await entrance.until(lambda: len(entrance.closed) == 1)
        writer.close()


@pytest.mark.parametrize("spliced", [True, False])
async def test_bytes_arrive_as_they_were_both_ways_at_once(
    proxy: SocksProxy, spliced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipes: list[object] = []

    def counted() -> object:
        pipes.append(pipe := new_pipe())
        return pipe

    new_pipe = splice._new_pipe
    monkeypatch.setattr(splice, "_new_pipe", counted)
    if not spliced:
        monkeypatch.setattr(splice, "_SPLICE", False)
    payload = random.Random(7).randbytes(SIZE)
    async with serving(echo) as destination, portal(proxy, destination) as entrance:
        reader, writer = await entrance.connect()

        async def send() -> None:
            for start in range(0, SIZE, 100_000):
                writer.write(payload[start : start + 100_000])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        async with asyncio.timeout(PATIENCE):
            received = await reader.read()
            await sending
        assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()
        await entrance.until(lambda: len(entrance.closed) == 1)
        assert entrance.closed[0].bytes_sent == entrance.closed[0].bytes_received == SIZE
        writer.close()
    assert len(pipes) == (2 if spliced else 0)


async def test_without_a_pipe_a_connection_goes_on_with_copies(
    proxy: SocksProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splice, "_new_pipe", lambda: None)
    await test_bytes_arrive_as_they_were_both_ways_at_once(proxy, False, monkeypatch)


async def test_a_slow_reader_holds_the_service_back_and_misses_nothing(proxy: SocksProxy) -> None:
    size = 40_000_000
    payload = random.Random(8).randbytes(size)
    progress = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal progress
        for start in range(0, size, 65536):
            writer.write(payload[start : start + 65536])
            await writer.drain()
            progress = start
        writer.write_eof()

    async with serving(pour) as destination, portal(proxy, destination) as entrance:
        reader, writer = await entrance.connect()
        last = -1
        async with asyncio.timeout(PATIENCE):
            while progress != last or not progress:
                last = progress
                await asyncio.sleep(0.5)
        assert progress < size
        assert hashlib.sha256(await reader.read()).digest() == hashlib.sha256(payload).digest()
        writer.close()


async def test_a_client_that_resets_ends_the_connection_in_the_cluster(proxy: SocksProxy) -> None:
    ended = asyncio.Event()

    async def until_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with serving(until_end) as destination, portal(proxy, destination) as entrance:
        _, writer = await entrance.connect()
        writer.write(b"x")
        await entrance.until(lambda: len(entrance.flows) == 1)
        await eventually(lambda: entrance.flows[0].bytes_sent == 1)
        writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        await entrance.until(lambda: len(entrance.closed) == 1)


async def test_connections_wait_for_a_proxy_that_comes_back(ssh: SshD, proxy: SocksProxy) -> None:
    async with serving(echo) as destination, portal(proxy, destination) as entrance:
        ssh.stop()
        reader, writer = await entrance.connect()
        writer.write(b"early")
        await eventually(lambda: proxy.status()["state"] == "reconnecting")
        ssh.start()
        proxy.nudge()
        async with asyncio.timeout(PATIENCE):
            assert await reader.readexactly(5) == b"early"
        assert proxy.status()["reconnects"] == 1
        writer.close()


async def test_a_proxy_that_stays_away_fails_connections_after_their_time(ssh: SshD) -> None:
    proxy = SocksProxy("127.0.0.1", ssh.port, dial_timeout=0.2)
    await proxy.start(PATIENCE)
    ssh.stop()
    with pytest.raises(ChannelRefused) as caught:
        await proxy.dial("10.0.0.1", 80)
    assert caught.value.refusal is Refusal.NOT_CONNECTED
    async with serving(echo) as destination, portal(proxy, destination) as entrance:
        reader, writer = await entrance.connect()
        assert await ending_of(reader) == "reset"
        writer.close()


async def test_a_closed_proxy_fails_connections_at_once(proxy: SocksProxy) -> None:
    await proxy.close()
    with pytest.raises(ChannelRefused, match="closed"):
        await proxy.dial("10.0.0.1", 80)


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        (Reply.CONNECTION_REFUSED, Refusal.REFUSED),
        (Reply.NOT_ALLOWED, Refusal.PROHIBITED),
        (Reply.GENERAL_FAILURE, Refusal.FAILED),
    ],
)
async def test_what_a_proxy_says_of_a_destination_is_known(reply: Reply, refusal: Refusal) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = Server()
        for _ in range(2):
            for event in server.receive(await reader.read(100)):
                writer.write(event.data if isinstance(event, Send) else server.reply(reply))

    async with serving(refuse) as there:
        with pytest.raises(ChannelRefused) as caught:
            await SocksProxy(*there).dial("10.0.0.1", 80)
    assert caught.value.refusal is refusal


async def test_something_that_is_no_proxy_is_named_before_anything_starts() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(http) as there:
        with pytest.raises(EndpointError, match="no SOCKS5 proxy"):
            await SocksProxy(*there).start(PATIENCE)
    with pytest.raises(EndpointError, match="refused"), reserve_port() as sock:
        await SocksProxy(*sock.getsockname()).start(PATIENCE)


async def test_a_proxy_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr(proxies, "OPEN_TIMEOUT", 0.1)
    async with serving(silent) as there:
        with pytest.raises(EndpointError, match="nothing answered within"):
            await SocksProxy(*there).start(0.1)
        with pytest.raises(ChannelRefused) as caught:
            await SocksProxy(*there).dial("10.0.0.1", 80)
        assert caught.value.refusal is Refusal.TIMED_OUT


async def test_tp2_s_own_socks_server_leads_through_it(proxy: SocksProxy) -> None:
    """And loses nothing of a client that says everything at once."""
    connector = Connector(proxy)
    server = SocksServer(connector, "127.0.0.1", 0)
    await server.start()
    async with serving(echo) as destination, asyncio.timeout(PATIENCE):
        request = b"\x05\x01\x00\x01" + socket.inet_aton(destination.address) + destination.port.to_bytes(2, "big")
        for pieces in ((b"\x05\x01\x00" + request + b"early",), (b"\x05\x01\x00", request, b"early")):
            reader, writer = await asyncio.open_connection(*server.address)
            received = b""
            for piece in pieces:
                writer.write(piece)
                if len(pieces) > 1:
                    received += await reader.read(100)
            while len(received) < 2 + 10 + 5:
                received += await reader.read(100)
            assert received == b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6) + b"early"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
    await server.close()
    await connector.close()


async def test_connections_leave_no_descriptors_behind(proxy: SocksProxy) -> None:
    async def once() -> None:
        async with serving(echo) as destination, portal(proxy, destination) as entrance:
            for index in range(10):
                reader, writer = await entrance.connect()
                writer.write(bytes(1_000_000 if index % 2 else 10))
                await reader.read(10)
                if index % 3:
                    writer.write_eof()
                    await reader.read()
                    writer.close()
                else:
                    writer.transport.abort()

    await once()
    before = len(open_files())
    await once()
    await eventually(lambda: len(open_files()) <= before)
