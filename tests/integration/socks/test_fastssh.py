"""Our own packets on asyncssh's connection: whatever happens to its keys, no byte is lost and no nonce comes twice."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.crypto import cipher as asyncssh_cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.integration.socks.rig import PATIENCE, echo, ending_of, eventually, portal, serving, started, tunnel_to
from tests.integration.socks.sshd import Sshd
from tp2.socks import fastssh
from tp2.socks.channel import Channel, ProtocolViolation
from tp2.socks.tunnel import Endpoint, Tunnel

SIZE = 3_000_000


@pytest.fixture(autouse=True)
def packets() -> None:
    """Not asyncssh's packets as well: this is about ours."""


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as running:
        yield running


@pytest.fixture
async def tunnel(sshd: Sshd) -> AsyncIterator[Tunnel]:
    async with started(tunnel_to(sshd)) as running:
        yield running


@pytest.fixture
def nonces(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[bytes, bytes]]:
    """How often each nonce was used to encrypt with each key, by us and by asyncssh."""
    used: Counter[tuple[bytes, bytes]] = Counter()

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._key, self._aead = bytes(key), AESGCM(key)
            self.decrypt = self._aead.decrypt

        def encrypt(self, nonce: bytes, data: bytes, header: bytes) -> bytes:
            used[self._key, bytes(nonce)] += 1
            return self._aead.encrypt(nonce, data, header)

    monkeypatch.setattr(fastssh, "AESGCM", Watched)
    monkeypatch.setattr(asyncssh_cipher, "AESGCM", Watched)
    return used


def link_of(tunnel: Tunnel) -> fastssh.FastLink:
    assert tunnel._link
    assert tunnel._link.fast
    return tunnel._link.fast


async def there_and_back(tunnel: Tunnel, connections: int, size: int = SIZE) -> None:
    """Send bytes to an echo and back, on several connections at once."""

    async def once(entrance: Any, number: int) -> None:
        payload = random.Random(number).randbytes(size)
        reader, writer = await entrance.connect()

        async def send() -> None:
            for start in range(0, size, 100_000):
                writer.write(payload[start : start + 100_000])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        received = await reader.read()
        await sending
        assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()
        writer.close()

    async with serving(echo) as destination, portal(tunnel, destination) as entrance, asyncio.timeout(PATIENCE):
        await asyncio.gather(*(once(entrance, number) for number in range(connections)))


async def test_it_is_in_use_and_keeps_the_connection(tunnel: Tunnel) -> None:
    link_of(tunnel)
    await there_and_back(tunnel, 1)
    assert tunnel.status()["reconnects"] == 0


