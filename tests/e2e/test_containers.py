"""Containers on a bridge see the cluster as the host does, and nobody else does by it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Ended, Laptop, Up, eventually, give_ipv6
from tp2.sandbox.box import NAMESERVER
from tp2.sandbox.namespaces import Host
from tp2.sandbox.objects import service

BRIDGE, CONTAINER = "172.17.0.1", "172.17.0.2"
BRIDGE6, CONTAINER6 = "fd00:17::1", "fd00:17::2"
WEB6 = "fd00:10:96::1"

BOTH_MODES = pytest.mark.parametrize("mode", ["portmap", "origdst"])


def make_bridge(laptop: Laptop, name: str) -> None:
    laptop.host.shell(f"""
        echo 1 >/proc/sys/net/ipv4/ip_forward
        ip link add {name} type bridge
        ip addr add {BRIDGE}/16 dev {name}
        ip -6 addr add {BRIDGE6}/64 dev {name} nodad
        ip link set {name} up""")


@contextmanager
def container_on(laptop: Laptop, bridge: str) -> Iterator[Host]:
    """A container as an engine would make it: a network of its own, plugged into the bridge, the host's nameserver."""
    with Host("container", laptop.host) as made:
        laptop.host.shell(f"""
            ip link add plug type veth peer name eth0 netns {made.pid}
            ip link set plug master {bridge} up""")
        made.shell(f"""
            ip addr add {CONTAINER}/16 dev eth0
            ip -6 addr add {CONTAINER6}/64 dev eth0 nodad
            ip link set eth0 up
            ip route add default via {BRIDGE}
            ip -6 route add default via {BRIDGE6}""")
        made.own_etc(
            {
                "resolv.conf": f"nameserver {NAMESERVER}\n",
                "hosts": "127.0.0.1 localhost\n",
                "nsswitch.conf": "hosts: files dns\n",
            }
        )
        yield made


