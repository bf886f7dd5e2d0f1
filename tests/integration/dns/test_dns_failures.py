"""Whatever tp2 cannot do, dig shows why: an extended error (RFC 8914) in words, beside SERVFAIL."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord

from tests.integration.dns.world import (
    PATIENCE,
    FakeCapture,
    MakeWorld,
    dig,
    framed,
    read_message,
    request,
    start_dnsmasq,
    start_scripted,
)
from tp2.cluster import kubeconfig
from tp2.cluster.catalog import Catalog, Port, Service
from tp2.cluster.watch import Cluster
from tp2.dns.responder import Capture
from tp2.dns.server import DnsServer
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig
from tp2.errors import ClusterError, ForwarderError
from tp2.portmap.mapper import Mapper
from tp2.portmap.table import Table
from tp2.sandbox.kubeapi_resources import NAMESPACES, SERVICES
from tp2.sandbox.kubeapi_server import KubeApi
from tp2.sandbox.kubeapi_store import Store
from tp2.sandbox.tls import new_authority
from tp2.types import Destination, Redirect

NOT_READY = "EDE: 14 (Not Ready): "
OTHER = "EDE: 0 (Other): "
UNREACHABLE = "EDE: 22 (No Reachable Authority): "


class Rules:
    """An operating system that takes every rule, or refuses with ``error``."""

    error: ForwarderError | None = None

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        if self.error is not None:
            raise self.error


class Nobody:
    """Nobody connects here."""

    def carry(self, sock: socket.socket, destination: Destination, on_close: Callable[[Any], None]) -> Any:
        raise NotImplementedError


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@asynccontextmanager
async def mapping(ports: int, rules: Rules) -> AsyncIterator[Mapper]:
    """The real mapper, with so many local ports."""
    mapper = Mapper(Table(free_ports(ports), idle_timeout=60.0), rules, Nobody())
    task = asyncio.ensure_future(mapper.run())
    yield mapper
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def serving(
    capture: Capture, upstream: Upstream, catalog: Callable[[], Catalog], why_unsynced: str | None = None
) -> AsyncIterator[int]:
    """A server as the daemon builds it."""
    options: dict[str, Any] = {} if why_unsynced is None else {"why_unsynced": lambda: why_unsynced}
    server = DnsServer(
        catalog=catalog,
        synced=lambda: catalog().generation > 0,
        capture=capture,
        upstream=upstream,
        config=ZoneConfig(namespace="shop"),
        **options,
    )
    yield await server.start()
    await server.close()


def many_services() -> Catalog:
    ports = (Port("http", 80),)
    services = [Service("shop", f"s{n}", (f"10.96.0.{n}",), ports) for n in range(1, 9)]
    return Catalog(1, {(s.namespace, s.name): s for s in services}, namespaces=frozenset({"shop"}))


async def test_a_table_without_a_free_port_is_said(make_world: MakeWorld) -> None:
    world = await make_world()
    async with mapping(2, Rules()) as mapper, serving(mapper, world.upstream, many_services) as port:
        for number in (1, 2):
            assert f"10.96.0.{number}" in await dig(port, f"s{number}.shop.svc.cluster.local")
        out = await dig(port, "s3.shop.svc.cluster.local")
        assert "status: SERVFAIL" in out
        assert f"{OTHER}(no local port is left for another mapping: " in out
        assert "10.96.0.1" in await dig(port, "s1")


async def test_a_rule_that_is_refused_is_said_with_the_systems_words(make_world: MakeWorld) -> None:
    world, rules = await make_world(), Rules()
    async with mapping(8, rules) as mapper, serving(mapper, world.upstream, many_services) as port:
        rules.error = ForwarderError("cannot change the forwarding rules", "netlink: no space left", "look at it")
        out = await dig(port, "s1")
        assert "status: SERVFAIL" in out
        assert f"{OTHER}(cannot change the forwarding rules: netlink: no space left)" in out
        rules.error = None
        assert "10.96.0.1" in await dig(port, "s1")


async def test_a_cluster_that_is_not_listed_yet_is_said(make_world: MakeWorld) -> None:
    upstream = await start_dnsmasq("--address=/example.test/192.0.2.1", "--local=/svc/", "--local=/shop/", "--local=//")
    world = await make_world(upstream.address)
    async with serving(FakeCapture(), world.upstream, Catalog) as port:
        for name in ("s1.shop.svc.cluster.local", "cluster.local", "s1.shop.svc", "s1.shop", "s1"):
            out = await dig(port, name)
            assert "status: SERVFAIL" in out, name
            assert f"{NOT_READY}(tp2 has not listed the cluster's services yet)" in out, name
        assert "192.0.2.1" in await dig(port, "www.example.test")
    await upstream.stop()


async def test_a_user_who_may_not_list_services_is_told_so(make_world: MakeWorld, tmp_path: Path) -> None:
    api = KubeApi(Store(), new_authority(), "token")
    await api.start()
    api.forbid("services")
    cluster = following(api, tmp_path)
    with pytest.raises(ClusterError) as caught:
        await cluster.start(PATIENCE)
    await api.stop()
    world = await make_world()
    async with serving(FakeCapture(), world.upstream, lambda: cluster.catalog, str(caught.value)) as port:
        out = await dig(port, "web.shop.svc.cluster.local")
    assert "status: SERVFAIL" in out
    assert NOT_READY in out
    assert "services" in out.partition(NOT_READY)[2].partition("\n")[0]
    assert "forbidden" in out.partition(NOT_READY)[2].partition("\n")[0]


async def test_a_user_who_may_list_one_namespace_is_told_so_of_the_others(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    store = Store()
    for name in ("shop", "other"):
        store.create(NAMESPACES, "", {"metadata": {"name": name}})
        spec = {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}
        store.create(SERVICES, name, {"metadata": {"name": "web"}, "spec": spec})
    api = KubeApi(store, new_authority(), "token")
    await api.start()
    for plural in ("services", "endpointslices"):
        api.forbid(plural, except_in=("shop",))
    api.forbid("namespaces")
    cluster = following(api, tmp_path)
    await cluster.start(PATIENCE)
    upstream = await start_dnsmasq("--address=/#/")
    world = await make_world(upstream.address)
    async with serving(FakeCapture(), world.upstream, lambda: cluster.catalog) as port:
        for name in ("web.other.svc.cluster.local", "other.svc.cluster.local", "web.other.svc"):
            out = await dig(port, name)
            assert "status: SERVFAIL" in out, name
            assert f"{OTHER}(tp2 is not allowed to list the services of namespace other, only those of shop)" in out
        assert "10.96.0.10" in await dig(port, "web.shop")
        assert "status: NXDOMAIN" in await dig(port, "nope.shop.svc.cluster.local")
        assert "status: NXDOMAIN" in await dig(port, "web.other")
    await cluster.close()
    await api.stop()
    await upstream.stop()


def following(api: KubeApi, directory: Path) -> Cluster:
    (directory / "config").write_text(json.dumps(api.kubeconfig("shop")))
    return Cluster(kubeconfig.load(directory / "config", None))


@pytest.mark.parametrize(("rcode", "name"), [(2, "SERVFAIL"), (5, "REFUSED")])
async def test_an_upstream_that_answers_with_a_failure_is_named(make_world: MakeWorld, rcode: int, name: str) -> None:
    def failing(data: bytes, _: int) -> list[bytes]:
        reply = DNSRecord.parse(data).reply()
        reply.header.rcode = rcode
        return [bytes(reply.pack())]

    upstream, address = await start_scripted(failing)
    world = await make_world(address)
    out = await dig(world.port, "www.example.test")
    assert f"status: {name}" in out
    assert f"{UNREACHABLE}(127.0.0.1:{address[1]}: answered {name})" in out
    # That a name is an alias is known all the same; it is the end of it that fails.
    out = await dig(world.port, "outside.shop")
    assert "status: SERVFAIL" in out
    assert "www.example.test." in out.partition("ANSWER SECTION")[2]
    assert f"{UNREACHABLE}(www.example.test: 127.0.0.1:{address[1]}: answered {name})" in out
    upstream.transport.abort()


async def test_every_upstream_that_failed_is_named(make_world: MakeWorld) -> None:
    port = free_ports(1)[0]
    refusing = await start_dnsmasq()
    world = await make_world(("127.0.0.1", port), refusing.address)
    out = await dig(world.port, "www.example.test")
    assert f"127.0.0.1:{port}: connection refused" in out
    assert f"127.0.0.1:{refusing.address[1]}: answered REFUSED" in out
    await refusing.stop()


async def test_what_nobody_may_ask_of_the_cluster_is_refused_in_words(make_world: MakeWorld) -> None:
    world = await make_world()
    assert "EDE: 21 (Not Supported): (the cluster's names are of class IN)" in await dig(
        world.port, "CH", "TXT", "web.shop.svc.cluster.local"
    )
    assert "status: NOTIMP" in await dig(world.port, "+opcode=UPDATE", "SOA", "cluster.local")
    assert "status: BADVERS" in await dig(world.port, "+edns=1", "+noednsnegotiation", "web.shop")


# Floods


async def test_a_flood_of_names_that_wait_to_be_captured_is_bounded_and_told(make_world: MakeWorld) -> None:
    world = await make_world()
    world.capture.gate.clear()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.connect(("127.0.0.1", world.port))
        for number in range(1100):
            await loop.sock_sendall(sock, request(f"s{number % 200}.bulk", ident=number, size=1232))
        reply = DNSRecord.parse(await asyncio.wait_for(loop.sock_recv(sock, 4096), PATIENCE))
        assert reply.header.rcode == 2
        assert b"too many names wait" in bytes(reply.ar[0].rdata[0].data)
        # What needs no capture is answered meanwhile, and the rest when the capture is done.
        assert "status: NXDOMAIN" in await dig(world.port, "nope.cluster.local")
        world.capture.gate.set()
        answered = 0
        while answered < 1000:
            reply = DNSRecord.parse(await asyncio.wait_for(loop.sock_recv(sock, 4096), PATIENCE))
            answered += reply.header.rcode == 0
    assert "status: NOERROR" in await dig(world.port, "web.shop")


async def test_one_connection_has_only_so_many_queries_under_way(make_world: MakeWorld) -> None:
    world = await make_world()
    world.capture.gate.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(b"".join(framed(request(f"s{number}.bulk", ident=number)) for number in range(100)))
    asked = world.server.counters
    async with asyncio.timeout(PATIENCE):
        while asked.queries < 32:
            await asyncio.sleep(0.01)
    # Another client's query comes after whatever the server has read, and shows that it reads no more.
    assert "status: NXDOMAIN" in await dig(world.port, "+tcp", "nope.cluster.local")
    assert asked.queries == 33
    world.capture.gate.set()
    assert {(await read_message(reader)).header.id for _ in range(100)} == set(range(100))
    writer.close()


async def test_hostile_packets_hurt_nobody_over_either_transport(make_world: MakeWorld) -> None:
    world = await make_world()
    header = b"\0\1\1\0\0\1\0\0\0\0\0\0"
    hostile = [
        header + b"\xc0\x0c\0\1\0\1",
        header + b"\x3f" + b"a" * 63 * 60,
        header[:6] + b"\xff" * 6 + b"\0\0\1\0\1",
        header[:10] + b"\0\1\0\0\1\0\1" + b"\0\0\x29\xff\xff\0\0\0\0\0\4\0\x0a\xff\xff",
        b"\xff" * 4000,
        bytes(12),
        b"\0" * 3,
        header + struct.pack("!B", 200) + b"\0" * 300,
    ]
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", world.port))
        for number in range(4000):
            await loop.sock_sendall(sock, hostile[number % len(hostile)])
    for data in hostile:
        _, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(framed(data) * 20)
        await writer.drain()
        writer.transport.abort()
    assert await world.dig("web.shop") == ["10.96.0.10"]
