"""In a pod, without a kubeconfig: the pod's service account is used, and its token while it is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cluster.conftest import Lab, service
from tests.integration.cluster.portforward.rig import End, echo, pod, running
from tp2.cluster.kubeconfig import load
from tp2.cluster.portforward import forward
from tp2.errors import ClusterError
from tp2.sandbox.kubeapi_resources import PODS, SERVICES
from tp2.sandbox.tls import KeyPair


@pytest.fixture
def account(lab: Lab, authority: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that kubelet mounts, in an environment as kubelet makes it."""
    for name in ("KUBECONFIG", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", lab.api.host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(lab.api.port))
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    monkeypatch.setattr("tp2.cluster.kubeconfig._SERVICE_ACCOUNT", directory)
    (directory / "ca.crt").write_bytes(authority.certificate)
    (directory / "token").write_text(f"{lab.api.token}\n")
    (directory / "namespace").write_text("shop")
    return directory


async def test_it_lists_watches_and_port_forwards(lab: Lab, account: Path) -> None:
    lab.api.store.create(PODS, "shop", pod("db-1"))
    access = load(None, None)
    assert (access.context, access.server, access.namespace) == ("in-cluster", lab.api.url, "shop")
    async with lab.followed(access=access) as followed, running(echo) as port:
        await lab.api.watched(3)
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        stream = await forward(followed.cluster.session, "shop", "db-1", port)
        _, end = await stream.create_connection(End, "", 0)
        end.transport.write(b"hello")
        await end.has(b"hello")
        end.transport.abort()
        await stream.wait_closed()


async def test_a_token_that_kubelet_has_replaced_is_used_without_a_restart(lab: Lab, account: Path) -> None:
    async with lab.followed(access=load(None, None)) as followed:
        await lab.api.watched(3)
        # As kubelet does: the new one is there before the old one ends.
        (account / "token").write_text("the next one")
        lab.api.token = "the next one"
        lab.api.end_watches()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        await lab.api.watched(3)
        assert followed.cluster.session.login == 2
        assert followed.cluster.status()["last_error"] is None


@pytest.mark.parametrize("missing", ["token", "ca.crt"])
async def test_what_is_not_mounted_is_named(lab: Lab, account: Path, missing: str) -> None:
    (account / missing).unlink()
    with pytest.raises(ClusterError) as raised:
        await load(None, None).connect()
    assert str(account / missing) in raised.value.why
    assert "mount" in raised.value.remedy
