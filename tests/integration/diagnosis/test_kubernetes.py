"""The Kubernetes side of ``tp2 doctor``, against an API over TLS: each thing that can be wrong is named first."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS, Right
from tp2.diagnosis import kubernetes
from tp2.diagnosis.doctor import kubernetes_checks
from tp2.diagnosis.kubernetes import Kubernetes
from tp2.diagnosis.model import Report, State
from tp2.diagnosis.running import run
from tp2.sandbox.kubeapi_resources import NAMESPACES, SERVICES
from tp2.sandbox.kubeapi_server import KubeApi
from tp2.sandbox.kubeapi_store import Store
from tp2.sandbox.tls import KeyPair, issue, new_authority
from tp2.settings import Remote, Settings

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> KeyPair:
    return new_authority()


@contextlib.asynccontextmanager
async def serving(authority: KeyPair, certificate: KeyPair | None = None) -> AsyncIterator[KubeApi]:
    store = Store()
    for name in ("shop", "tp2-system"):
        store.create(NAMESPACES, "", {"metadata": {"name": name}})
    spec = {"clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"], "ports": [{"port": 80}]}
    store.create(SERVICES, "shop", {"metadata": {"name": "web"}, "spec": spec})
    api = KubeApi(store, authority, "secret", certificate=certificate)
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


@pytest.fixture
async def api(authority: KeyPair) -> AsyncIterator[KubeApi]:
    async with serving(authority) as api:
        yield api


def written(api: KubeApi, directory: Path, change: Callable[[dict[str, Any]], None] = lambda config: None) -> Path:
    config = api.kubeconfig("shop")
    change(config)
    path = directory / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


async def examine(path: Path, now: Callable[[], float] = time.time, **settings: Any) -> Report:
    looking = Kubernetes(Settings(kubeconfig=path, **settings), now)
    async with looking.closing():
        return await run(kubernetes_checks(looking))


def assert_first(report: Report, check: str, *words: str, state: State = State.FAILED) -> None:
    first = report.first
    assert first is not None, report
    assert (first.check, first.state) == (check, state), report
    assert first.remedy
    for word in words:
        assert word in f"{first.what} {first.why} {first.remedy}", first


async def test_nothing_is_reported_of_a_cluster_that_is_well(api: KubeApi, tmp_path: Path) -> None:
    looking = Kubernetes(Settings(kubeconfig=written(api, tmp_path)))
    async with looking.closing():
        report = await run(kubernetes_checks(looking))
    assert report.first is None, report
    assert {finding.check: finding.state for finding in report.findings}["plugin"] is State.NOT_APPLICABLE
    assert looking.services == ["10.96.1.1"]
    assert looking.destination == ("10.96.1.1", 80)


async def test_no_kubeconfig(tmp_path: Path) -> None:
    report = await examine(tmp_path / "nothing")
    assert_first(report, "kubeconfig", str(tmp_path / "nothing"), "--kubeconfig")
    # All that builds on it is left out, with the reason.
    rest = report.findings[1:]
    assert {finding.state for finding in rest} == {State.NOT_APPLICABLE}
    assert all("has to be well first" in finding.why for finding in rest)


async def test_a_context_that_is_not_there(api: KubeApi, tmp_path: Path) -> None:
    assert_first(await examine(written(api, tmp_path), context="prod"), "kubeconfig", "prod", "sandbox", "--context")


async def test_a_server_whose_certificate_is_not_checked(api: KubeApi, tmp_path: Path) -> None:
    def blindly(config: dict[str, Any]) -> None:
        config["clusters"][0]["cluster"] = {"server": api.url, "insecure-skip-tls-verify": True}

    report = await examine(written(api, tmp_path, blindly))
    assert_first(report, "kubeconfig", "insecure-skip-tls-verify", state=State.WARNING)


async def test_an_expired_certificate(authority: KeyPair, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    old = issue(authority, "kube-apiserver", hosts=["127.0.0.1"], not_before=now - 2 * DAY, not_after=now - DAY)
    async with serving(authority, old) as api:
        assert_first(await examine(written(api, tmp_path)), "API", "expired", "renewed")


async def test_a_certificate_of_another_name(authority: KeyPair, tmp_path: Path) -> None:
    async with serving(authority, issue(authority, "kube-apiserver", hosts=["198.51.100.10"])) as api:
        assert_first(await examine(written(api, tmp_path)), "API", "tls-server-name")


async def test_a_certificate_of_another_authority(authority: KeyPair, tmp_path: Path) -> None:
    stranger = new_authority("somebody else")
    async with serving(authority, issue(stranger, "kube-apiserver", hosts=["127.0.0.1"])) as api:
        assert_first(await examine(written(api, tmp_path)), "API", "cannot be trusted", "fetch a new kubeconfig")


@pytest.mark.parametrize(("ahead", "state"), [(3600, State.FAILED), (-3600, State.FAILED), (120, State.WARNING)])
async def test_a_clock_that_is_wrong(api: KubeApi, tmp_path: Path, ahead: float, state: State) -> None:
    report = await examine(written(api, tmp_path), lambda: time.time() + ahead)
    assert_first(report, "clock", "ahead of" if ahead > 0 else "behind", "timedatectl", state=state)


async def test_a_wrong_clock_is_named_before_the_certificate_that_it_makes_look_expired(
    authority: KeyPair, tmp_path: Path
) -> None:
    # To this machine's clock, which is a year ahead, the certificate has expired; the server's own clock tells.
    now = datetime.now(UTC)
    old = issue(authority, "kube-apiserver", hosts=["127.0.0.1"], not_before=now - 2 * DAY, not_after=now - DAY)
    async with serving(authority, old) as api:
        report = await examine(written(api, tmp_path), lambda: time.time() + 365 * 86400)
    assert_first(report, "clock", "ahead of")


async def test_credentials_that_are_not_taken(api: KubeApi, tmp_path: Path) -> None:
    def wrong(config: dict[str, Any]) -> None:
        config["users"][0]["user"] = {"token": "wrong"}

    assert_first(await examine(written(api, tmp_path, wrong)), "API", "does not accept the credentials", "log in again")


async def test_an_api_that_refuses_connections(api: KubeApi, tmp_path: Path) -> None:
    path = written(api, tmp_path)
    await api.stop()
    assert_first(await examine(path), "API", "refused", "VPN")


async def test_an_api_that_says_nothing(api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "ANSWER", 0.3)
    monkeypatch.setattr(kubernetes, "_TIMEOUT", aiohttp.ClientTimeout(total=0.3))
    api.fall_silent()
    report = await examine(written(api, tmp_path))
    api.fall_silent(False)
    assert_first(report, "API", "does not answer")


async def test_an_api_whose_name_is_unknown(api: KubeApi, tmp_path: Path) -> None:
    def elsewhere(config: dict[str, Any]) -> None:
        config["clusters"][0]["cluster"]["server"] = "https://api.invalid:6443"

    assert_first(await examine(written(api, tmp_path, elsewhere)), "API", "api.invalid", "DNS")


# Credential plugins


def with_plugin(api: KubeApi, directory: Path, script: str, **fields: Any) -> Path:
    program = directory / "login"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program), **fields}

    def change(config: dict[str, Any]) -> None:
        config["users"][0]["user"] = {"exec": plugin}

    return written(api, directory, change)


GIVES = '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "secret"}}'


async def test_a_plugin_that_works(api: KubeApi, tmp_path: Path) -> None:
    report = await examine(with_plugin(api, tmp_path, f"echo hello >&2; echo '{GIVES}'"))
    assert report.first is None, report


async def test_a_plugin_that_is_not_on_the_path(api: KubeApi, tmp_path: Path) -> None:
    path = with_plugin(api, tmp_path, "", command="no-such-login")
    assert_first(await examine(path), "plugin", "no-such-login", "not on PATH")
    hinted = with_plugin(api, tmp_path, "", command="no-such-login", installHint="brew install login")
    assert_first(await examine(hinted), "plugin", "brew install login")


async def test_a_plugin_that_may_not_be_executed(api: KubeApi, tmp_path: Path) -> None:
    path = with_plugin(api, tmp_path, "")
    program = tmp_path / "login"
    program.chmod(stat.S_IRUSR)
    assert_first(await examine(path), "plugin", "may not be executed")


async def test_a_plugin_that_fails_is_quoted(api: KubeApi, tmp_path: Path) -> None:
    path = with_plugin(api, tmp_path, "echo 'your session has ended' >&2; exit 3")
    assert_first(await examine(path), "login", "your session has ended", "kubectl")


async def test_a_plugin_that_gives_no_credentials(api: KubeApi, tmp_path: Path) -> None:
    assert_first(await examine(with_plugin(api, tmp_path, "echo '{}'")), "login", "no ExecCredential")


async def test_a_plugin_that_hangs_is_quoted_and_does_not_outlive_the_question(
    api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "LOGIN", 1.5)
    script = f"echo $$ >{tmp_path}/pid; echo 'open this page to log in' >&2; exec sleep 600"
    report = await examine(with_plugin(api, tmp_path, script))
    assert_first(report, "login", "does not end", "open this page to log in", "kubectl")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# Rights

NEEDED = (*CATALOG_RIGHTS, *ENDPOINT_RIGHTS)
DISPENSABLE = {("watch", "pods"), ("get", "services"), ("get", "deployments")}


@pytest.mark.parametrize("right", NEEDED, ids=lambda right: f"{right.verb} {right.resource}")
async def test_each_right_that_is_missing_is_named_with_what_it_is_for(
    api: KubeApi, tmp_path: Path, right: Right
) -> None:
    api.forbid(right.resource, verbs=(right.verb,))
    report = await examine(written(api, tmp_path))
    state = State.WARNING if (right.verb, right.resource) in DISPENSABLE else State.FAILED
    assert_first(report, "rights", f"{right.verb} {right.resource}", right.purpose, "administrator", state=state)


async def test_all_rights_that_are_missing_are_told_at_once(api: KubeApi, tmp_path: Path) -> None:
    api.forbid("pods/log")
    api.forbid("pods/portforward")
    rights = [f.what for f in (await examine(written(api, tmp_path))).findings if f.check == "rights"]
    assert len(rights) == 3
    assert all("may not" in what for what in rights)


async def test_a_user_who_may_read_only_their_own_namespace(api: KubeApi, tmp_path: Path) -> None:
    api.forbid("services", except_in=("shop", "tp2-system"))
    api.forbid("endpointslices", except_in=("shop",))
    report = await examine(written(api, tmp_path))
    assert_first(report, "rights", "only the namespace 'shop'", "--namespace", state=State.WARNING)
    assert (await examine(written(api, tmp_path), namespaces=("shop",))).first is None


async def test_what_tp2_does_without_is_not_reported(api: KubeApi, tmp_path: Path) -> None:
    api.forbid("namespaces")
    report = await examine(written(api, tmp_path))
    assert report.first is None, report
    assert any("which it does without" in finding.what for finding in report.findings)


async def test_with_an_endpoint_of_ones_own_the_installed_one_needs_no_rights(api: KubeApi, tmp_path: Path) -> None:
    for plural in ("pods", "pods/log", "pods/portforward"):
        api.forbid(plural)
    assert (await examine(written(api, tmp_path), remote=Remote("bastion"))).first is None