def run(host: Host, *command: str) -> Ended:
    done = subprocess.run([*host.command(), *command], capture_output=True, text=True, timeout=60, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def curl(host: Host, *urls: str) -> str:
    done = run(host, "curl", "--silent", "--show-error", "--fail", "--max-time", "30", *urls)
    assert done.code == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def container(laptop: Laptop) -> Iterator[Host]:
    give_ipv6(laptop.box)
    laptop.box.start_programs(f"http:web six:{WEB6}:80")
    laptop.box.create(service("shop", "six", WEB6, {"http": 80}))
    make_bridge(laptop, "docker0")
    with container_on(laptop, "docker0") as made:
        yield made


@BOTH_MODES
def test_a_container_sees_the_cluster(laptop: Laptop, container: Host, up: Callable[..., Up], mode: str) -> None:
    before = laptop.ruleset()
    running = up("--mode", mode)
    assert laptop.status()["capture"]["containers"] == ["docker0"]
    assert curl(container, "http://web.shop/", "http://web.blog/") == (
        "this is web.shop, port 80\nthis is web.blog, port 80\n"
    )
    assert curl(container, "http://six.shop/") == "this is web six, port 80\n"
    assert run(container, "dig", "+short", "+tcp", "web.shop").stdout == "10.96.1.1\n"
    row = next(row for row in laptop.mappings() if row["name"] == "web.shop")
    assert row["total_connections"] == 1
    # The host goes on as before.
    assert laptop.curl("http://web.shop/") == "this is web.shop, port 80\n"
    assert running.stop() == 0
    assert laptop.ruleset() == before


def test_in_mode_origdst_a_container_needs_no_lookup(laptop: Laptop, container: Host, up: Callable[..., Up]) -> None:
    running = up("--mode", "origdst")
    assert curl(container, "http://10.96.1.2:8080/") == "this is api.shop, port 8080\n"
    assert curl(container, f"http://[{WEB6}]/") == "this is web six, port 80\n"
    assert running.stop() == 0


def test_in_mode_portmap_a_container_is_refused_what_is_not_mapped(
    laptop: Laptop, container: Host, up: Callable[..., Up]
) -> None:
    running = up()
    eventually(lambda: laptop.status()["capture"]["addresses"] > 10)
    assert run(container, "curl", "--silent", "--max-time", "20", "http://10.96.1.2:8080/").code == 7
    refused = laptop.status()["capture"]["refused"]["destinations"]
    assert any((row["address"], row["port"]) == ("10.96.1.2", 8080) for row in refused)
    assert laptop.tp2("map", "10.96.1.2:8080").code == 0
    assert curl(container, "http://10.96.1.2:8080/") == "this is api.shop, port 8080\n"
    assert running.stop() == 0


def listening_ports(laptop: Laptop) -> list[tuple[str, str, int]]:
    """The transport, address and port of every socket that tp2 listens on."""
    pid = laptop.status()["pid"]
    found = []
    for line in laptop.host.run("ss", "-H", "-n", "-l", "-p", "-t", "-u").splitlines():
        if f"pid={pid}," in line:
            fields = line.split()
            address, _, port = fields[4].rpartition(":")
            found.append((fields[0], address, int(port)))
    return found


def gets_in(host: Host, transport: str, address: str, port: int) -> str:
    """Try a port; say what answered, if anything did."""
    if transport == "udp":
        asked = run(host, "dig", f"@{address}", "-p", str(port), "+tries=1", "+time=1", "web.shop").stdout
        return f"{host.name} is answered at {address} port {port}" if "status:" in asked else ""
    where = f"[{address}]" if ":" in address else address
    done = run(host, "curl", "--silent", "--max-time", "1", "--http0.9", f"http://{where}:{port}/")
    # Refused, no answer, an empty one, reset.
    return "" if done.code in (7, 28, 52, 56) else f"{host.name} gets in at {address} port {port}: {done}"


@BOTH_MODES
def test_nobody_gets_in_by_the_ports_themselves(
    laptop: Laptop, container: Host, up: Callable[..., Up], mode: str
) -> None:
    running = up("--mode", mode)
    assert curl(container, "http://web.shop/") == "this is web.shop, port 80\n"
    ports = listening_ports(laptop)
    assert any("docker0" in address for _, address, _ in ports)
    # A host of the LAN that takes the laptop for a router to its bridge, or tries its own address.
    laptop.box.internet.shell(
        f"ip route replace {BRIDGE}/32 via 192.0.2.10; ip route replace 10.96.0.0/16 via 192.0.2.10"
    )
    try:
        attempts = [
            (host, transport, address, port)
            for transport, _, port in ports
            for host, addresses in (
                (laptop.box.internet, ("192.0.2.10", BRIDGE)),
                (container, ("192.0.2.10", BRIDGE, BRIDGE6)),
            )
            for address in addresses
        ]
        # Who may, does: what answers would be noticed.
        assert gets_in(laptop.host, "udp", "127.0.0.1", int(laptop.status()["dns"]["listen"].rpartition(":")[2]))
        with ThreadPoolExecutor(16) as pool:
            assert [got_in for got_in in pool.map(lambda attempt: gets_in(*attempt), attempts) if got_in] == []
        # Nor does the LAN reach the cluster by the laptop.
        assert run(laptop.box.internet, "curl", "--silent", "--max-time", "2", "http://10.96.1.1/").code in (7, 28)
    finally:
        laptop.box.internet.shell(f"ip route del {BRIDGE}/32 via 192.0.2.10; ip route del 10.96.0.0/16 via 192.0.2.10")
    assert running.stop() == 0


def test_containers_are_left_alone_if_the_user_says_so(laptop: Laptop, container: Host, up: Callable[..., Up]) -> None:
    running = up("--containers", "off")
    assert laptop.status()["capture"]["containers"] == []
    assert run(container, "dig", "+short", "+tries=1", "+time=1", "web.shop").stdout != "10.96.1.1\n"
    assert running.stop() == 0


def test_bridges_are_followed_as_they_come_and_go(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up("--containers", "auto", "--containers", "mine0")

    def inlets() -> list[str]:
        found: list[str] = laptop.status()["capture"]["containers"]
        return found

    others = inlets()
    laptop.host.shell("ip link add mine0 type bridge; ip addr add 172.18.0.1/16 dev mine0; ip link set mine0 up")
    eventually(lambda: inlets() == sorted([*others, "mine0"]))
    laptop.host.shell("ip addr add 172.19.0.1/16 dev mine0; ip addr del 172.18.0.1/16 dev mine0")
    eventually(lambda: any("172.19.0.1" in address for _, address, _ in listening_ports(laptop)))
    laptop.host.shell("ip link del mine0")
    eventually(lambda: inlets() == others)
    assert "mine0" not in laptop.ruleset()
    assert running.stop() == 0
