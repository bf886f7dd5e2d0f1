"""The same promises in every cell: either mode, IPv4 and IPv6, from the host and from a container behind a bridge."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.conftest import CLIENTS, Ended, Laptop, Up, eventually, give_ipv6
from tests.e2e.test_containers import container_on, curl, make_bridge, run
from tp2.sandbox.box import NAMESERVER
from tp2.sandbox.namespaces import Host
from tp2.sandbox.objects import endpoint_slice, namespace, service
from tp2.sandbox.services import pattern

SIZE = 4_000_000

#: How curl ends when a connection was accepted and then reset: at once, or before or after its first byte.
RESET = (7, 52, 56)


@dataclass(frozen=True)
class Family:
    """One family's part of the cluster: a namespace of services whose addresses are all of it."""

    namespace: str
    kind: str
    services: str
    pods: str
    nameserver: str

    def url(self, address: str, port: int = 80) -> str:
        """An address as curl takes it."""
        return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


FAMILIES = {
    "ipv4": Family("four", "A", "10.96.64.", "10.244.64.", NAMESERVER),
    "ipv6": Family("six", "AAAA", "fd00:10:96::64:", "fd00:10:244::64:", "2001:db8:53::53"),
}


def fill(laptop: Laptop, family: Family) -> None:
    """Give the cluster the services of a family, and the programs behind them."""
    where, services, pods = family.namespace, family.services, family.pods
    laptop.box.start_programs(
        f"http:web.{where}:{services}1:80",
        f"http:other.{where}:{services}2:80",
        f"http:api.{where}:{services}3:8080",
        f"http:admin.{where}:{services}3:9090",
        f"greet:mail.{where}:{services}4:25",
        f"digest:mail.{where}:{services}4:26",
        f"farewell:mail.{where}:{services}4:27",
        f"greet:db-0.{where}:{pods}10:5432",
        f"greet:db-1.{where}:{pods}11:5432",
    )
    laptop.box.create(
        namespace(where),
        service(where, "web", f"{services}1", {"http": 80}),
        service(where, "other", f"{services}2", {"http": 80}),
        service(where, "api", f"{services}3", {"http": 8080, "admin": 9090}),
        service(where, "mail", f"{services}4", {"smtp": 25, "digest": 26, "farewell": 27}),
        service(where, "dead", f"{services}5", {"http": 80}),
        service(where, "db", "None", {"sql": 5432}),
        endpoint_slice(where, "db", {"db-0": f"{pods}10", "db-1": f"{pods}11"}, {"sql": 5432}),
    )


@pytest.fixture(scope="module")
def container(laptop: Laptop) -> Iterator[Host]:
    """A container behind a bridge, on a laptop and in a cluster that have both families."""
    give_ipv6(laptop.box)
    for family in FAMILIES.values():
        fill(laptop, family)
    laptop.box.start_nameserver(FAMILIES["ipv6"].nameserver)
    both = "".join(f"nameserver {family.nameserver}\n" for family in FAMILIES.values())
    laptop.host.write_etc("resolv.conf", both)
    make_bridge(laptop, "docker0")
    # As container engines do for networks that have IPv6.
    laptop.host.shell("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
    with container_on(laptop, "docker0") as made:
        made.write_etc("resolv.conf", both)
        yield made


@pytest.fixture(scope="module", params=["portmap", "origdst"])
def mode(request: pytest.FixtureRequest, laptop: Laptop, container: Host) -> Iterator[str]:
    """tp2 in one of its modes."""
    before = laptop.ruleset()
    up = Up(laptop, "--mode", request.param)
    for family in FAMILIES.values():
        eventually(lambda family=family: laptop.lookup(f"db.{family.namespace}", family.kind) != [])  # type: ignore[misc]
    eventually(lambda: laptop.status()["capture"]["addresses"] > 20)
    yield request.param
    assert up.process.poll() is None, "tp2 did not survive the tests"
    assert up.stop() == 0
    assert laptop.ruleset() == before


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest, mode: str) -> Family:
    """One of the families."""
    return FAMILIES[request.param]


@pytest.fixture(params=["host", "container"])
def place(request: pytest.FixtureRequest, laptop: Laptop, container: Host) -> Host:
    """Where the programs run."""
    return laptop.host if request.param == "host" else container


