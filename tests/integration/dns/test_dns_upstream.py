"""Several nameservers, of which some are slow, dead, wrong, or hand our queries back to us."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
from dnslib import DNSRecord

from tests.integration.dns.world import (
    PATIENCE,
    MakeWorld,
    Scripted,
    ask,
    dig,
    free_port,
    good,
    request,
    start_dnsmasq,
    start_scripted,
)
from tp2.dns import race
from tp2.dns.race import DEADLINE
from tp2.dns.upstream import Upstream, UpstreamError

Address = tuple[str, int]


def failing(data: bytes, rcode: int = 2) -> bytes:
    reply = DNSRecord.parse(data).reply()
    reply.header.rcode = rcode
    return bytes(reply.pack())


class Slow(Scripted):
    """Answers after a while."""

    delay = 0.0

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.seen.append((data, addr[1]))
        reply = self.script(data, len(self.seen))
        asyncio.get_running_loop().call_later(self.delay, self._send, reply, addr)

    def _send(self, replies: list[bytes], addr: tuple[str, int]) -> None:
        for reply in replies:
            if not self.transport.is_closing():
                self.transport.sendto(reply, addr)


async def start_slow(delay: float, address: str) -> tuple[Slow, Address]:
    loop = asyncio.get_running_loop()

    def make() -> Slow:
        server = Slow(lambda data, _: [good(data, address)])
        server.delay = delay
        return server

    transport, protocol = await loop.create_datagram_endpoint(make, local_addr=("127.0.0.1", 0))
    return protocol, transport.get_extra_info("sockname")[:2]


async def answered_by(port: int, name: str = "www.example.test") -> str:
    reply = await ask(port, request(name))
    return str(reply.rr[0].rdata) if reply.rr else f"rcode {reply.header.rcode}"


def silent(_data: bytes, _count: int) -> list[bytes]:
    return []


async def test_the_fastest_server_comes_to_be_asked_first(make_world: MakeWorld) -> None:
    slow, slow_address = await start_slow(0.1, "192.0.2.1")
    fast, fast_address = await start_slow(0.0, "192.0.2.2")
    world = await make_world(slow_address, fast_address)
    answers = [await answered_by(world.port) for _ in range(10)]
    assert answers[0] == "192.0.2.1"
    assert answers[-5:] == ["192.0.2.2"] * 5
    slow.transport.abort()
    fast.transport.abort()


async def test_servers_as_fast_as_each_other_are_asked_in_their_order(make_world: MakeWorld) -> None:
    first, first_address = await start_slow(0.0, "192.0.2.1")
    second, second_address = await start_slow(0.0, "192.0.2.2")
    world = await make_world(first_address, second_address)
    assert {await answered_by(world.port) for _ in range(10)} == {"192.0.2.1"}
    assert len(second.seen) <= 2
    first.transport.abort()
    second.transport.abort()


async def test_a_silent_server_costs_the_first_client_little_and_the_next_ones_nothing(make_world: MakeWorld) -> None:
    dead, dead_address = await start_scripted(silent)
    alive, alive_address = await start_scripted(lambda data, _: [good(data)])
    world = await make_world(dead_address, alive_address)
    assert await answered_by(world.port) == "192.0.2.7"
    seen = len(dead.seen)
    for _ in range(20):
        assert await answered_by(world.port) == "192.0.2.7"
    assert len(dead.seen) - seen <= 3
    dead.transport.abort()
    alive.transport.abort()


async def test_a_lost_datagram_is_sent_again_from_another_port_with_another_id(make_world: MakeWorld) -> None:
    upstream, address = await start_scripted(lambda data, count: [good(data)] if count > 1 else [])
    world = await make_world(address)
    assert await answered_by(world.port) == "192.0.2.7"
    (first, first_port), (second, second_port) = upstream.seen
    assert (first[:2], first_port) != (second[:2], second_port)
    assert first[2:] == second[2:]
    upstream.transport.abort()


@pytest.mark.parametrize("rcode", [2, 4, 5])
async def test_a_server_that_cannot_answer_hands_over_to_one_that_can(make_world: MakeWorld, rcode: int) -> None:
    broken, broken_address = await start_scripted(lambda data, _: [failing(data, rcode)])
    alive, alive_address = await start_scripted(lambda data, _: [good(data)])
    world = await make_world(broken_address, alive_address)
    assert await answered_by(world.port) == "192.0.2.7"
    world.upstream.set_servers([broken_address])
    assert await answered_by(world.port) == f"rcode {rcode}"
    broken.transport.abort()
    alive.transport.abort()


async def test_a_name_that_does_not_exist_is_an_answer(make_world: MakeWorld) -> None:
    first, first_address = await start_scripted(lambda data, _: [failing(data, 3)])
    second, second_address = await start_scripted(lambda data, _: [good(data)])
    world = await make_world(first_address, second_address)
    for _ in range(5):
        assert await answered_by(world.port) == "rcode 3"
    first.transport.abort()
    second.transport.abort()


async def test_silence_is_told_in_words_before_the_client_gives_up(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DEADLINE < 5  # The patience of resolv.conf(5), and of dig.
    monkeypatch.setattr(race, "DEADLINE", 1.0)
    dead, address = await start_scripted(silent)
    world = await make_world(address)
    started = time.monotonic()
    out = await dig(world.port, "www.example.test")
    assert time.monotonic() - started >= 0.9
    assert f"(127.0.0.1:{address[1]} gave no answer in 1 s)" in out
    assert len(dead.seen) == 2
    dead.transport.abort()


async def test_a_server_that_comes_back_within_a_moment_is_not_missed(make_world: MakeWorld) -> None:
    port = free_port()
    world = await make_world(("127.0.0.1", port))
    asking = asyncio.ensure_future(answered_by(world.port))
    async with asyncio.timeout(PATIENCE):
        while not world.exempted:
            await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Scripted(lambda data, _: [good(data)]), local_addr=("127.0.0.1", port)
    )
    assert await asking == "192.0.2.7"
    transport.abort()


async def test_a_query_under_way_is_answered_by_the_servers_that_replace_a_dead_one(make_world: MakeWorld) -> None:
    dead, dead_address = await start_scripted(silent)
    alive, alive_address = await start_scripted(lambda data, _: [good(data)])
    world = await make_world(dead_address)
    asking = asyncio.ensure_future(answered_by(world.port))
    await _until(lambda: bool(dead.seen))
    world.upstream.set_servers([alive_address])
    assert await asyncio.wait_for(asking, DEADLINE - 1) == "192.0.2.7"
    dead.transport.abort()
    alive.transport.abort()


async def test_a_query_under_way_is_still_answered_by_the_server_that_is_replaced(make_world: MakeWorld) -> None:
    slow, slow_address = await start_slow(0.4, "192.0.2.1")
    dead, dead_address = await start_scripted(silent)
    world = await make_world(slow_address)
    asking = asyncio.ensure_future(answered_by(world.port))
    await _until(lambda: bool(slow.seen))
    world.upstream.set_servers([dead_address])
    assert await asking == "192.0.2.1"
    slow.transport.abort()
    dead.transport.abort()


async def test_no_lookup_fails_while_servers_change_and_die_under_load(make_world: MakeWorld) -> None:
    servers = [await start_dnsmasq(f"--address=/example.test/192.0.2.{n}") for n in (1, 2)]
    world = await make_world(servers[0].address)
    done = asyncio.Event()
    results: set[str] = set()

    async def load(worker: int) -> int:
        count = 0
        while not done.is_set():
            results.add(await answered_by(world.port, f"n{count}.w{worker}.example.test"))
            count += 1
        return count

    workers = [asyncio.ensure_future(load(n)) for n in range(4)]
    for turn in range(6):
        await asyncio.sleep(0.1)
        old, new = servers[turn % 2], servers[(turn + 1) % 2]
        world.upstream.set_servers([new.address])
        await old.stop()
        servers[turn % 2] = await start_dnsmasq(f"--address=/example.test/192.0.2.{turn % 2 + 1}", port=old.address[1])
    # One that dies and returns, with nobody to take its place.
    await servers[0].stop()
    servers[0] = await start_dnsmasq("--address=/example.test/192.0.2.1", port=servers[0].address[1])
    await asyncio.sleep(0.1)
    done.set()
    assert min(await asyncio.gather(*workers)) > 5
    assert results == {"192.0.2.1", "192.0.2.2"}
    for server in servers:
        await server.stop()


async def test_clients_that_ask_the_same_share_one_query(make_world: MakeWorld) -> None:
    upstream, address = await start_slow(0.2, "192.0.2.1")
    world = await make_world(address)
    replies = await asyncio.gather(*(ask(world.port, request("www.example.test", ident=n)) for n in range(50)))
    assert [reply.header.id for reply in replies] == list(range(50))
    assert len(upstream.seen) <= 2
    upstream.transport.abort()


async def test_sockets_to_the_upstream_are_bounded_and_given_back(make_world: MakeWorld) -> None:
    upstream, address = await start_scripted(lambda data, _: [good(data)])
    world = await make_world(address)
    for turn in range(3):
        await asyncio.gather(*(answered_by(world.port, f"n{n}.t{turn}.example.test") for n in range(300)))
        assert sum(sock.fileno() >= 0 for sock in world.exempted) <= 256
    assert world.most_open <= 256
    upstream.transport.abort()


async def test_more_queries_than_may_wait_are_told_so_and_cluster_names_go_on(make_world: MakeWorld) -> None:
    dead, address = await start_scripted(silent)
    world = await make_world(address)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.connect(("127.0.0.1", world.port))
        for n in range(1100):
            await loop.sock_sendall(sock, request(f"n{n}.example.test", ident=n, size=1232))
        reply = DNSRecord.parse(await asyncio.wait_for(loop.sock_recv(sock, 4096), PATIENCE))
    assert reply.header.rcode == 2
    assert b"too many queries wait" in bytes(reply.ar[0].rdata[0].data)
    assert await world.dig("web.shop") == ["10.96.0.10"]
    dead.transport.abort()


@pytest.mark.parametrize("through", ["dnsmasq", "plain"])
async def test_a_loop_through_somebody_else_is_named(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture, through: str
) -> None:
    world = await make_world()
    if through == "dnsmasq":
        middle = await start_dnsmasq(f"--server=127.0.0.1#{world.port}")
        address = middle.address
        stop = middle.stop
    else:
        relay, address = await start_relay(("127.0.0.1", world.port))

        async def stop() -> None:
            relay.close()

    world.upstream.set_servers([address])
    out = await dig(world.port, "www.example.test")
    assert "status: SERVFAIL" in out
    assert f"127.0.0.1:{address[1]}: sends queries back to tp2: a loop" in out
    started = time.monotonic()
    assert "a loop" in await dig(world.port, "other.example.test")
    assert time.monotonic() - started < DEADLINE
    assert len([record for record in caplog.records if "a loop" in record.getMessage()]) == 1
    assert await world.dig("web.shop") == ["10.96.0.10"]
    await stop()


class Relay(asyncio.DatagramProtocol):
    """Passes everything on as it is, and what comes back too."""

    def __init__(self, target: Address) -> None:
        self.target = target
        self.clients: list[asyncio.DatagramTransport] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport
        self.tasks: set[asyncio.Task[None]] = set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self.pass_on(data, addr))
        self.tasks.add(task)

    async def pass_on(self, data: bytes, addr: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self.target)
            await loop.sock_sendall(sock, data)
            reply = await loop.sock_recv(sock, 4096)
            if not self.transport.is_closing():
                self.transport.sendto(reply, addr)

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.transport.abort()


async def start_relay(target: Address) -> tuple[Relay, Address]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: Relay(target), local_addr=("127.0.0.1", 0))
    return protocol, transport.get_extra_info("sockname")[:2]


async def test_the_last_client_to_leave_ends_the_query() -> None:
    dead, address = await start_scripted(silent)

    async def exempt(_: socket.socket) -> None:
        return

    upstream = Upstream([address], exempt=exempt)
    waiting = [asyncio.ensure_future(upstream.exchange(request("a.example.test"), tcp=False)) for _ in range(3)]
    await _until(lambda: bool(dead.seen))
    for task in waiting:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*waiting, return_exceptions=True))
    upstream.close()
    dead.transport.abort()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_scope_that_does_not_exist_is_an_error_in_words() -> None:
    async def exempt(_: socket.socket) -> None:
        return

    upstream = Upstream([("fe80::1%nolink0", 53)], exempt=exempt)
    with pytest.raises(UpstreamError) as caught:
        await upstream.exchange(request("www.example.test"), tcp=False)
    assert "fe80::1%nolink0: " in caught.value.words
    upstream.close()


async def test_an_update_is_never_with_two_servers_at_a_time(make_world: MakeWorld) -> None:
    first, first_address = await start_scripted(silent)
    second, second_address = await start_scripted(lambda data, _: [data[:2] + bytes([data[2] | 0x80]) + data[3:]])
    world = await make_world(first_address, second_address)
    update = bytearray(request("example.test", "SOA"))
    update[2] = 5 << 3
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await ask(world.port, bytes(update))
    assert (len(first.seen), len(second.seen)) == (1, 0)
    first.transport.abort()
    second.transport.abort()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)
