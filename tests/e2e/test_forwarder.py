"""Which forwarding rules are used is the user's to say; and pf's, as far as doubles of pf and of macOS' resolver go."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.pfctl import Double
from tests.e2e.conftest import Laptop, Up, eventually
from tests.e2e.mac import PF, pf_of_a_mac, resolver_of_a_mac
from tests.e2e.test_failures import assert_fails
from tests.e2e.test_no_garbage import processes_of_tp2, runtime_files
from tp2.forward.pfctl import PROGRAM
from tp2.sandbox.box import NAMESERVER, SITE, SITE_ADDRESS

pytestmark = pytest.mark.skipif(PROGRAM.exists(), reason="this machine has a pf of its own, which is not to be touched")

WEB = "this is web.shop, port 80\n"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Double]:
    """The laptop's pf."""
    with pf_of_a_mac(tmp_path / "machine") as machine:
        yield machine


def left(laptop: Laptop, double: Double) -> dict[str, Any]:
    """What there is of tp2 on this Mac, but for numbers that only grow."""
    return {
        "pf": {key: value for key, value in double.state.items() if key != "next_token"},
        "rules": laptop.ruleset(),
        "resolver": laptop.host.run("sh", "-c", "cat /etc/resolver/* 2>/dev/null; ls -d /etc/resolver", check=False),
        "processes": processes_of_tp2(laptop),
        "files": runtime_files(laptop),
    }


def test_nftables_can_be_named(laptop: Laptop, up: Callable[..., Up]) -> None:
    running = up("--forwarder", "nftables")
    assert laptop.curl("http://web.shop/") == WEB
    assert laptop.status()["forwarder"]["kind"] == "nftables"
    assert running.stop() == 0


def test_what_the_rules_cannot_do_on_this_machine_is_said_at_the_start(laptop: Laptop) -> None:
    without_tun = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
    done = laptop.run(*without_tun, *laptop.box.up_command("--detach"))
    assert done.code == 0, done.stderr
    assert "captured addresses that have no route cannot be reached: /dev/net/tun cannot be opened" in done.stderr
    assert laptop.tp2("down").code == 0


def test_pf_on_a_machine_without_it_is_one_message_and_leaves_nothing(laptop: Laptop) -> None:
    before = laptop.host.run("ls", "/run")
    words = ("cannot capture traffic with pf", "pfctl", "--forwarder nftables")
    assert_fails(laptop, laptop.box.up_command("--forwarder", "pf"), 6, *words)
    # Said in the environment, it is the same.
    env = {**laptop.box.environment, "TP2_FORWARDER": "pf"}
    assert_fails(laptop, laptop.box.up_command(), 6, *words, env=env)
    assert laptop.host.run("ls", "/run") == before


def test_pf_and_origdst_do_not_go_together(laptop: Laptop) -> None:
    command = laptop.box.up_command("--forwarder", "pf", "--mode", "origdst")
    assert_fails(laptop, command, 2, "cannot run in mode origdst", "--mode portmap")


def test_on_a_mac_names_are_steered_and_namespaces_followed(
    laptop: Laptop, up: Callable[..., Up], double: Double
) -> None:
    with resolver_of_a_mac(laptop):
        before = left(laptop, double)
        running = up(*PF)
        assert laptop.status()["forwarder"]["kind"] == "pf"
        dns = laptop.status()["dns"]
        assert dns["captured"] == []
        assert {"cluster.local", "svc", "shop", "blog"} <= set(dns["steered"])
        for name in ("web.shop", "web.shop.svc", "web.shop.svc.cluster.local"):
            assert laptop.curl(f"http://{name}/") == WEB
        assert laptop.lookup(SITE) == [SITE_ADDRESS]
        eventually(lambda: "<tp2_cluster>" in double.rules)
        assert laptop.run("curl", "--silent", "http://10.96.1.2:9999/").code == 7
        assert "port 53" not in double.rules

        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}}
        laptop.box.create(namespace)
        eventually(lambda: "late" in laptop.status()["dns"]["steered"])
        laptop.box.delete(namespace)
        eventually(lambda: "late" not in laptop.status()["dns"]["steered"])
        assert running.stop() == 0
        assert left(laptop, double) == before


def test_on_a_mac_a_domain_that_another_tool_steers_is_left_to_it(
    laptop: Laptop, up: Callable[..., Up], double: Double
) -> None:
    theirs = "nameserver 192.0.2.53\n"
    with resolver_of_a_mac(laptop):
        laptop.host.run("sh", "-euc", "mkdir /etc/resolver; cat >/etc/resolver/blog", stdin=theirs)
        try:
            running = up(*PF)
            assert laptop.curl("http://web.shop/") == WEB
            assert laptop.lookup("web.blog") == []
            assert laptop.curl("http://web.blog.svc.cluster.local/") == "this is web.blog, port 80\n"
            assert running.stop() == 0
            assert laptop.host.run("ls", "/etc/resolver") == "blog\n"
            assert laptop.host.run("cat", "/etc/resolver/blog") == theirs
        finally:
            laptop.host.run("rm", "-rf", "/etc/resolver")


def test_with_dns_named_pf_captures_it(laptop: Laptop, up: Callable[..., Up], double: Double) -> None:
    before = left(laptop, double)
    running = up(*PF, "--dns", NAMESERVER)
    assert laptop.curl("http://web.shop/") == WEB
    assert laptop.lookup(SITE) == [SITE_ADDRESS]
    assert laptop.status()["dns"]["captured"] == [NAMESERVER]
    assert running.stop() == 0
    assert left(laptop, double) == before


@pytest.mark.parametrize("fault", ["commit", "killed"])
def test_a_pfctl_that_fails_half_way_is_one_message_and_leaves_nothing(
    laptop: Laptop, double: Double, fault: str
) -> None:
    before = left(laptop, double)
    double.set(faults={"load": fault})
    assert_fails(laptop, laptop.box.up_command(*PF), 6, "pf refused a change", "pfctl -a com.apple/tp2")
    assert left(laptop, double) == before


@pytest.mark.parametrize("fault", ["commit", "killed"])
def test_a_pfctl_that_fails_later_costs_one_lookup(
    laptop: Laptop, up: Callable[..., Up], double: Double, fault: str
) -> None:
    with resolver_of_a_mac(laptop):
        before = left(laptop, double)
        running = up(*PF)
        assert laptop.curl("http://web.shop/") == WEB
        eventually(lambda: "<tp2_cluster>" in double.rules)
        double.set(faults={"load": fault})
        assert laptop.rcode("web.blog") == "SERVFAIL"
        assert laptop.curl("http://web.blog/", "http://web.shop/") == f"this is web.blog, port 80\n{WEB}"
        assert running.stop() == 0
        assert left(laptop, double) == before


@pytest.mark.parametrize("killed", ["daemon", "helper"])
def test_on_a_mac_a_killed_tp2_leaves_nothing(
    laptop: Laptop, up: Callable[..., Up], double: Double, killed: str
) -> None:
    with resolver_of_a_mac(laptop):
        before = left(laptop, double)
        running = up(*PF)
        assert laptop.curl("http://web.shop/") == WEB
        pid = running.process.pid if killed == "daemon" else laptop.status()["forwarder"]["helper_pid"]
        os.kill(pid, signal.SIGKILL)
        assert running.process.wait(20) == (-signal.SIGKILL if killed == "daemon" else 6)

        def is_as_before() -> bool:
            now = left(laptop, double)
            return {**now, "files": []} == {**before, "files": []}

        eventually(is_as_before)
        assert up(*PF).stop() == 0
        assert left(laptop, double) == before
