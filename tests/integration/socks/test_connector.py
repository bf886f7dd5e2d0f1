"""What a program may rely on when its connection is carried into the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.socks.rig import (
    PATIENCE,
    Look,
    Portal,
    echo,
    ending_of,
    eventually,
    nothing_there,
    portal,
    serving,
    started,
    tunnel_to,
)
from tests.integration.socks.sshd import Sshd
from tp2.socks.channel import LARGEST_WINDOW
from tp2.socks.connector import Connector, Flow
from tp2.socks.reasons import Refusal
from tp2.socks.relay import reset_on_close
from tp2.socks.tunnel import Tunnel
from tp2.types import Destination

MEGABYTE = 1_000_000


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "sshd") as running:
        yield running


@pytest.fixture
async def tunnel(sshd: Sshd) -> AsyncIterator[Tunnel]:
    async with started(tunnel_to(sshd, dial_timeout=PATIENCE)) as running:
        yield running


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_bytes_go_there_and_come_back_and_are_counted(tunnel: Tunnel) -> None:
    async with serving(echo) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write_eof()
        assert await reader.read() == b""
        await entrance.until(lambda: len(entrance.closed) == 1)
        flow = entrance.closed[0]
        assert flow is entrance.flows[0]
        assert flow.destination == destination
        assert (flow.bytes_sent, flow.bytes_received) == (5, 5)
        assert flow.closed
        await close(writer)


async def test_a_service_may_speak_first(tunnel: Tunnel) -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.shop ESMTP\r\n")
        await reader.read()

    async with serving(banner) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        assert await reader.readline() == b"220 mail.shop ESMTP\r\n"
        await close(writer)


async def test_a_service_answers_after_the_client_has_sent_eof(tunnel: Tunnel) -> None:
    async def sha256(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest())
        writer.write_eof()

    async with serving(sha256) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        sent = noise(3 * MEGABYTE)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(sent).digest()
        await close(writer)


async def test_a_client_goes_on_after_the_service_has_sent_eof(tunnel: Tunnel) -> None:
    received = asyncio.get_running_loop().create_future()

    async def eof_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all I have to say")
        writer.write_eof()
        received.set_result(await reader.read())

    async with serving(eof_first) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        assert await reader.read() == b"all I have to say"
        sent = noise(3 * MEGABYTE)
        writer.write(sent)
        writer.write_eof()
        assert await received == sent
        await entrance.until(lambda: len(entrance.closed) == 1)
        await close(writer)


async def test_fifty_megabytes_both_ways_at_once_arrive_as_they_were(tunnel: Tunnel) -> None:
    payload = noise(50 * MEGABYTE)
    expected = hashlib.sha256(payload).digest()

    async def pour(writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(payload), MEGABYTE):
            writer.write(payload[start : start + MEGABYTE])
            await writer.drain()
        writer.write_eof()

    async def drink(reader: asyncio.StreamReader) -> bytes:
        digest = hashlib.sha256()
        while data := await reader.read(MEGABYTE):
            digest.update(data)
        return digest.digest()

    seen = asyncio.get_running_loop().create_future()

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, digest = await asyncio.gather(pour(writer), drink(reader))
        seen.set_result(digest)

    async with serving(service) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        _, digest = await asyncio.gather(pour(writer), drink(reader))
        assert digest == expected
        assert await seen == expected
        await entrance.until(lambda: len(entrance.closed) == 1)
        assert entrance.closed[0].bytes_sent == entrance.closed[0].bytes_received == len(payload)
        await close(writer)


async def test_a_slow_reader_costs_bounded_memory_and_misses_nothing(tunnel: Tunnel) -> None:
    size = 40 * MEGABYTE
    payload = noise(size)
    progress = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal progress
        for start in range(0, size, 65536):
            writer.write(payload[start : start + 65536])
            await writer.drain()
            progress = start
        writer.write_eof()

    async with serving(pour) as destination, portal(tunnel, destination) as entrance:
        client = socket.socket()
        # A small buffer in the kernel, set before connecting, so that what piles up piles up where it is looked at.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, entrance.address)
        await entrance.until(lambda: len(entrance.flows) == 1)
        flow = entrance.flows[0]
        await stalled(lambda: progress)
        assert 0 < progress < size
        assert flow._transport
        assert flow._transport.get_write_buffer_size() < 256 * 1024
        assert Look(flow).undelivered <= LARGEST_WINDOW
        reader, writer = await asyncio.open_connection(sock=client)
        assert hashlib.sha256(await reader.read()).digest() == hashlib.sha256(payload).digest()
        await close(writer)


async def test_a_slow_service_holds_its_client_back_and_misses_nothing(tunnel: Tunnel) -> None:
    size = 40 * MEGABYTE
    payload = noise(size)
    go_on = asyncio.Event()
    progress = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        writer.write(hashlib.sha256(await reader.read()).digest())

    async with serving(slow) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()

        async def pour() -> None:
            nonlocal progress
            for start in range(0, size, 65536):
                writer.write(payload[start : start + 65536])
                await writer.drain()
                progress = start
            writer.write_eof()

        pouring = asyncio.create_task(pour())
        await stalled(lambda: progress)
        assert 0 < progress < size
        assert Look(entrance.flows[0]).unsent < MEGABYTE
        go_on.set()
        assert await reader.read() == hashlib.sha256(payload).digest()
        await pouring
        await close(writer)


async def stalled(progress: Callable[[], int]) -> None:
    """Wait until *progress* has begun and no longer moves."""
    still, last = 0, 0
    async with asyncio.timeout(PATIENCE):
        while still < 20:
            await asyncio.sleep(0.02)
            still = still + 1 if progress() == last and last else 0
            last = progress()


async def test_a_reader_that_lags_behind_a_service_that_has_closed_gets_everything(tunnel: Tunnel) -> None:
    payload = noise(MEGABYTE)
    done = asyncio.Event()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(payload)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        done.set()

    async with serving(respond) as destination, portal(tunnel, destination) as entrance:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, entrance.address)
        client.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(PATIENCE):
            await done.wait()
        # The endpoint has closed the channel by now or soon, while most of the bytes still wait in it.
        await eventually(lambda: channel_is_closing(entrance.flows[0]))
        reader, writer = await asyncio.open_connection(sock=client)
        assert await reader.read() == payload
        await close(writer)


def channel_is_closing(flow: Flow) -> bool:
    return flow._channel is None or Look(flow).ending


async def test_a_client_whose_bytes_nobody_took_sees_a_reset(tunnel: Tunnel) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(b"enough")

    async with serving(rude) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"x")
        assert await reader.read() == b"enough"
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    writer.write(b"more")
                    await writer.drain()
                    await asyncio.sleep(0.001)
        await close(writer)


@pytest.mark.parametrize("pending", [0, MEGABYTE])
async def test_a_lost_endpoint_is_a_reset_and_not_an_end(sshd: Sshd, tunnel: Tunnel, pending: int) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" + bytes(pending))
        await reader.read()

    async with serving(pour) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        assert await reader.readexactly(1) == b"x"
        sshd.stop()
        assert await ending_of(reader) == "reset"
        await entrance.until(lambda: len(entrance.closed) == 1)
        await close(writer)


async def test_a_tunnel_that_is_closed_in_order_is_a_reset_too(tunnel: Tunnel) -> None:
    async with serving(echo) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await tunnel.close()
        assert await ending_of(reader) == "reset"
        await close(writer)


async def test_a_connection_made_during_an_outage_is_held_and_loses_nothing(sshd: Sshd, tunnel: Tunnel) -> None:
    async with serving(echo) as destination, portal(tunnel, destination) as entrance:
        sshd.stop()
        await eventually(lambda: tunnel.status()["state"] == "reconnecting")
        reader, writer = await entrance.connect()
        payload = noise(MEGABYTE)
        writer.write(payload)
        writer.write_eof()
        await entrance.until(lambda: len(entrance.flows) == 1)
        sshd.start()
        assert await reader.read() == payload
        await close(writer)


async def test_what_a_client_says_early_is_bounded(sshd: Sshd, tunnel: Tunnel) -> None:
    sshd.stop()
    await eventually(lambda: tunnel.status()["state"] == "reconnecting")
    async with portal(tunnel, Destination("127.0.0.1", 80)) as entrance:
        _, writer = await entrance.connect()
        writer.write(bytes(20 * MEGABYTE))
        await entrance.until(lambda: len(entrance.flows) == 1)
        flow = entrance.flows[0]
        await stalled(lambda: flow._early_size)
        assert flow._early_size < MEGABYTE
        writer.transport.abort()


async def test_a_client_that_resets_while_it_waits_is_cleaned_up(sshd: Sshd, tunnel: Tunnel) -> None:
    sshd.stop()
    await eventually(lambda: tunnel.status()["state"] == "reconnecting")
    async with portal(tunnel, Destination("127.0.0.1", 80)) as entrance:
        _, writer = await entrance.connect()
        await entrance.until(lambda: len(entrance.flows) == 1)
        reset_on_close(writer.get_extra_info("socket"))
        writer.transport.abort()
        await entrance.until(lambda: len(entrance.closed) == 1)
        await eventually(lambda: not tunnel._waiters)


async def test_a_client_that_resets_ends_the_connection_in_the_cluster(tunnel: Tunnel) -> None:
    ended = asyncio.Event()

    async def until_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()
        ended.set()

    async with serving(until_eof) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        assert await reader.readexactly(1) == b"x"
        reset_on_close(writer.get_extra_info("socket"))
        writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        await entrance.until(lambda: len(entrance.closed) == 1)


async def test_a_refused_destination_is_a_reset_and_counted(tunnel: Tunnel) -> None:
    connector = Connector(tunnel)
    with nothing_there() as destination:
        entrance = Portal(connector, destination)
        reader, writer = await entrance.connect()
        assert await ending_of(reader) == "reset"
        await entrance.until(lambda: len(entrance.closed) == 1)
    assert connector.refused == {Refusal.REFUSED: 1}
    await close(writer)
    await entrance.close()
    await connector.close()


async def test_an_aborted_flow_is_a_reset(tunnel: Tunnel) -> None:
    async with serving(echo) as destination, portal(tunnel, destination) as entrance:
        reader, writer = await entrance.connect()
        writer.write(b"x")
        await reader.readexactly(1)
        entrance.flows[0].abort()
        assert await ending_of(reader) == "reset"
        await entrance.until(lambda: len(entrance.closed) == 1)
        await close(writer)


async def test_a_closed_connector_resets_what_it_is_given(tunnel: Tunnel) -> None:
    connector = Connector(tunnel)
    await connector.close()
    entrance = Portal(connector, Destination("127.0.0.1", 80))
    reader, writer = await entrance.connect()
    assert await ending_of(reader) == "reset"
    await entrance.until(lambda: len(entrance.closed) == 1)
    await close(writer)
    await entrance.close()
    await connector.close()


async def test_two_hundred_connections_at_once_keep_apart(tunnel: Tunnel) -> None:
    async with serving(echo) as destination, portal(tunnel, destination) as entrance:

        async def talk(number: int) -> bool:
            reader, writer = await entrance.connect()
            payload = noise(1000 + number)
            writer.write(payload)
            answer = await reader.readexactly(len(payload))
            # All are open at the same time: nobody leaves before everybody has had an answer.
            async with asyncio.timeout(PATIENCE):
                await everybody.wait()
            writer.write_eof()
            rest = await reader.read()
            await close(writer)
            return answer == payload and not rest

        everybody = asyncio.Barrier(200)
        results = await asyncio.gather(*(talk(number) for number in range(200)))
        assert all(results)
        await entrance.until(lambda: len(entrance.closed) == 200)
