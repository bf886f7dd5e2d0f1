"""How tp2 is connected: with few rights, by a load balancer, while the endpoint is away, while the API is away."""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.conftest import Laptop, Up, eventually
from tp2.cluster.manifest import ENDPOINT, NAMESPACE, USERS
from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS, rules
from tp2.sandbox.box import ENDPOINT_ADDRESS, ENDPOINT_POD, NAMESERVER, SSH_PORT
from tp2.sandbox.objects import Object

BALANCER = "198.51.100.22"


@contextmanager
def cluster(laptop: Laptop, port: int, *objects: Object, role: str = "", **context: Any) -> Iterator[Path]:
    """Another API for the same cluster; gives the kubeconfig. *objects* take the place of those of the same name."""
    replaced = {(item["kind"], item["metadata"]["name"]) for item in objects}
    kept = [item for item in laptop.box.objects if (item["kind"], item["metadata"]["name"]) not in replaced]
    name = f"api-{port}"
    api = laptop.box.start_api([*kept, *objects], name, port, role)
    path = laptop.box.directory / name / "kubeconfig"
    content = yaml.safe_load(path.read_text())
    content["contexts"][0]["context"] |= context
    path.write_text(json.dumps(content))
    try:
        yield path
    finally:
        api.kill()
        api.wait()


@contextmanager
def connected(laptop: Laptop, *options: str) -> Iterator[str]:
    """tp2 in the background, with the installed endpoint; gives what it said on standard error."""
    done = laptop.tp2("up", "--detach", *options)
    assert done.code == 0, done.stderr
    try:
        yield done.stderr
    finally:
        assert laptop.tp2("down").code == 0


def web(laptop: Laptop) -> str:
    return laptop.curl("http://web.shop/")


def role(namespace: str, name: str, granted: list[dict[str, Any]]) -> Object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name, "namespace": namespace},
        "rules": granted,
    }


def test_the_roles_of_the_manifest_are_all_that_a_user_needs(laptop: Laptop) -> None:
    with cluster(laptop, 6451, role=USERS) as kubeconfig, connected(laptop, "--kubeconfig", str(kubeconfig)) as words:
        assert web(laptop) == "this is web.shop, port 80\n"
        assert words == ""
        assert laptop.status()["cluster"]["scope"] == []
        assert laptop.status()["cluster"]["namespaces"] > 4, "it may list namespaces, too"


def test_whoever_may_see_one_namespace_is_connected_to_it_and_told_what_is_missing(laptop: Laptop) -> None:
    roles = role("shop", "shop-only", rules(CATALOG_RIGHTS)), role(NAMESPACE, "shop-only", rules(ENDPOINT_RIGHTS))
    # Roles are told apart by their namespaces here.
    objects = [*roles]
    with cluster(laptop, 6452, *objects, role="shop-only", namespace="shop") as kubeconfig:
        with connected(laptop, "--kubeconfig", str(kubeconfig)) as words:
            assert web(laptop) == "this is web.shop, port 80\n"
            assert "only the namespace 'shop' is known" in words
            assert 'cannot list resource "services" in API group "" at the cluster scope' in words
            assert "--namespace" in words
            status = laptop.tp2("status").stdout
            assert "only the namespaces shop" in status
        with connected(laptop, "--kubeconfig", str(kubeconfig), "--namespace", "shop") as words:
            assert web(laptop) == "this is web.shop, port 80\n"
            assert words == ""


@contextmanager
def load_balancer(laptop: Laptop) -> Iterator[None]:
    """What a cloud does for a Service of the type LoadBalancer: an address of its own that leads to the pod."""
    host = laptop.box.cluster
    host.shell(f"""
        ip addr add {BALANCER}/32 dev eth0
        nft add table ip balancer
        nft add chain ip balancer in '{{ type nat hook prerouting priority dstnat; }}'
        nft add rule ip balancer in ip daddr {BALANCER} tcp dport 22 dnat to {ENDPOINT_ADDRESS}:{SSH_PORT}""")
    try:
        yield
    finally:
        host.shell(f"""
            nft delete table ip balancer
            ip addr del {BALANCER}/32 dev eth0""")


