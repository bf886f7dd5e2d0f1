"""Mode origdst: the kernel says where a connection was going, and an address needs no lookup."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import CLIENTS, Laptop, Up, eventually, give_ipv6
from tp2.sandbox.box import NAMESERVER, NODE, SITE, SITE_ADDRESS, tp2_command
from tp2.sandbox.objects import endpoint_slice, service

WEB6 = "fd00:10:96::1"


@pytest.fixture(scope="module")
def connected(laptop: Laptop) -> Iterator[Laptop]:
    give_ipv6(laptop.box)
    before = laptop.ruleset()
    up = Up(laptop, "--mode", "origdst")
    yield laptop
    assert up.process.poll() is None, "tp2 did not survive the tests"
    assert up.stop() == 0
    assert laptop.ruleset() == before


def test_a_name_resolves_and_curl_gets_the_body(connected: Laptop) -> None:
    assert connected.curl("http://web.shop/", "http://web.blog/", "http://api.shop:9090/") == (
        "this is web.shop, port 80\nthis is web.blog, port 80\nthis is api-admin.shop, port 9090\n"
    )


def test_an_address_that_was_pasted_works_without_a_lookup(connected: Laptop) -> None:
    assert connected.curl("http://10.96.1.2:8080/") == "this is api.shop, port 8080\n"


def test_so_does_a_pods(connected: Laptop) -> None:
    assert "220 db-0.db.shop" in connected.python("talk", "listen_first", "10.244.1.10", "5432")


def test_a_port_that_the_service_does_not_have_is_the_clusters_to_refuse(connected: Laptop) -> None:
    done = connected.run("curl", "--silent", "--show-error", "--max-time", "20", "http://10.96.1.1:81/")
    # How curl calls it depends on whether the refusal or its own request comes first.
    assert done.code in (7, 52, 56), done.stderr
    row = next(row for row in connected.mappings() if (row["address"], row["port"]) == ("10.96.1.1", 81))
    assert row["total_connections"] == 1


def test_ipv6_services_are_reached_by_name_and_by_address(connected: Laptop) -> None:
    connected.box.start_programs(f"http:web six:{WEB6}:80")
    connected.box.create(service("shop", "six", WEB6, {"http": 80}))
    eventually(lambda: connected.lookup("six.shop.svc.cluster.local", "AAAA") == [WEB6])
    assert connected.curl("http://six.shop/", f"http://[{WEB6}]/") == "this is web six, port 80\n" * 2
    row = next(row for row in connected.mappings() if row["address"] == WEB6)
    assert (row["name"], row["local_address"]) == ("six.shop", "::1")


def test_the_answer_never_precedes_the_capture_of_its_address(connected: Laptop) -> None:
    names = [f"new-{number}" for number in range(100)]
    addresses = [f"10.96.78.{number}" for number in range(100)]
    connected.box.start_programs(*(f"greet:{address}:{address}:7000" for address in addresses))
    connected.box.create(*(service("blog", n, a, {"tcp": 7000}) for n, a in zip(names, addresses, strict=True)))
    assert connected.python("hammer", NAMESERVER, "7000", *(f"{name}.blog" for name in names)) == ""


def test_200_connections_at_once_are_kept_apart(connected: Laptop) -> None:
    assert connected.python("talk", "many_at_once", "mail.shop", "25", timeout=100) == "all right\n"


def test_who_connects_to_the_listener_itself_gets_nowhere(connected: Laptop) -> None:
    connected.curl("http://web.shop/")
    port = connected.mappings()[0]["local_port"]
    for address in ("127.0.0.1", "[::1]", "192.0.2.10"):
        done = connected.run("curl", "--silent", "--show-error", "--max-time", "20", f"http://{address}:{port}/")
        assert done.code in (7, 52, 56), done
    assert connected.curl("http://web.shop/") == "this is web.shop, port 80\n"


def test_what_is_not_the_clusters_is_left_alone(connected: Laptop) -> None:
    assert connected.lookup(SITE) == [SITE_ADDRESS]
    assert connected.curl(f"http://{SITE}/") == f"this is {SITE}, port 80\n"
    done = connected.run("curl", "--silent", "--show-error", "--max-time", "20", "http://10.96.200.200/")
    assert done.code == 7


def test_the_way_to_the_cluster_is_not_led_through_the_cluster(connected: Laptop) -> None:
    # As in a cluster whose nodes run pods on the host's network: the SSH endpoint's address is a pod's too.
    connected.box.create(
        service("default", "host-network", "None", {"ssh": 2222}),
        endpoint_slice("default", "host-network", {"node": NODE}, {"ssh": 2222}),
    )
    eventually(lambda: connected.lookup("host-network.default.svc.cluster.local") == [NODE])
    eventually(
        lambda: any(
            NODE in group["addresses"] and "tp2 itself" in group["why"]
            for group in connected.status()["capture"]["left_alone"]
        )
    )
    connected.box.stop_sshd()
    connected.box.start_sshd()
    assert connected.curl("http://web.shop/") == "this is web.shop, port 80\n"


def test_an_address_that_has_left_the_cluster_is_reset_at_once_and_counted(connected: Laptop) -> None:
    leaving = service("shop", "leaving", "10.96.1.60", {"http": 80})
    connected.box.start_programs("http:leaving:10.96.1.60:80")
    connected.box.create(leaving)
    eventually(lambda: connected.lookup("leaving.shop.svc.cluster.local") == ["10.96.1.60"])
    assert connected.curl("http://10.96.1.60/") == "this is leaving, port 80\n"
    connected.box.delete(leaving)
    eventually(lambda: connected.rcode("leaving.shop.svc.cluster.local") == "NXDOMAIN")
    done = connected.run("curl", "--silent", "--show-error", "--max-time", "20", "http://10.96.1.60/")
    # Before it had connected, or just after.
    assert done.code in (7, 52, 56), done.stderr
    refused = connected.status()["capture"]["refused"]
    assert {"address": "10.96.1.60", "port": 80, "connections": 1} in refused["destinations"]


def test_an_address_besides_the_cluster_is_reached_when_it_is_mapped(connected: Laptop) -> None:
    connected.box.start_programs("http:beside the cluster:10.50.0.1:7000")
    assert connected.run("curl", "--silent", "--max-time", "20", "http://10.50.0.1:7000/").code == 7
    mapped = connected.tp2("map", "10.50.0.1:7000")
    assert mapped.code == 0, mapped.stderr
    assert "pinned" in mapped.stdout
    assert connected.curl("http://10.50.0.1:7000/") == "this is beside the cluster, port 7000\n"
    assert connected.tp2("unmap", "10.50.0.1:7000").code == 0
    assert connected.run("curl", "--silent", "--max-time", "20", "http://10.50.0.1:7000/").code == 7


def test_the_destinations_in_use_are_shown(connected: Laptop) -> None:
    client = connected.host.start(
        *(sys.executable, str(CLIENTS / "talk.py"), "wait_for_the_end", "mail.shop", "25"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert "220" in client.stdout.readline()
    row = next(row for row in connected.mappings() if row["name"] == "mail.shop")
    assert set(row) == {
        *("name", "address", "port", "local_address", "local_port", "state", "connections", "total_connections"),
        *("bytes_sent", "bytes_received", "last_used", "expires_in"),
    }
    assert (row["address"], row["port"], row["state"], row["expires_in"]) == ("10.96.1.3", 25, "active", None)
    table = connected.tp2("mappings", "mail", "active").stdout
    assert "10.96.1.3:25" in table
    assert "web.shop" not in table
    connected.host.kill(client.pid)
    client.wait()
    eventually(
        lambda: next(row for row in connected.mappings() if row["name"] == "mail.shop")["state"] == "idle",
    )
    assert len({row["local_port"] for row in connected.mappings()}) == 1


def test_the_status_says_what_is_captured(connected: Laptop) -> None:
    answer = connected.status()
    assert answer["mode"] == "origdst"
    assert answer["capture"]["addresses"] > 10
    assert answer["mappings"]["capacity"] is None
    text = connected.run(*tp2_command("status")).stdout
    assert "mode origdst" in text
    assert "destinations in use" in text
