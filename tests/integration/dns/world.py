"""A running server with what is around it: a cluster, a capture, nameservers."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from dnslib import EDNS0, RR, DNSRecord

from tp2.cluster.catalog import Catalog, Endpoint, Port, Service
from tp2.dns.server import DnsServer
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig
from tp2.types import Wanted

PATIENCE = 20.0
HTTP = Port("http", 80)
SERVICES = (
    Service("shop", "web", ("10.96.0.10",), (HTTP,)),
    Service("shop", "many", headless=True),
    Service("shop", "outside", external_name="www.example.test"),
    *(Service("bulk", f"s{n}", (f"10.97.{n >> 8}.{n & 255}",), (HTTP,)) for n in range(200)),
)
CATALOG = Catalog(
    services={(s.namespace, s.name): s for s in SERVICES},
    endpoints={("shop", "many"): tuple(Endpoint(f"10.1.{n >> 8}.{n & 255}", (HTTP,)) for n in range(300))},
    namespaces=frozenset({"shop", "bulk", "dev"}),
)


class FakeCapture:
    """Captures after ``gate``, a loop turn later than asked, and remembers it."""

    def __init__(self) -> None:
        self.captured: set[Wanted] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    def renew(self, wanted: Sequence[Wanted]) -> bool:
        return self.captured.issuperset(wanted)

    async def ensure(self, wanted: Sequence[Wanted]) -> None:
        await self.gate.wait()
        await asyncio.sleep(0)
        self.captured.update(wanted)


class World:
    """A running server with what is around it."""

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        self.exempted: list[socket.socket] = []
        self.most_open = 0
        self.capture = FakeCapture()
        self.upstream = Upstream(servers, exempt=self.exempt)
        self.server = DnsServer(
            catalog=lambda: CATALOG,
            synced=lambda: True,
            capture=self.capture,
            upstream=self.upstream,
            config=ZoneConfig(namespace="shop"),
        )
        self.port = 0

    async def exempt(self, sock: socket.socket) -> None:
        self.exempted.append(sock)
        self.most_open = max(self.most_open, sum(each.fileno() >= 0 for each in self.exempted))

    async def dig(self, *arguments: str) -> list[str]:
        """The lines of dig's output that are no comments."""
        out = await dig(self.port, "+short", *arguments)
        return [line for line in out.splitlines() if line and not line.startswith(";")]


async def dig(port: int, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "dig", "@127.0.0.1", "-p", str(port), "+tries=1", "+timeout=10", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    return out.decode()


class Dnsmasq:
    """A dnsmasq of our own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.address = ("127.0.0.1", port)

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def large_txt() -> list[str]:
    strings = ",".join("x" * 250 for _ in range(12))
    return [f"--txt-record=large.test,{strings}", "--edns-packet-max=4096"]


async def start_dnsmasq(*arguments: str, port: int = 0) -> Dnsmasq:
    binary = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if binary is None:
        pytest.skip("dnsmasq is not installed")
    # A port is soon taken, even one that was ours a moment ago: everybody's queries leave from such ports.
    async with asyncio.timeout(PATIENCE):
        while True:
            chosen = port or free_port()
            process = await asyncio.create_subprocess_exec(
                binary,
                "--no-daemon",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--listen-address=127.0.0.1",
                "--bind-interfaces",
                f"--port={chosen}",
                "--user=root",
                "--pid-file=",
                *arguments,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stderr is not None
            async for line in process.stderr:
                if b"started" in line:
                    return Dnsmasq(process, chosen)
            await process.wait()


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def request(name: str, qtype: str = "A", ident: int = 1, size: int = 0) -> bytes:
    record = DNSRecord.question(name, qtype)
    record.header.id = ident
    if size:
        record.add_ar(EDNS0(udp_len=size))
    return bytes(record.pack())


async def ask(port: int, data: bytes) -> DNSRecord:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        await loop.sock_sendall(sock, data)
        return DNSRecord.parse(await asyncio.wait_for(loop.sock_recv(sock, 65535), PATIENCE))


async def read_message(reader: asyncio.StreamReader) -> DNSRecord:
    async with asyncio.timeout(PATIENCE):
        return DNSRecord.parse(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


class Scripted(asyncio.DatagramProtocol):
    """A nameserver that answers each query with what ``script`` makes of it."""

    def __init__(self, script: Callable[[bytes, int], list[bytes]]) -> None:
        self.script = script
        self.seen: list[tuple[bytes, int]] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.seen.append((data, addr[1]))
        for reply in self.script(data, len(self.seen)):
            self.transport.sendto(reply, addr)


async def start_scripted(
    script: Callable[[bytes, int], list[bytes]], host: str = "127.0.0.1"
) -> tuple[Scripted, tuple[str, int]]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(lambda: Scripted(script), local_addr=(host, 0))
    return protocol, transport.get_extra_info("sockname")[:2]


def good(data: bytes, address: str = "192.0.2.7") -> bytes:
    query = DNSRecord.parse(data)
    reply = query.reply()
    reply.add_answer(*RR.fromZone(f"{query.q.qname} 60 IN A {address}"))
    return bytes(reply.pack())


MakeWorld = Callable[..., Awaitable[World]]


def open_sockets() -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += str(entry.readlink()).startswith("socket:")
        except OSError:
            continue
    return found
