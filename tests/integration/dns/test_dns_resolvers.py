"""The C library's resolver, with search lists: whatever it makes of a name, the right address comes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    expected = {
        "web": "10.96.0.10",
        "web.shop": "10.96.0.10",
        "web.shop.svc": "10.96.0.10",
        "web.shop.svc.cluster.local": "10.96.0.10",
        "WEB.Shop": "10.96.0.10",
        "s7.bulk": "10.97.0.7",
        "www.example.test": "192.0.2.1",
        "api.dev": "192.0.2.2",
        "web.other.example": "192.0.2.3",
        "nope.shop": "",
        "nope": "",
    }
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n" + resolv_conf)
    (tmp_path / "names").write_text("\n".join(expected))
    found = in_namespace(str(tmp_path / "resolv.conf"), str(tmp_path / "names"))
    assert {name: answer[0] for name, answer in found.items()} == expected, note
    assert {name: answer[1] for name, answer in found.items()} == expected, note
    # Nothing is left to a timeout of the resolver, which would be 5 seconds, or 1.
    assert sum(answer[2] for answer in found.values()) < 5


def in_namespace(*arguments: str) -> dict[str, tuple[str, str, float]]:
    module = [sys.executable, "-m", "tests.integration.dns.in_namespace", *arguments]
    enter = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*enter, *module], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, str, float]] = json.loads(done.stdout)
    return found
