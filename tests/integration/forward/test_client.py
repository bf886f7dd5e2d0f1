"""The daemon's side of the helper with the real one, in a namespace: every method of a Forwarder, and its answers."""

from __future__ import annotations

import sys

from tp2.sandbox.namespaces import Host

_DAEMON = """
import asyncio, errno, socket
from tp2.errors import Tp2Error
from tp2.forward.client import HelperForwarder, StartingHelper
from tp2.forward.rules import Forwarder, Inlet
from tp2.types import Destination, Redirect

def outcome(address, port):
    with socket.socket() as asking:
        asking.settimeout(20)
        return errno.errorcode.get(asking.connect_ex((address, port)), "connected")

async def main(starting):
    forwarder = HelperForwarder(starting.wait())
    rules: Forwarder = forwarder
    print(forwarder.kind, forwarder.lack)
    mapped, cluster = socket.create_server(("127.0.0.1", 20000)), socket.create_server(("127.0.0.1", 20001))
    further = socket.create_server(("127.0.0.2", 20000))
    bridge, dns = (socket.create_server(("172.17.0.1", port)) for port in (31000, 31001))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("172.17.0.1", 31001))
    await rules.update([Redirect(Destination("10.96.0.1", 80), 20000)], [])
    await rules.update([Redirect(Destination("10.96.0.1", 81), 20000, "127.0.0.2")], [])
    print(outcome("10.96.0.1", 80), outcome("10.96.0.1", 81))
    await rules.cluster(["10.96.0.1"], [], None)
    print(outcome("10.96.0.1", 82), outcome("10.96.0.1", 82), await rules.refused(), await rules.refused())
    await rules.cluster(["10.96.0.2"], ["10.96.0.1"], 20001)
    print(outcome("10.96.0.2", 4711))
    await rules.containers([Inlet("br0", 31000, 31001)])
    for wrong in (
        rules.update([Redirect(Destination("10.96.0.3", 80), 20009)], []),
        rules.cluster([], [], 20009),
        rules.containers([Inlet("br1", 31000, 31001)]),
    ):
        try:
            await wrong
        except Tp2Error as error:
            print(error)
    await rules.close()

with StartingHelper() as starting:
    asyncio.run(main(starting))
"""


def test_every_method_of_a_forwarder_reaches_the_kernel(host: Host) -> None:
    host.shell("""
        ip link add br0 type bridge
        ip addr add 172.17.0.1/16 dev br0
        ip link set br0 up""")
    nobody = (
        "the helper refused a redirect: it leads to 127.0.0.1 port 20009, but nobody listens there, "
        "and not tp2's user (0)"
    )
    assert host.run(sys.executable, "-c", _DAEMON).splitlines() == [
        "nftables None",
        "connected connected",
        "ECONNREFUSED ECONNREFUSED {Destination(address='10.96.0.1', port=82): 2} {}",
        "connected",
        nobody,
        nobody,
        "cannot capture what containers send: there is no network interface br1",
    ]
    assert host.run("nft", "list", "ruleset") == ""
