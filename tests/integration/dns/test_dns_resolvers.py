"""The C library's resolver, with search lists: whatever it makes of a name, the right address comes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

INTERNET = {"www.example.test": "192.0.2.1", "api.dev": "192.0.2.2", "web.other.example": "192.0.2.3"}
# A nameserver that knows the names above, and that there are no others.
KNOWING = [*(f"--host-record={name},{address}" for name, address in INTERNET.items()), "--address=/#/"]
# One that will not speak of any name: dnsmasq without a nameserver of its own.
REFUSING: list[str] = []

CLUSTER = {
    "web": "10.96.0.10",
    "web.shop": "10.96.0.10",
    "web.shop.svc": "10.96.0.10",
    "web.shop.svc.cluster.local": "10.96.0.10",
    "WEB.Shop": "10.96.0.10",
    "s7.bulk": "10.97.0.7",
}

POD = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:5\n"


@pytest.mark.parametrize(
    ("resolv_conf", "note"),
    [
        ("", "no search list"),
        ("search corp.example\n", "a search list that upstream knows nothing of"),
        ("search corp.example example\noptions ndots:5\n", "the list before the name itself"),
        (POD, "a pod's"),
        ("search shop.svc.cluster.local\noptions ndots:2 single-request timeout:1\n", "the cluster's own"),
    ],
)
def test_names_end_in_the_right_address_whatever_the_search_list(tmp_path: Path, resolv_conf: str, note: str) -> None:
    expected = {**CLUSTER, **INTERNET, "nope.shop": "", "nope": "", "nope.shop.svc.cluster.local": ""}
    found = looked_up(tmp_path, resolv_conf, expected, KNOWING)
    assert {name: answer[0] for name, answer in found.items()} == expected, note
    assert {name: answer[1] for name, answer in found.items()} == expected, note
    # Nothing is left to a timeout of the resolver, which would be 5 seconds, or 1.
    assert sum(answer[2] for answer in found.values()) < 5


@pytest.mark.parametrize(
    "resolv_conf", ["search corp.example\n", "search corp.example example\noptions ndots:5\n", POD]
)
def test_the_clusters_names_resolve_beside_a_nameserver_that_refuses_everything(
    tmp_path: Path, resolv_conf: str
) -> None:
    found = looked_up(tmp_path, resolv_conf, CLUSTER, REFUSING)
    assert {name: answer[0] for name, answer in found.items()} == CLUSTER
    assert {name: answer[1] for name, answer in found.items()} == CLUSTER


def looked_up(
    tmp_path: Path, resolv_conf: str, names: Iterable[str], upstream: list[str]
) -> dict[str, tuple[str, str, float]]:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n" + resolv_conf)
    (tmp_path / "names").write_text("\n".join(names))
    return in_namespace(str(tmp_path / "resolv.conf"), str(tmp_path / "names"), *upstream)


def in_namespace(*arguments: str) -> dict[str, tuple[str, str, float]]:
    module = [sys.executable, "-m", "tests.integration.dns.in_namespace", *arguments]
    enter = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*enter, *module], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, str, float]] = json.loads(done.stdout)
    return found
