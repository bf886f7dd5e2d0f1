"""The server on loopback, asked by real clients, with dnsmasq as the real upstream."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from dnslib import DNSRecord

from tests.integration.dns.world import (
    CATALOG,
    PATIENCE,
    MakeWorld,
    ask,
    dig,
    framed,
    free_port,
    good,
    read_message,
    request,
    start_scripted,
)
from tp2.dns.server import DnsServer
from tp2.dns.zone import ZoneConfig
from tp2.errors import AddressInUse


async def test_dig_resolves_a_service_over_both_transports(make_world: MakeWorld) -> None:
    world = await make_world()
    assert await world.dig("web.shop.svc.cluster.local") == ["10.96.0.10"]
    assert await world.dig("+tcp", "web") == ["10.96.0.10"]
    assert await world.dig("AAAA", "web.shop") == []
    assert "status: NXDOMAIN" in await dig(world.port, "nope.shop.svc.cluster.local")


async def test_an_answer_never_precedes_its_capture(make_world: MakeWorld) -> None:
    world = await make_world()

    async def lookup(n: int) -> None:
        reply = await ask(world.port, request(f"s{n}.bulk", ident=n))
        captured = {want.destination.address for want in world.capture.captured}
        assert {str(rr.rdata) for rr in reply.rr} == {f"10.97.{n >> 8}.{n & 255}"} <= captured

    await asyncio.gather(*(lookup(n) for n in range(200)))


async def test_a_gate_that_stays_closed_holds_only_the_names_behind_it(
    make_world: MakeWorld, dnsmasq: tuple[str, int]
) -> None:
    world = await make_world(dnsmasq)
    world.capture.gate.clear()
    held = asyncio.ensure_future(ask(world.port, request("web.shop")))
    assert len((await ask(world.port, request("www.example.test"))).rr) == 1
    assert not held.done()
    world.capture.gate.set()
    assert len((await held).rr) == 1


async def test_a_pipelined_query_overtakes_one_that_waits(make_world: MakeWorld) -> None:
    world = await make_world()
    world.capture.gate.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(framed(request("web.shop", ident=1)) + framed(request("nope.cluster.local", ident=2)))
    assert (await read_message(reader)).header.id == 2
    world.capture.gate.set()
    assert (await read_message(reader)).header.id == 1
    writer.close()


async def test_many_queries_on_one_connection_in_any_cut(make_world: MakeWorld) -> None:
    world = await make_world()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    stream = b"".join(framed(request(f"s{n}.bulk", ident=n)) for n in range(200))
    for at in range(0, len(stream), 97):
        writer.write(stream[at : at + 97])
        await writer.drain()
    writer.write_eof()
    answered = {(await read_message(reader)).header.id for _ in range(200)}
    assert answered == set(range(200))
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    writer.close()


async def test_a_connection_that_breaks_off_leaves_the_server_well(make_world: MakeWorld) -> None:
    world = await make_world()
    for junk in (b"", b"\0", b"\0\x20short", b"\0\0", framed(b"junk"), framed(bytes(65535))):
        _, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(junk)
        writer.transport.abort()
    assert len((await ask(world.port, request("web.shop"))).rr) == 1


async def test_a_connection_too_many_takes_the_place_of_the_most_silent_one(make_world: MakeWorld) -> None:
    world = await make_world()
    connections = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(200)]
    first_reader, first_writer = connections[0]
    first_writer.write(framed(request("web.shop")))
    assert len((await read_message(first_reader)).rr) == 1
    connections.append(await asyncio.open_connection("127.0.0.1", world.port))
    second_reader, _ = connections[1]
    with pytest.raises((ConnectionError, EOFError)):
        await asyncio.wait_for(second_reader.readexactly(1), PATIENCE)
    for reader, writer in (connections[0], connections[-1]):
        writer.write(framed(request("web.shop")))
        assert len((await read_message(reader)).rr) == 1
    for _, writer in connections:
        writer.transport.abort()


async def test_a_connection_that_waits_for_an_answer_does_not_make_room_for_others(make_world: MakeWorld) -> None:
    world = await make_world()
    world.capture.gate.clear()
    waiting, asking = await asyncio.open_connection("127.0.0.1", world.port)
    asking.write(framed(request("web.shop")))
    async with asyncio.timeout(PATIENCE):
        while not world.server.counters.queries:
            await asyncio.sleep(0.01)
    crowd = [await asyncio.open_connection("127.0.0.1", world.port) for _ in range(250)]
    for reader, writer in crowd[-3:]:
        writer.write(framed(request("nope.cluster.local")))
        assert (await read_message(reader)).header.rcode == 3
    world.capture.gate.set()
    assert len((await read_message(waiting)).rr) == 1
    for _, writer in [*crowd, (waiting, asking)]:
        writer.transport.abort()


async def test_an_answer_too_large_for_udp_is_whole_over_tcp(make_world: MakeWorld) -> None:
    world = await make_world()
    assert len(await world.dig("+ignore", "+bufsize=512", "many.shop")) < 300
    assert len(await world.dig("+bufsize=512", "many.shop")) == 300
    reply = await ask(world.port, request("many.shop", size=65535))
    assert (len(reply.rr), reply.header.tc) == (300, 0)


async def test_everything_else_goes_to_the_upstream(make_world: MakeWorld, dnsmasq: tuple[str, int]) -> None:
    world = await make_world(dnsmasq)
    assert await world.dig("www.example.test") == ["192.0.2.1"]
    assert await world.dig("+tcp", "www.example.test") == ["192.0.2.1"]
    assert await world.dig("outside") == ["www.example.test.", "192.0.2.1"]
    assert world.server.counters.forwarded == 2


async def test_every_socket_to_an_upstream_is_exempted_once(make_world: MakeWorld, dnsmasq: tuple[str, int]) -> None:
    world = await make_world(dnsmasq)
    for _ in range(20):
        await ask(world.port, request("www.example.test"))
    await world.dig("+tcp", "www.example.test")
    assert [sock.type for sock in world.exempted] == [socket.SOCK_DGRAM] * 20 + [socket.SOCK_STREAM]
    assert len(set(world.exempted)) == 21


async def test_a_large_answer_of_the_upstream_passes_over_udp_and_tcp(
    make_world: MakeWorld, dnsmasq: tuple[str, int]
) -> None:
    world = await make_world(dnsmasq)
    over_udp = await ask(world.port, request("large.test", "TXT", size=4096))
    assert over_udp.header.tc == 0
    assert len(over_udp.rr[0].rdata.data) == 12
    assert (await ask(world.port, request("large.test", "TXT"))).header.tc == 1
    assert len((await world.dig("large.test", "TXT"))[0]) > 3000


async def test_a_dead_upstream_is_named_in_the_answer(make_world: MakeWorld) -> None:
    port = free_port()
    world = await make_world(("127.0.0.1", port))
    for transport in ("+notcp", "+tcp"):
        out = await dig(world.port, transport, "www.example.test")
        assert "status: SERVFAIL" in out
        assert f"EDE: 22 (No Reachable Authority): (127.0.0.1:{port}: connection refused)" in out
    assert await world.dig("web.shop") == ["10.96.0.10"]


async def test_no_upstream_at_all_is_said(make_world: MakeWorld) -> None:
    world = await make_world()
    assert "there is no upstream nameserver" in await dig(world.port, "www.example.test")


async def test_another_server_takes_over_and_servers_can_be_replaced(
    make_world: MakeWorld, dnsmasq: tuple[str, int]
) -> None:
    world = await make_world(("127.0.0.1", free_port()), dnsmasq)
    assert await world.dig("www.example.test") == ["192.0.2.1"]
    assert await world.dig("+tcp", "www.example.test") == ["192.0.2.1"]
    world.upstream.set_servers([("127.0.0.1", free_port())])
    assert await world.dig("www.example.test") == []
    world.upstream.set_servers([dnsmasq])
    assert await world.dig("www.example.test") == ["192.0.2.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_ids_and_ports_of_upstream_queries_do_not_repeat(make_world: MakeWorld, host: str) -> None:
    upstream, address = await start_scripted(lambda data, _: [good(data)], host)
    world = await make_world(address)
    for _ in range(30):
        assert (await ask(world.port, request("www.example.test", ident=77))).header.id == 77
    assert len({data[:2] for data, _ in upstream.seen}) > 25
    assert len({port for _, port in upstream.seen}) > 25
    upstream.transport.abort()


@pytest.mark.skipif(not Path("/proc/sys/net/ipv4/ip_local_port_range").exists(), reason="Linux")
async def test_upstream_queries_come_from_no_port_that_another_program_could_be_given(make_world: MakeWorld) -> None:
    # The kernel's connection tracking would take that program's query for one of ours, which passes the rules.
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if last - first > 50_000:
        pytest.skip("this machine gives all its ports to programs")
    upstream, address = await start_scripted(lambda data, _: [good(data)])
    world = await make_world(address)
    for _ in range(50):
        await ask(world.port, request("www.example.test"))
    assert not [port for _, port in upstream.seen if first <= port <= last]
    upstream.transport.abort()


async def test_only_the_reply_to_the_question_is_believed(make_world: MakeWorld) -> None:
    def script(data: bytes, _: int) -> list[bytes]:
        wrong_id = struct.pack("!H", int.from_bytes(data[:2]) ^ 1)
        other = DNSRecord.question("other.example.test").pack()
        return [
            b"",
            b"junk",
            data,
            wrong_id + good(data, "192.0.2.66")[2:],
            data[:2] + good(bytes(other), "192.0.2.66")[2:],
            good(data)[:2] + b"\x81\x80" + bytes(8),
            good(data),
            good(data, "192.0.2.66"),
        ]

    upstream, address = await start_scripted(script)
    world = await make_world(address)
    for _ in range(3):
        assert str((await ask(world.port, request("www.example.test"))).rr[0].rdata) == "192.0.2.7"
    upstream.transport.abort()


async def test_the_case_asked_comes_back_whatever_the_upstream_does_to_it(make_world: MakeWorld) -> None:
    upstream, address = await start_scripted(lambda data, _: [good(data).lower()])
    world = await make_world(address)
    reply = await ask(world.port, request("wWw.ExAmPlE.tEsT", ident=0x2121))
    assert reply.q.qname.label == (b"wWw", b"ExAmPlE", b"tEsT")
    upstream.transport.abort()


async def test_a_server_that_cannot_read_the_question_may_say_so(make_world: MakeWorld) -> None:
    upstream, address = await start_scripted(lambda data, _: [data[:2] + b"\x81\x81" + bytes(8)])
    world = await make_world(address)
    data = request("www.example.test", size=1232)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", world.port))
        await loop.sock_sendall(sock, data)
        assert await asyncio.wait_for(loop.sock_recv(sock, 512), PATIENCE) == data[:2] + b"\x81\x81" + bytes(8)
    upstream.transport.abort()


async def test_queries_under_way_end_with_the_server(make_world: MakeWorld) -> None:
    upstream, address = await start_scripted(lambda _data, _n: [])
    world = await make_world(address)
    world.capture.gate.clear()
    waiting = [asyncio.ensure_future(ask(world.port, request(name))) for name in ("web.shop", "www.example.test")]
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(framed(request("web.shop")) + framed(request("other.example.test")))
    async with asyncio.timeout(PATIENCE):
        while len(upstream.seen) < 1:
            await asyncio.sleep(0.01)
    await world.server.close()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    writer.transport.abort()
    upstream.transport.abort()


async def test_several_addresses_share_one_port(make_world: MakeWorld) -> None:
    world = await make_world()
    server = DnsServer(
        catalog=lambda: CATALOG,
        synced=lambda: True,
        capture=world.capture,
        upstream=world.upstream,
        config=ZoneConfig(),
    )
    port = await server.start(["127.0.0.1", "127.0.0.2", "::1"])
    for address in ("127.0.0.2", "::1"):
        for transport in ("+tcp", "+notcp"):
            out = await dig(port, f"@{address}", "+short", transport, "web.shop")
            assert out.strip() == "10.96.0.10"
    await server.close()


async def test_a_taken_port_is_an_error_with_a_remedy(make_world: MakeWorld) -> None:
    world = await make_world()
    with pytest.raises(AddressInUse) as caught:
        await world.server.start(port=world.port)
    assert str(world.port) in caught.value.what
    with pytest.raises(AddressInUse):
        await world.server.start(["192.0.2.1"])
