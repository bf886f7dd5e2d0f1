"""Mode portmap: what is captured, what is refused, and what is mapped by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import CLIENTS, Laptop, Up, eventually, give_ipv6
from tp2.sandbox.box import tp2_command
from tp2.sandbox.objects import service

WEB6 = "fd00:10:96::1"


@pytest.fixture(scope="module")
def connected(laptop: Laptop) -> Iterator[Laptop]:
    give_ipv6(laptop.box)
    up = Up(laptop, "--exclude", "10.96.2.0/24")
    yield laptop
    assert up.process.poll() is None, "tp2 did not survive the tests"
    assert up.stop() == 0


def refused(laptop: Laptop) -> dict[str, int]:
    rows = laptop.status()["capture"]["refused"]["destinations"]
    return {f"{row['address']}:{row['port']}": row["connections"] for row in rows}


def test_a_connection_without_a_mapping_is_refused_at_once_and_counted(connected: Laptop) -> None:
    eventually(lambda: connected.status()["capture"]["addresses"] > 10)
    done = connected.run("curl", "--silent", "--show-error", "--max-time", "20", "http://10.96.1.1:81/")
    assert done.code == 7
    assert "refused" in done.stderr or "Couldn't connect" in done.stderr
    assert refused(connected)["10.96.1.1:81"] >= 1
    shown = connected.run(*tp2_command("status")).stdout
    assert "10.96.1.1:81" in shown


def test_a_lookup_is_all_that_it_takes(connected: Laptop) -> None:
    assert connected.curl("http://web.shop/") == "this is web.shop, port 80\n"
    # From now on the address will do, as long as the mapping stands.
    assert connected.curl("http://10.96.1.1/") == "this is web.shop, port 80\n"


def test_a_destination_is_mapped_by_hand_and_let_go_of(connected: Laptop) -> None:
    mapped = connected.tp2("map", "10.96.1.2:9090")
    assert mapped.code == 0, mapped.stderr
    assert "api.shop" in mapped.stdout
    assert connected.curl("http://10.96.1.2:9090/") == "this is api-admin.shop, port 9090\n"
    (row,) = json.loads(connected.tp2("mappings", "9090", "--json").stdout)["mappings"]
    assert (row["name"], row["state"], row["expires_in"]) == ("api.shop", "pinned", None)
    unmapped = connected.tp2("unmap", "10.96.1.2:9090")
    assert unmapped.stdout == "10.96.1.2:9090 is not mapped any more\n"
    assert connected.run("curl", "--silent", "--max-time", "20", "http://10.96.1.2:9090/").code == 7


def test_a_name_is_mapped_with_all_its_ports(connected: Laptop) -> None:
    answer = json.loads(connected.tp2("map", "mail.shop", "--json").stdout)
    assert [(row["port"], row["state"]) for row in answer["mappings"]] == [(p, "pinned") for p in (25, 26, 27)]
    assert "220 mail.shop" in connected.python("talk", "listen_first", "10.96.1.3", "25")
    eventually(lambda: not any(row["connections"] for row in connected.mappings()))
    gone = json.loads(connected.tp2("unmap", "mail.shop", "--json").stdout)
    assert gone["gone"] == ["10.96.1.3:25", "10.96.1.3:26", "10.96.1.3:27"]


def test_a_mapping_in_use_stays_until_it_is_not(connected: Laptop) -> None:
    connected.tp2("map", "mail.shop:25")
    client = connected.host.start(
        *(sys.executable, str(CLIENTS / "talk.py"), "wait_for_the_end", "10.96.1.3", "25"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert "220" in client.stdout.readline()
    shown = connected.tp2("unmap", "mail.shop:25").stdout
    assert "still in use" in shown
    assert "active" in shown
    connected.host.kill(client.pid)
    client.wait()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("map", "nosuch.shop"), "the cluster has no such name"),
        (("map", "192.0.2.10:80"), "that is this machine"),
        (("map", "192.0.2.99:80"), "this machine is on that network (192.0.2.0/24)"),
        (("map", "10.96.2.1:80"), "--exclude 10.96.2.0/24 says so"),
        (("map", "198.51.100.10:6443"), "tp2 itself reaches the cluster that way"),
        (("map", "169.254.1.1:80"), "no other machine has such addresses"),
        (("unmap", "10.9.9.9:80"), "nothing of it is mapped"),
    ],
)
def test_what_cannot_be_mapped_is_explained(connected: Laptop, command: tuple[str, ...], why: str) -> None:
    done = connected.tp2(*command)
    assert done.code == 2
    assert why in done.stderr
    assert "try: " in done.stderr
    # The helper would end over a request that makes no sense, and everything with it.
    assert connected.status()["state"] == "ready"


def test_excluded_addresses_are_left_alone_and_said_to_be(connected: Laptop) -> None:
    assert connected.lookup("web.blog") == ["10.96.2.1"]
    assert all(row["address"] != "10.96.2.1" for row in connected.mappings())
    # Where it always went: the router knows no way.
    done = connected.run("curl", "--silent", "--show-error", "--max-time", "20", "http://10.96.2.1/")
    assert done.code == 7
    assert "10.96.2.1:80" not in refused(connected)
    alone = connected.status()["capture"]["left_alone"]
    assert {"why": "--exclude 10.96.2.0/24 says so", "addresses": ["10.96.2.1"], "count": 1} in alone


def test_ipv6_services_are_mapped_and_refused_like_others(connected: Laptop) -> None:
    connected.box.start_programs(f"http:web six:{WEB6}:80")
    connected.box.create(service("shop", "six", WEB6, {"http": 80}))
    eventually(lambda: connected.lookup("six.shop.svc.cluster.local", "AAAA") == [WEB6])
    assert connected.curl("http://six.shop/") == "this is web six, port 80\n"
    (row,) = json.loads(connected.tp2("mappings", WEB6, "--json").stdout)["mappings"]
    assert row["local_address"] == "::1"
    eventually(
        lambda: (
            connected.run("curl", "--silent", "--max-time", "20", f"http://[{WEB6}]:81/").code == 7
            and refused(connected).get(f"{WEB6}:81", 0) > 0
        )
    )


def test_the_mappings_can_be_watched(connected: Laptop) -> None:
    watching = connected.host.start(
        *tp2_command("mappings", "web.shop", "--watch", "--json"), env=connected.box.environment, stdout=subprocess.PIPE
    )
    assert watching.stdout is not None
    first = json.loads(watching.stdout.readline())
    assert [row["name"] for row in first["mappings"]] == ["web.shop"]
    connected.curl("--output", "/dev/null", "http://web.shop/bytes/1000000")
    for line in watching.stdout:
        if json.loads(line)["mappings"][0]["received_rate"] > 100_000:
            break
    watching.send_signal(2)
    assert watching.wait(20) == 0


def test_the_mappings_of_both_families_are_told_apart_when_they_have_the_same_port(connected: Laptop) -> None:
    rows = connected.mappings()
    sockets = [(row["local_address"], row["local_port"]) for row in rows]
    assert len(sockets) == len(set(sockets))
