"""The kubeconfig changes: tp2 moves to the cluster that it names, and nothing of the former one goes on."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import CLIENTS, Laptop, Up, eventually
from tp2.sandbox.objects import endpoint_slice, namespace, service

OTHER_PORT = 6444


class Other:
    """The other cluster."""

    api: subprocess.Popen[Any]


class Kubeconfig:
    """A kubeconfig with two clusters that a person edits."""

    def __init__(self, laptop: Laptop) -> None:
        self.path = laptop.box.directory / "kubeconfig"
        self.content: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [],
            "users": [],
            "contexts": [],
        }
        for name, source in (("one", "api"), ("two", "api-two")):
            single = yaml.safe_load((laptop.box.directory / source / "kubeconfig").read_text())
            self.content["clusters"].append({"name": name, "cluster": single["clusters"][0]["cluster"]})
            self.content["users"].append({"name": name, "user": single["users"][0]["user"]})
            self.content["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})
        self.use("one")

    def use(self, context: str) -> None:
        self.content["current-context"] = context
        self.write(yaml.safe_dump(self.content))

    def write(self, text: str) -> None:
        """Replace the file, as kubectl does."""
        new = self.path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(text)
        new.rename(self.path)


@pytest.fixture(scope="module")
def clusters(laptop: Laptop) -> Laptop:
    laptop.box.start_programs("http:web of two:10.96.3.1:80", "greet:mail of two:10.96.3.2:25")
    objects = [
        namespace("shop"),
        service("shop", "web", "10.96.3.1", {"http": 80}),
        endpoint_slice("shop", "web", {"web-a": "10.244.3.1"}, {"http": 80}),
        service("shop", "only-two", "10.96.3.1", {"http": 80}),
    ]
    Other.api = laptop.box.start_api(objects, "api-two", OTHER_PORT)
    return laptop


@pytest.fixture
def kubeconfig(clusters: Laptop) -> Kubeconfig:
    return Kubeconfig(clusters)


def web(laptop: Laptop) -> str:
    done = laptop.run("curl", "--silent", "--show-error", "--max-time", "10", "http://web.shop/")
    return done.stdout or done.stderr


def test_a_switched_context_is_followed_there_and_back(
    clusters: Laptop, kubeconfig: Kubeconfig, up: Callable[..., Up]
) -> None:
    running = up("--kubeconfig", str(kubeconfig.path))
    assert web(clusters) == "this is web.shop, port 80\n"
    for context, answer in (("two", "this is web of two, port 80\n"), ("one", "this is web.shop, port 80\n")):
        kubeconfig.use(context)
        took = eventually(lambda answer=answer: web(clusters) == answer)  # type: ignore[misc]
        assert took < 2.0, context
        assert clusters.status()["cluster"]["context"] == context
        assert (clusters.lookup("only-two.shop.svc.cluster.local") != []) is (context == "two")
        addresses = {row["address"] for row in clusters.mappings()}
        assert addresses <= ({"10.96.3.1"} if context == "two" else {"10.96.1.1"})
    assert running.stop() == 0


def test_what_was_open_into_the_former_cluster_is_reset(
    clusters: Laptop, kubeconfig: Kubeconfig, up: Callable[..., Up]
) -> None:
    running = up("--kubeconfig", str(kubeconfig.path))
    client = clusters.host.start(
        *(sys.executable, str(CLIENTS / "talk.py"), "wait_for_the_end", "mail.shop", "25"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert "220" in client.stdout.readline()
    kubeconfig.use("two")
    assert client.stdout.readline() == "reset\n"
    assert running.stop() == 0


def test_a_pinned_context_stays(clusters: Laptop, kubeconfig: Kubeconfig, up: Callable[..., Up]) -> None:
    running = up("--kubeconfig", str(kubeconfig.path), "--context", "one")
    kubeconfig.use("two")
    # A change that is followed shows that the file was read again after the switch.
    kubeconfig.content["contexts"][0]["context"]["namespace"] = "shop"
    kubeconfig.use("two")
    eventually(lambda: clusters.lookup("api") == ["10.96.1.2"])
    assert clusters.status()["cluster"]["context"] == "one"
    assert running.stop() == 0


def test_a_broken_file_is_reported_and_the_last_good_one_kept(
    clusters: Laptop, kubeconfig: Kubeconfig, up: Callable[..., Up]
) -> None:
    running = up("--kubeconfig", str(kubeconfig.path))
    good = copy.deepcopy(kubeconfig.content)
    for broken in ("{", "", "current-context: nowhere\n"):
        kubeconfig.write(broken)
        assert web(clusters) == "this is web.shop, port 80\n"
    kubeconfig.path.unlink()
    assert web(clusters) == "this is web.shop, port 80\n"
    kubeconfig.content = good
    kubeconfig.use("two")
    eventually(lambda: web(clusters) == "this is web of two, port 80\n")
    assert running.stop() == 0


def test_a_cluster_that_cannot_be_had_is_waited_for_and_the_former_one_is_not_used_instead(
    clusters: Laptop, kubeconfig: Kubeconfig, up: Callable[..., Up]
) -> None:
    running = up("--kubeconfig", str(kubeconfig.path))
    assert web(clusters) == "this is web.shop, port 80\n"
    Other.api.kill()
    Other.api.wait()
    kubeconfig.use("two")
    eventually(lambda: clusters.status()["state"] == "degraded")
    eventually(lambda: "refused" in (clusters.status()["cluster"]["last_error"] or ""))
    for name in ("web.shop.svc.cluster.local", "web.shop"):
        answer = clusters.run("dig", "+tries=1", name).stdout
        assert "status: SERVFAIL" in answer, name
        assert "EDE: 14 (Not Ready): " in answer, name
        assert "refused" in answer.partition("EDE: ")[2].partition("\n")[0], name
    assert clusters.mappings() == []
    clusters.box.start_api(
        [namespace("shop"), service("shop", "web", "10.96.3.1", {"http": 80})], "api-two", OTHER_PORT
    )
    eventually(lambda: web(clusters) == "this is web of two, port 80\n")
    assert clusters.status()["state"] == "ready"
    assert running.stop() == 0


def test_new_credentials_are_used_without_a_break(
    clusters: Laptop, kubeconfig: Kubeconfig, up: Callable[..., Up], tmp_path: Path
) -> None:
    running = up("--kubeconfig", str(kubeconfig.path))
    before = clusters.status()["tunnel"]["since"]
    # A plugin now, that says what the token said.
    token = kubeconfig.content["users"][0]["user"]["token"]
    calls = tmp_path / "calls"
    plugin = tmp_path / "plugin"
    credential = (
        '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"' + token + '"}}'
    )
    plugin.write_text(f"#!/bin/sh\nid -u >>{calls}\necho '{credential}'\n")
    plugin.chmod(0o755)
    kubeconfig.content["users"][0]["user"] = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "interactiveMode": "Never",
        }
    }
    kubeconfig.use("one")
    eventually(calls.exists)
    new = service("shop", "after", "10.96.1.1", {"http": 80})
    clusters.box.create(new)
    eventually(lambda: clusters.lookup("after.shop.svc.cluster.local") == ["10.96.1.1"])
    clusters.box.delete(new)
    assert clusters.status()["tunnel"]["since"] == before
    assert running.stop() == 0
