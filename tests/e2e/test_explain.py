"""``tp2 explain``: the way of a name, step by step as it would go now, and where it breaks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.conftest import Laptop, Up
from tests.e2e.test_doctor import etc, while_half_dead
from tests.e2e.test_ready import forwarding_off, resolver_bypassed
from tp2.sandbox.box import NAMESERVER, SITE, SITE_ADDRESS
from tp2.sandbox.objects import Object, endpoint_slice, service

#: Nobody may wait for longer than this, on a machine that is not busy with something else.
A_FEW_SECONDS = 15.0


def explain(laptop: Laptop, target: str, *options: str) -> dict[str, Any]:
    """Return what ``tp2 explain --json`` says; its exit code agrees, and it does not take long."""
    began = time.monotonic()
    done = laptop.tp2("explain", "--json", target, *options)
    assert time.monotonic() - began < A_FEW_SECONDS
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.code == (0 if answer["works"] else 1)
    assert answer["target"] == target
    return answer


def assert_breaks(answer: dict[str, Any], step: str, *words: str) -> None:
    """Assert that it breaks at *step*, the last one, in these words."""
    broken = answer["breaks_at"]
    assert broken is not None, answer
    assert broken["step"] == step, answer
    assert broken == answer["steps"][-1]
    assert broken["why"]
    assert broken["remedy"]
    text = f"{broken['what']} {broken['why']} {broken['remedy']}"
    for word in words:
        assert word in text, text


def steps(answer: dict[str, Any]) -> dict[str, str]:
    """Return what each step says."""
    return {step["step"]: step["what"] for step in answer["steps"]}


@contextmanager
def created(laptop: Laptop, *objects: Object) -> Iterator[None]:
    """Have more objects in the cluster, as soon as tp2 knows of them."""
    laptop.box.create(*objects)
    try:
        name = objects[0]["metadata"]["name"]
        laptop.run("sh", "-c", f"until getent hosts {name}.shop; do :; done", timeout=20)
        yield
    finally:
        laptop.box.delete(*objects)


def test_without_a_running_tp2_it_says_so(laptop: Laptop) -> None:
    done = laptop.tp2("explain", "web.shop")
    assert done.code == 3
    assert "tp2 is not running" in done.stderr
    assert "tp2 up" in done.stderr


def test_what_makes_no_sense_is_refused(laptop: Laptop) -> None:
    assert laptop.tp2("explain", "web shop").code == 2
    assert laptop.tp2("explain", "10.96.1.1").code == 2


@pytest.fixture(scope="class")
def running(laptop: Laptop) -> Iterator[Up]:
    """A tp2 for all tests of a class."""
    up = Up(laptop)
    yield up
    assert up.stop() == 0


class TestWithTp2Up:
    """All of these with one tp2."""

    @pytest.fixture(autouse=True)
    def _ready(self, running: Up, laptop: Laptop) -> None:
        assert laptop.tp2("status", "--wait", "60s").code == 0

    def test_a_service_that_works_is_followed_to_its_pods(self, laptop: Laptop) -> None:
        answer = explain(laptop, "web.shop", "--connect")
        assert answer["works"]
        assert answer["breaks_at"] is None
        said = steps(answer)
        assert NAMESERVER in said["resolver"]
        assert said["web.shop"] == "the cluster: service: 10.96.1.1"
        assert said["lookup"] == "10.96.1.1"
        assert said["rule for 10.96.1.1:80"].startswith("leads to 127.0.0.1:2")
        assert "kept for" in said["rule for 10.96.1.1:80"]
        assert "a test came back" in said["tunnel"]
        assert said["service web.shop"] == "port 80: 1 ready: shop/web-a"
        assert said["endpoint"].startswith("connects to 10.96.1.1:80")
        assert said["connection"] == "to 10.96.1.1:80: it is open"
        assert all(step["took"] >= 0 for step in answer["steps"])

    def test_people_read_the_steps_and_the_outcome_in_the_last_line(self, laptop: Laptop) -> None:
        done = laptop.tp2("explain", "web.shop")
        assert done.code == 0
        assert done.stdout.splitlines()[-1] == "web.shop: nothing is in its way."
        assert " ms " in done.stdout
        assert "\x1b" not in done.stdout
        done = laptop.tp2("explain", "dead.shop")
        assert done.code == 1
        assert done.stdout.splitlines()[-1].startswith("dead.shop: it breaks at service dead.shop: ")

    def test_a_service_with_nobody_behind_it(self, laptop: Laptop) -> None:
        assert_breaks(explain(laptop, "dead.shop"), "service dead.shop", "nobody behind it", "no endpoint", "selector")

    def test_a_service_whose_pods_are_not_ready(self, laptop: Laptop) -> None:
        slice_ = endpoint_slice("shop", "late", {"late-a": "10.244.1.30"}, {"http": 8080})
        slice_["endpoints"][0]["conditions"] = {"ready": False, "serving": False, "terminating": False}
        with created(laptop, service("shop", "late", "10.96.1.30", {"http": 80}), slice_):
            assert_breaks(explain(laptop, "late.shop"), "service late.shop", "1 endpoints, none ready")

    def test_a_service_whose_pods_lack_its_port(self, laptop: Laptop) -> None:
        slice_ = endpoint_slice("shop", "odd", {"odd-a": "10.244.1.31"}, {"other": 8080})
        with created(laptop, service("shop", "odd", "10.96.1.31", {"http": 80}), slice_):
            assert_breaks(explain(laptop, "odd.shop"), "service odd.shop", "targetPort")

    def test_pods_that_do_not_listen(self, laptop: Laptop) -> None:
        laptop.box.cluster.run("ip", "address", "replace", "10.96.1.32/32", "dev", "lo")
        slice_ = endpoint_slice("shop", "deaf", {"deaf-a": "10.244.1.32"}, {"http": 8080})
        with created(laptop, service("shop", "deaf", "10.96.1.32", {"http": 80}), slice_):
            assert explain(laptop, "deaf.shop")["works"]
            answer = explain(laptop, "deaf.shop", "--connect")
            assert_breaks(answer, "endpoint", "10.96.1.32:80", "connection refused", "NetworkPolicy")

    def test_a_port_that_the_service_does_not_have(self, laptop: Laptop) -> None:
        assert_breaks(explain(laptop, "web.shop:81"), "rule for 10.96.1.1:81", "no port 81", "it has 80", "tp2 map")

    def test_an_address_that_was_pasted(self, laptop: Laptop) -> None:
        assert_breaks(explain(laptop, "10.96.2.1:80"), "rule for 10.96.2.1:80", "web.blog", "tp2 map 10.96.2.1:80")
        assert laptop.tp2("map", "10.96.2.1:80").code == 0
        answer = explain(laptop, "10.96.2.1:80", "--connect")
        assert "pinned" in steps(answer)["rule for 10.96.2.1:80"]
        assert answer["works"]
        assert laptop.tp2("unmap", "10.96.2.1:80").code == 0

    def test_an_address_that_is_not_the_clusters(self, laptop: Laptop) -> None:
        answer = explain(laptop, f"{SITE_ADDRESS}:80", "--connect")
        assert answer["works"]
        assert "no address of the cluster's" in steps(answer)[f"rule for {SITE_ADDRESS}:80"]

    def test_a_headless_service_leads_to_its_pods(self, laptop: Laptop) -> None:
        answer = explain(laptop, "db.shop", "--connect")
        assert answer["works"]
        assert {"rule for 10.244.1.10:5432", "rule for 10.244.1.11:5432"} <= steps(answer).keys()

    def test_a_name_that_the_cluster_does_not_have(self, laptop: Laptop) -> None:
        name = "wbe.shop.svc.cluster.local"
        assert_breaks(explain(laptop, name), name, "NXDOMAIN", "there is web.shop")

    def test_a_short_name_that_nobody_has(self, laptop: Laptop) -> None:
        assert_breaks(explain(laptop, "wbe.shop"), "lookup", "nobody knows", "web.shop", f"{NAMESERVER}:53")

    def test_a_name_of_the_rest_of_the_world(self, laptop: Laptop) -> None:
        answer = explain(laptop, f"{SITE}:80", "--connect")
        assert answer["works"]
        assert "not below the cluster's domain" in steps(answer)[SITE]
        assert steps(answer)["lookup"] == SITE_ADDRESS

    def test_the_search_list_is_told_in_its_order(self, laptop: Laptop) -> None:
        with etc(laptop, "resolv.conf", f"nameserver {NAMESERVER}\nsearch shop.svc.cluster.local\noptions ndots:5\n"):
            answer = explain(laptop, "web")
            assert answer["works"]
            assert steps(answer)["search list"] == "asks for web.shop.svc.cluster.local, then web"

    def test_a_name_that_the_hosts_file_has(self, laptop: Laptop) -> None:
        with etc(laptop, "hosts", "127.0.0.1 localhost\n127.1.27.1 web.shop\n"):
            answer = explain(laptop, "web.shop")
        assert_breaks(answer, "lookup", "somebody else answers", "127.1.27.1", "10.96.1.1", "/etc/hosts")

    def test_a_resolver_that_is_bypassed(self, laptop: Laptop) -> None:
        with resolver_bypassed(laptop):
            assert_breaks(explain(laptop, "web.shop"), "resolver", "ask no nameserver", "add 'dns'")

    def test_an_endpoint_that_is_away(self, laptop: Laptop) -> None:
        laptop.box.stop_sshd()
        try:
            assert_breaks(explain(laptop, "web.shop"), "tunnel", "reconnecting", "tp2 doctor")
        finally:
            laptop.box.start_sshd()

    def test_an_endpoint_that_forwards_nothing(self, laptop: Laptop) -> None:
        with forwarding_off(laptop):
            # It has come back, and only then is it known what it does not do.
            laptop.run(
                "sh", "-c", f"until {' '.join(laptop.box.up_command()[:3])} status | grep -q 'connected'; do :; done"
            )
            assert_breaks(explain(laptop, "web.shop"), "tunnel", "does not allow TCP forwarding")

    def test_a_tunnel_that_is_half_dead(self, laptop: Laptop) -> None:
        answer = while_half_dead(laptop, lambda: explain(laptop, "web.shop", "--connect"))
        assert_breaks(answer, "tunnel", "nothing comes back", "20 s")


def test_a_name_that_is_excluded(laptop: Laptop) -> None:
    up = Up(laptop, "--exclude", "blog.svc.cluster.local", "--exclude", "10.96.1.2")
    try:
        answer = explain(laptop, "web.blog.svc.cluster.local")
        assert "--exclude blog.svc.cluster.local" in steps(answer)["web.blog.svc.cluster.local"]
        assert answer["breaks_at"]["step"] == "lookup"
        left_alone = explain(laptop, "api.shop")
        assert_breaks(left_alone, "rule for 10.96.1.2:8080", "left alone", "--exclude 10.96.1.2/32")
    finally:
        assert up.stop() == 0


def test_a_nameserver_that_is_not_captured(laptop: Laptop) -> None:
    up = Up(laptop, "--dns", "192.0.2.99")
    try:
        assert_breaks(explain(laptop, "web.shop"), "resolver", NAMESERVER, "192.0.2.99", "--dns")
    finally:
        assert up.stop() == 0


def test_every_address_is_captured_in_mode_origdst(laptop: Laptop) -> None:
    up = Up(laptop, "--mode", "origdst")
    try:
        answer = explain(laptop, "10.96.2.1:80", "--connect")
        assert answer["works"], answer
        assert steps(answer)["rule for 10.96.2.1:80"] == "leads to tp2: the address is the cluster's"
    finally:
        assert up.stop() == 0
