"""A proxy on the way to the API: everything goes through it, and what it refuses is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.cluster.conftest import DEADLINE, PACE, Lab, eventually, service, shop
from tests.integration.cluster.portforward.rig import End, echo, pod, running
from tests.integration.cluster.proxy import Proxy, proxy
from tp2.cluster.kubeconfig import load
from tp2.cluster.portforward import forward
from tp2.cluster.watch import Cluster
from tp2.errors import ClusterError
from tp2.sandbox.kubeapi_resources import PODS, SERVICES
from tp2.sandbox.kubeapi_server import KubeApi
from tp2.sandbox.tls import KeyPair, issue
from tp2.system.eventloop import new_event_loop

#: A name that nobody but the proxy knows: what arrives there has gone through it.
NAME = "api.behind-the-proxy.example"
NAMES = {NAME: "127.0.0.1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that says nothing of proxies."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@contextlib.asynccontextmanager
async def far(authority: KeyPair, directory: Path) -> AsyncIterator[Lab]:
    """An API that only the proxy can reach, with a pod that is this machine."""
    api = KubeApi(shop("web"), authority, "secret", certificate=issue(authority, "kube-apiserver", hosts=[NAME]))
    api.store.create(PODS, "shop", pod("db-1"))
    await api.start()
    try:
        yield Lab(api, directory / "kubeconfig")
    finally:
        await api.stop()


def kubeconfig(lab: Lab, proxy_url: str | None = None) -> Path:
    document = lab.api.kubeconfig("shop")
    cluster = document["clusters"][0]["cluster"]
    cluster["server"] = f"https://{NAME}:{lab.api.port}"
    if proxy_url is not None:
        cluster["proxy-url"] = proxy_url
    lab.path.write_text(json.dumps(document))
    return lab.path


def tls_of(authority: KeyPair, directory: Path) -> ssl.SSLContext:
    issue(authority, "proxy", hosts=["127.0.0.1"]).write(directory, "proxy")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "proxy.crt", directory / "proxy.key")
    return context


async def everything_works(lab: Lab, path: Path) -> None:
    """List, watch and port-forward."""
    async with lab.followed(access=load(path, None)) as followed:
        await lab.api.watched(3)
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        async with running(echo) as port:
            stream = await forward(followed.cluster.session, "shop", "db-1", port)
            _, end = await stream.create_connection(End, "", 0)
            end.transport.write(b"hello")
            await end.has(b"hello")
            end.transport.abort()
            await stream.wait_closed()


async def refusal(path: Path) -> ClusterError:
    cluster = Cluster(load(path, None), pace=PACE)
    with pytest.raises(ClusterError) as raised:
        await cluster.start(DEADLINE)
    return raised.value


def on_the_daemons_loop(scheme: str, authority: KeyPair, directory: Path) -> Proxy:
    async def run() -> Proxy:
        tls = tls_of(authority, directory) if scheme == "https" else None
        async with far(authority, directory) as lab, proxy(scheme, names=NAMES, tls=tls) as between:
            await everything_works(lab, kubeconfig(lab, between.url))
            return between

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run())


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_lists_watches_and_port_forwards_go_through_the_proxy_of_the_kubeconfig(
    scheme: str, authority: KeyPair, tmp_path: Path
) -> None:
    between = on_the_daemons_loop(scheme, authority, tmp_path)
    assert len(between.tunnels) >= 4, "three watches and a port-forward are open at the same time"
    assert {tunnel.rpartition(":")[0] for tunnel in between.tunnels} == {NAME}


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_the_proxy_of_the_environment_is_used(
    scheme: str, authority: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with far(authority, tmp_path) as lab, proxy(scheme, names=NAMES) as between:
        monkeypatch.setenv("HTTPS_PROXY", between.url)
        monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,other.example")
        await everything_works(lab, kubeconfig(lab))
        assert between.tunnels


async def test_no_proxy_leads_around_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    document = lab.api.kubeconfig("shop")
    cluster = document["clusters"][0]["cluster"]
    # An address that is this machine's, but that the rules take for another one's.
    cluster["server"] = f"https://localhost.example:{lab.api.port}"
    lab.path.write_text(json.dumps(document))
    async with proxy("http", names={"localhost.example": "127.0.0.1"}) as between:
        monkeypatch.setenv("HTTPS_PROXY", between.url)
        access = load(lab.path, None)
        assert access.proxy == between.url
        monkeypatch.setenv("NO_PROXY", ".example")
        assert load(lab.path, None).proxy is None
        # And what is decided is done: nothing else looks at the environment.
        async with lab.followed() as followed:
            await followed.has("web")
        assert between.tunnels == []


async def test_a_proxy_that_wants_a_login_is_given_that_of_its_url(authority: KeyPair, tmp_path: Path) -> None:
    async with far(authority, tmp_path) as lab, proxy(names=NAMES, login="me:secret") as between:
        await everything_works(lab, kubeconfig(lab, between.url))
        error = await refusal(kubeconfig(lab, between.url.replace("me:secret@", "")))
        assert "407" in error.why
        assert "USER:PASSWORD" in error.remedy
        error = await refusal(kubeconfig(lab, between.url.replace("secret", "wrong")))
        assert "wrong" not in str(error)


@pytest.mark.parametrize(
    ("refused", "remedy"),
    [("403 Forbidden by the company", "let it pass"), ("502 Bad Gateway", "can be reached from the proxy")],
)
async def test_a_proxy_that_refuses_is_quoted(authority: KeyPair, tmp_path: Path, refused: str, remedy: str) -> None:
    async with far(authority, tmp_path) as lab, proxy(names=NAMES) as between:
        between.refusal = refused
        error = await refusal(kubeconfig(lab, between.url))
    assert error.what == f"cannot reach the Kubernetes API at https://{NAME}:{lab.api.port}"
    assert error.why == f"the proxy {between.url} refused: {refused}"
    assert remedy in error.remedy


async def test_a_socks_proxy_that_refuses_says_so(authority: KeyPair, tmp_path: Path) -> None:
    async with far(authority, tmp_path) as lab, proxy("socks5", names=NAMES) as between:
        between.refusal = "yes"
        error = await refusal(kubeconfig(lab, between.url))
    assert f"the proxy {between.url} failed" in error.why
    assert "not allowed" in error.why


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_is_not_there_is_named(authority: KeyPair, tmp_path: Path, scheme: str) -> None:
    async with proxy(scheme) as between:
        pass
    async with far(authority, tmp_path) as lab:
        error = await refusal(kubeconfig(lab, between.url))
    assert f"the proxy {between.url} failed" in error.why
    assert "HTTPS_PROXY" in error.remedy


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_what_a_proxy_cuts_is_followed_again(authority: KeyPair, tmp_path: Path, scheme: str) -> None:
    async with (
        far(authority, tmp_path) as lab,
        proxy(scheme, names=NAMES) as between,
        lab.followed(access=load(kubeconfig(lab, between.url), None)) as followed,
    ):
        await lab.api.watched(3)
        between.cut()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
        await eventually(lambda: followed.cluster.status()["synced"])


async def test_the_certificate_of_the_server_is_checked_behind_a_proxy(authority: KeyPair, tmp_path: Path) -> None:
    for scheme in ("http", "socks5"):
        async with far(authority, tmp_path) as lab, proxy(scheme, names={"other.example": "127.0.0.1"}) as between:
            document = json.loads(kubeconfig(lab, between.url).read_text())
            document["clusters"][0]["cluster"]["server"] = f"https://other.example:{lab.api.port}"
            lab.path.write_text(json.dumps(document))
            error = await refusal(lab.path)
            assert "cannot be trusted" in error.what
            document["clusters"][0]["cluster"]["tls-server-name"] = NAME
            lab.path.write_text(json.dumps(document))
            await everything_works(lab, lab.path)


async def test_a_password_for_the_server_in_netrc_does_not_take_the_tokens_place(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("default login somebody password else\n")
    async with lab.followed() as followed:
        await followed.has("web")