async def test_new_keys_asked_for_by_us_lose_nothing(
    tunnel: Tunnel, nonces: Counter[tuple[bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tunnel._link
    connection = tunnel._link.connection
    connection._rekey_bytes = 300_000
    await there_and_back(tunnel, 5)
    assert tunnel.status()["reconnects"] == 0
    assert max(nonces.values()) == 1
    assert len({key for key, _ in nonces}) > 10


async def test_new_keys_asked_for_by_the_endpoint_lose_nothing(
    tmp_path: Path, nonces: Counter[tuple[bytes, bytes]]
) -> None:
    with Sshd(tmp_path / "sshd", {"RekeyLimit": "1M"}) as sshd:
        async with started(tunnel_to(sshd)) as tunnel:
            await there_and_back(tunnel, 5)
            assert tunnel.status()["reconnects"] == 0
    assert max(nonces.values()) == 1
    assert len({key for key, _ in nonces}) > 5


async def test_new_keys_are_due_by_time_too(tunnel: Tunnel, nonces: Counter[tuple[bytes, bytes]]) -> None:
    assert tunnel._link
    connection = tunnel._link.connection
    connection._rekey_time = 0.0
    link_of(tunnel)._heard = 0.0
    await there_and_back(tunnel, 1, 200_000)
    assert connection._rekey_time > 0
    assert tunnel.status()["reconnects"] == 0
    assert max(nonces.values()) == 1


async def test_asyncssh_s_own_requests_and_channels_go_on_beside_ours(tunnel: Tunnel, sshd: Sshd) -> None:
    """asyncssh's keepalives are answered, and a channel of its own works on the same connection."""
    assert tunnel._link
    connection = tunnel._link.connection
    received = bytearray()
    over = asyncio.Event()

    class Session(asyncssh.SSHTCPSession[bytes]):
        def data_received(self, data: bytes, datatype: int | None) -> None:
            received.extend(data)

        def eof_received(self) -> bool:
            over.set()
            return False

    async with serving(echo) as destination, asyncio.timeout(PATIENCE):
        connection.set_keepalive(0.01, 100)
        channel = await tunnel.open(Session, *destination)
        await there_and_back(tunnel, 3)
        channel.write(b"theirs" * 1000)
        channel.write_eof()
        await over.wait()
        await eventually(lambda: connection._keepalive_count == 0)
    assert bytes(received) == b"theirs" * 1000
    assert tunnel.status()["reconnects"] == 0


@pytest.mark.parametrize("reason", ["another asyncssh", "another cipher", "switched off"])
async def test_what_is_not_known_is_left_to_asyncssh(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {}
    match reason:
        case "another asyncssh":
            monkeypatch.setattr(asyncssh, "__version__", "3.0.0")
        case "another cipher":
            options = {"Ciphers": "chacha20-poly1305@openssh.com"}
        case _:
            monkeypatch.setattr(fastssh, "ENABLED", False)
    with Sshd(tmp_path / "sshd", options) as sshd:
        async with started(tunnel_to(sshd)) as tunnel:
            assert tunnel._link
            assert tunnel._link.fast is None
            await there_and_back(tunnel, 2)


async def test_a_cipher_that_comes_with_new_keys_is_left_to_asyncssh(sshd: Sshd, tunnel: Tunnel) -> None:
    assert tunnel._link
    connection = tunnel._link.connection
    connection._enc_algs = [b"chacha20-poly1305@openssh.com"]
    connection._rekey_bytes_sent = connection._rekey_bytes
    await there_and_back(tunnel, 3)
    assert connection.get_extra_info("send_cipher") == "chacha20-poly1305@openssh.com"
    assert tunnel.status()["reconnects"] == 0


class Meddler:
    """A relay in front of sshd that can change what comes from it."""

    def __init__(self, port: int) -> None:
        self.flip = False
        self._port = port

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection("127.0.0.1", self._port)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, theirs: bool) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    if theirs and self.flip:
                        self.flip = False
                        data = data[:-1] + bytes((data[-1] ^ 1,))
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(reader, behind[1], False), pass_on(behind[0], writer, True))


async def test_a_packet_that_was_changed_on_the_way_ends_the_connection(sshd: Sshd) -> None:
    meddler = Meddler(sshd.port)
    async with serving(meddler) as front, serving(echo) as destination:
        tunnel = Tunnel(Endpoint(*front, sshd.user), identity=sshd.identity, host_key=sshd.host_key)
        async with started(tunnel), portal(tunnel, destination) as entrance:
            link_of(tunnel)
            reader, writer = await entrance.connect()
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            meddler.flip = True
            writer.write(os.urandom(1000))
            assert await ending_of(reader) == "reset"
            writer.close()
            await eventually(lambda: tunnel.status()["reconnects"] == 1)
            assert "MAC verification failed" in (tunnel.status()["last_error"] or "")


async def test_an_endpoint_that_breaks_the_protocol_is_left_and_tried_again(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def violated(self: Channel) -> None:
        raise ProtocolViolation("an end that must not be")

    async with serving(echo) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        monkeypatch.setattr(Channel, "eof", violated)
        writer.write_eof()
        assert await ending_of(reader) == "reset"
        writer.close()
        await eventually(lambda: tunnel.status()["reconnects"] == 1)
        assert "an end that must not be" in (tunnel.status()["last_error"] or "")
