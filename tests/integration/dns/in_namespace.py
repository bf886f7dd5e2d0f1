"""Run in a network and mount namespace of its own: real resolvers with a resolv.conf of ours.

``python -m tests.integration.dns.in_namespace RESOLV_CONF FILE OPTION...`` serves DNS on 127.0.0.1 port 53 for the
clients in this namespace, with a dnsmasq behind it that gets the options, and prints as JSON what getent and Python's
resolver say of each name in FILE, and for how many seconds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

from tests.integration.dns.world import CATALOG, FakeCapture, start_dnsmasq
from tp2.dns.server import DnsServer
from tp2.dns.upstream import Upstream
from tp2.dns.zone import ZoneConfig


async def exempt(_: object) -> None:
    """Nothing is captured here."""


async def look_up(*command: str) -> tuple[str, float]:
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return (out.decode().split() or [""])[0], time.monotonic() - started


async def main(resolv_conf: str, names: list[str], options: list[str]) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
    dnsmasq = await start_dnsmasq(*options)
    upstream = Upstream([dnsmasq.address], exempt=exempt)
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
    await dnsmasq.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text().split(), sys.argv[3:]))
