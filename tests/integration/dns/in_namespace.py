"""Run in a network and mount namespace of its own: real resolvers with a resolv.conf of ours.

``python -m tests.integration.dns.in_namespace RESOLV_CONF FILE`` serves DNS on 127.0.0.1 port 53 for the clients in
this namespace, and prints as JSON what getent and Python's resolver say of each name in FILE, and for how many seconds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from dnslib import RR, DNSRecord

from tests.integration.dns.world import CATALOG, FakeCapture, start_scripted
from tp2.dns.server import DnsServer
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig

INTERNET = {"www.example.test.": "192.0.2.1", "api.dev.": "192.0.2.2", "web.other.example.": "192.0.2.3"}


def internet(data: bytes, _: int) -> list[bytes]:
    """Knows a few names with an IPv4 address."""
    query = DNSRecord.parse(data)
    reply = query.reply()
    address = INTERNET.get(str(query.q.qname).lower())
    if address is None:
        reply.header.rcode = 3
    elif query.q.qtype == 1:
        reply.add_answer(*RR.fromZone(f"{query.q.qname} 60 IN A {address}"))
    return [bytes(reply.pack())]


async def exempt(_: object) -> None:
    """Nothing is captured here."""


async def look_up(*command: str) -> tuple[str, float]:
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return (out.decode().split() or [""])[0], time.monotonic() - started


async def main(resolv_conf: str, names: list[str]) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
    upstream_server, address = await start_scripted(internet)
    upstream = Upstream([address], exempt=exempt)
    server = DnsServer(
        catalog=lambda: CATALOG,
        synced=lambda: True,
        capture=FakeCapture(),
        upstream=upstream,
        config=ZoneConfig(namespace="shop", search=("corp.example",)),
    )
    await server.start(port=53)
    resolve = "import socket, sys; print(socket.getaddrinfo(sys.argv[1], 80, type=socket.SOCK_STREAM)[0][4][0])"
    found = {}
    for name in names:
        by_getent, seconds = await look_up("getent", "ahosts", name)
        by_python, _ = await look_up(sys.executable, "-c", resolve, name)
        found[name] = [by_getent, by_python, seconds]
    print(json.dumps(found))
    await server.close()
    upstream.close()
    upstream_server.transport.abort()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text().split()))