def talk(place: Host, what: str, host: str, port: int) -> str:
    done: Ended = run(place, sys.executable, str(CLIENTS / "talk.py"), what, host, str(port))
    assert done.code == 0, done.stderr
    return done.stdout


def test_names_resolve_over_udp_and_tcp(family: Family, place: Host) -> None:
    at = f"@{family.nameserver}"
    for name in (f"web.{family.namespace}", f"web.{family.namespace}.svc.cluster.local"):
        for transport in ("+notcp", "+tcp"):
            done = run(place, "dig", "+short", "+tries=1", transport, at, name, family.kind)
            assert done.stdout == f"{family.services}1\n", done
    done = run(place, "dig", "+short", "+tries=1", at, f"_http._tcp.web.{family.namespace}.svc.cluster.local", "SRV")
    assert done.stdout == f"0 100 80 web.{family.namespace}.svc.cluster.local.\n"
    assert run(place, "dig", "+short", "+tries=1", at, "-x", f"{family.services}1").stdout == (
        f"web.{family.namespace}.svc.cluster.local.\n"
    )


def test_services_are_told_apart_by_address_and_port(family: Family, place: Host) -> None:
    names = [f"web.{family.namespace}", f"other.{family.namespace}"]
    assert curl(place, *(f"http://{name}/" for name in names)) == "".join(f"this is {n}, port 80\n" for n in names)
    api = f"api.{family.namespace}"
    assert curl(place, f"http://{api}:8080/", f"http://{api}:9090/") == (
        f"this is {api}, port 8080\nthis is admin.{family.namespace}, port 9090\n"
    )


def test_a_headless_service_is_its_pods(family: Family, place: Host) -> None:
    for pod in ("db-0", "db-1"):
        said = talk(place, "listen_first", f"{pod}.db.{family.namespace}.svc.cluster.local", 5432)
        assert f"220 {pod}.{family.namespace}" in said


def test_either_side_may_speak_first_and_end_first(family: Family, place: Host) -> None:
    mail = f"mail.{family.namespace}"
    assert talk(place, "listen_first", mail, 25) == f"b'220 {mail}\\r\\n'\nb'hello\\n'\n"
    assert talk(place, "end_our_side", mail, 26) == "True\n"
    assert talk(place, "their_side_ends_first", mail, 27) == f"b'goodbye from {mail}\\n'\n"


def test_200_connections_at_once_are_kept_apart(family: Family, place: Host) -> None:
    assert talk(place, "many_at_once", f"mail.{family.namespace}", 25) == "all right\n"


def test_bytes_arrive_intact_in_both_directions(laptop: Laptop, family: Family, place: Host) -> None:
    web, body = f"http://web.{family.namespace}", laptop.box.directory / "body"
    curl(place, "--output", str(body), f"{web}/bytes/{SIZE}")
    assert body.read_bytes() == pattern(SIZE)
    assert curl(place, "--upload-file", str(body), f"{web}/hash") == hashlib.sha256(pattern(SIZE)).hexdigest()


def test_a_service_that_nothing_stands_behind_resets(family: Family, place: Host) -> None:
    done = run(place, "curl", "--silent", "--show-error", "--max-time", "20", f"http://dead.{family.namespace}/")
    assert done.code in RESET, done


def test_what_nobody_looked_up_is_reached_or_refused_at_once(
    laptop: Laptop, mode: str, family: Family, place: Host
) -> None:
    pod = family.url(f"{family.pods}10", 5433)

    def ended() -> int:
        return run(place, "curl", "--silent", "--max-time", "5", pod).code

    def counted() -> bool:
        rows = laptop.status()["capture"]["refused"]["destinations"]
        return any((row["address"], row["port"]) == (f"{family.pods}10", 5433) for row in rows)

    if mode == "portmap":
        # By a rule, before anybody accepts it; the rule follows the catalog.
        eventually(lambda: ended() == 7 and counted())
    else:
        # By the cluster: nobody listens there.
        assert ended() in RESET
        assert "220 db-0" in talk(place, "listen_first", f"{family.pods}10", 5432)


def test_every_connection_was_counted_where_it_went(laptop: Laptop, family: Family, place: Host) -> None:
    def total() -> int:
        rows = laptop.mappings()
        return sum(row["total_connections"] for row in rows if row["address"] == f"{family.services}2")

    before = total()
    assert curl(place, f"http://other.{family.namespace}/") == f"this is other.{family.namespace}, port 80\n"
    assert total() == before + 1