def test_a_load_balancer_that_answers_is_the_way_and_the_api_server_where_it_does_not(laptop: Laptop) -> None:
    service = copy.deepcopy(
        next(item for item in laptop.box.objects if (item["kind"], item["metadata"]["name"]) == ("Service", ENDPOINT))
    )
    service["status"] = {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}
    with cluster(laptop, 6453, service) as kubeconfig:
        options = ("--kubeconfig", str(kubeconfig))
        with load_balancer(laptop), connected(laptop, *options, "--via", "direct"):
            assert web(laptop) == "this is web.shop, port 80\n"
        with load_balancer(laptop), connected(laptop, *options, "--via", "api"):
            assert web(laptop) == "this is web.shop, port 80\n"
            assert "the API server" in laptop.status()["tunnel"]["through"]
        with load_balancer(laptop):
            done = laptop.tp2("up", "--detach", *options)
            assert done.code == 0, done.stderr
            assert laptop.status()["tunnel"]["through"] == f"the load balancer {BALANCER} port 22"
            assert web(laptop) == "this is web.shop, port 80\n"
            laptop.box.stop_endpoint(ENDPOINT_POD)
        # Now it is gone, and does not even refuse.
        laptop.box.start_endpoint(ENDPOINT_POD)
        try:
            assert web(laptop) == "this is web.shop, port 80\n"
            assert laptop.status()["tunnel"]["through"] == f"the API server to pod {NAMESPACE}/{ENDPOINT_POD}"
        finally:
            assert laptop.tp2("down").code == 0


def test_a_short_dial_timeout_fails_connections_soon_and_a_long_one_has_them_wait(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    running = up("--dial-timeout", "1s")
    assert web(laptop) == "this is web.shop, port 80\n"
    laptop.stop_endpoint()
    began = time.monotonic()
    done = laptop.run("curl", "--silent", "--show-error", "--max-time", "30", "http://web.shop/")
    took = time.monotonic() - began
    assert done.code != 0
    assert 0.9 < took < 8.0, "after the second that was asked for, and before the ten that are the default"
    laptop.start_endpoint()
    assert running.stop() == 0

    running = up("--dial-timeout", "1m")
    assert web(laptop) == "this is web.shop, port 80\n"
    laptop.stop_endpoint()
    waiting = laptop.host.start(
        *("curl", "--silent", "--max-time", "60", "http://web.shop/"), stdout=subprocess.PIPE, text=True
    )
    assert waiting.stdout is not None
    # Longer than the default.
    time.sleep(11)
    assert waiting.poll() is None
    laptop.start_endpoint()
    assert waiting.stdout.read() == "this is web.shop, port 80\n"
    assert running.stop() == 0


def test_while_the_api_is_away_names_go_on_and_the_status_says_how_old_they_are(
    laptop: Laptop, up: Callable[..., Up]
) -> None:
    running = up()
    assert "synced" in laptop.tp2("status").stdout
    laptop.box.api.kill()
    laptop.box.api.wait()
    eventually(lambda: laptop.status()["state"] == "degraded")
    status = laptop.status()["cluster"]
    assert status["as_of"] is not None
    assert "refused" in status["last_error"]
    words = laptop.tp2("status").stdout
    assert "not in touch with the API, answers as of" in words
    assert "ago" in words
    # Looked up for the first time now.
    assert laptop.curl("http://web.blog/") == "this is web.blog, port 80\n"
    laptop.box.restart_api()
    eventually(lambda: laptop.status()["state"] == "ready")
    assert running.stop() == 0


def test_a_changed_resolv_conf_is_a_reason_to_look_whether_all_is_well(laptop: Laptop) -> None:
    with connected(laptop, "--verbose"):
        laptop.box.start_nameserver("192.0.2.58")
        laptop.host.write_etc("resolv.conf", "nameserver 192.0.2.58\n")
        log = Path(laptop.box.environment["TP2_RUNTIME_DIR"]) / "tp2.log"
        try:
            eventually(lambda: "the nameservers changed: looking whether all is well" in log.read_text())
        finally:
            laptop.host.write_etc("resolv.conf", f"nameserver {NAMESERVER}\n")
        assert web(laptop) == "this is web.shop, port 80\n"


def test_a_kubeconfig_that_has_no_certificate_checked_works_and_is_warned_of(laptop: Laptop) -> None:
    content = yaml.safe_load(laptop.box.kubeconfig.read_text())
    one = content["clusters"][0]["cluster"]
    del one["certificate-authority-data"]
    one["insecure-skip-tls-verify"] = True
    path = laptop.box.directory / "insecure"
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
    with connected(laptop, "--kubeconfig", str(path)) as words:
        assert words.count("insecure-skip-tls-verify") == 1
        assert "can read and change everything" in words
        assert web(laptop) == "this is web.shop, port 80\n"
    done = laptop.tp2("uninstall", "--kubeconfig", str(path), "--namespace", "elsewhere")
    assert "insecure-skip-tls-verify" in done.stderr
