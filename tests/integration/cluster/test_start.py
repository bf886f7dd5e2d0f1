"""A start that cannot succeed says so at once: what, why, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.conftest import DEADLINE, PACE, Lab, shop
from tp2.cluster.kubeconfig import load
from tp2.cluster.stream import Pace
from tp2.cluster.watch import Cluster
from tp2.errors import ClusterError
from tp2.sandbox.kubeapi_server import KubeApi
from tp2.sandbox.tls import KeyPair, issue, new_authority


async def refusal(path: Path, *, timeout: float = DEADLINE, pace: Pace = PACE, **options: Any) -> ClusterError:
    """The error of a start that fails, well before *timeout*, and leaves nothing running."""
    clock = asyncio.get_running_loop().time
    cluster = Cluster(load(path, None), pace=pace, **options)
    begin = clock()
    with pytest.raises(ClusterError) as caught:
        await cluster.start(timeout)
    assert clock() - begin < max(timeout, DEADLINE / 2)
    assert not [task for task in asyncio.all_tasks() if "tp2/cluster" in str(task.get_coro())]
    assert not cluster.status()["synced"]
    error = caught.value
    assert all((error.what, error.why, error.remedy))
    return error


def changed(lab: Lab, user: dict[str, Any] | None = None, **cluster: Any) -> Path:
    document = lab.api.kubeconfig("shop")
    document["clusters"][0]["cluster"] |= cluster
    if user is not None:
        document["users"][0]["user"] = user
    lab.path.write_text(json.dumps(document))
    return lab.path


async def served_with(certificate: KeyPair, authority: KeyPair, path: Path) -> ClusterError:
    api = KubeApi(shop(), authority, "secret", certificate=certificate)
    await api.start()
    try:
        return await refusal(changed(Lab(api, path)))
    finally:
        await api.stop()


async def test_a_server_that_is_not_there(lab: Lab) -> None:
    path = lab.write()
    await lab.api.stop()
    error = await refusal(path)
    assert error.what == f"cannot reach the Kubernetes API at {lab.api.url}"
    assert error.why == "connection refused"


async def test_a_server_that_is_a_moment_late_is_waited_for(lab: Lab) -> None:
    access = lab.access()
    await lab.api.stop()
    cluster = Cluster(access, pace=PACE)
    starting = asyncio.create_task(cluster.start(DEADLINE))
    await asyncio.sleep(0.3)
    await lab.api.start()
    await starting
    assert cluster.status()["synced"]
    await cluster.close()


async def test_a_server_signed_by_somebody_else(lab: Lab) -> None:
    document = lab.api.kubeconfig()
    other = KubeApi(shop(), new_authority(), "").kubeconfig()["clusters"][0]["cluster"]["certificate-authority-data"]
    document["clusters"][0]["cluster"]["certificate-authority-data"] = other
    lab.path.write_text(json.dumps(document))
    error = await refusal(lab.path)
    assert "cannot be trusted" in error.what
    assert "fetch a new kubeconfig" in error.remedy


async def test_a_server_that_hangs_up_is_told_of_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    error = await refusal(changed(lab, server=lab.api.url.replace("https:", "http:")), timeout=1.0)
    assert "the connection broke" in error.why
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def test_a_server_under_a_name_that_its_certificate_lacks(lab: Lab) -> None:
    error = await refusal(changed(lab, server=f"https://localhost:{lab.api.port}"))
    assert "localhost" in error.why
    assert "tls-server-name" in error.remedy


async def test_the_name_in_the_certificate_can_be_given(lab: Lab, authority: KeyPair, tmp_path: Path) -> None:
    certificate = issue(authority, "kube-apiserver", hosts=["kubernetes.default"])
    api = KubeApi(shop(), authority, "secret", certificate=certificate)
    await api.start()
    other = Lab(api, tmp_path / "other")
    assert "address mismatch" in (await refusal(changed(other))).why
    access = load(changed(other, None, **{"tls-server-name": "kubernetes.default"}), None)
    async with other.followed(access=access) as followed:
        assert followed.cluster.status()["synced"]
    await api.stop()


async def test_certificates_of_another_time(authority: KeyPair, tmp_path: Path) -> None:
    now, day = datetime.now(UTC), timedelta(days=1)
    expired = issue(authority, "a", hosts=["127.0.0.1"], not_before=now - 2 * day, not_after=now - day)
    error = await served_with(expired, authority, tmp_path / "a")
    assert "expired" in error.why
    future = issue(authority, "b", hosts=["127.0.0.1"], not_before=now + day, not_after=now + 2 * day)
    error = await served_with(future, authority, tmp_path / "b")
    assert "not yet valid" in error.why
    assert "clock" in error.remedy


async def test_skipping_verification_does(lab: Lab) -> None:
    document = lab.api.kubeconfig()
    cluster = document["clusters"][0]["cluster"]
    del cluster["certificate-authority-data"]
    cluster["insecure-skip-tls-verify"] = True
    lab.path.write_text(json.dumps(document))
    async with lab.followed(access=load(lab.path, None)) as followed:
        assert followed.cluster.status()["synced"]


async def test_a_client_certificate_logs_in(lab: Lab, authority: KeyPair, tmp_path: Path) -> None:
    issue(authority, "me").write(tmp_path, "me")
    user = {"client-certificate": "me.crt", "client-key": "me.key"}
    async with lab.followed(access=load(changed(lab, user=user), None)) as followed:
        assert followed.cluster.status()["services"] == 1


async def test_a_token_that_is_wrong(lab: Lab) -> None:
    error = await refusal(changed(lab, user={"token": "wrong"}))
    assert "does not accept the credentials of context 'sandbox'" in error.what
    assert error.why == "401 Unauthorized"


@pytest.mark.parametrize(
    ("plural", "resource"), [("services", "services"), ("endpointslices", "endpointslices.discovery.k8s.io")]
)
async def test_rights_that_are_missing(lab: Lab, plural: str, resource: str) -> None:
    lab.api.forbid(plural)
    error = await refusal(lab.write())
    assert error.what == f"{plural} in all namespaces may not be listed"
    assert error.why.startswith(f"{resource} is forbidden: User ")
    assert "--namespace" in error.remedy
    error = await refusal(lab.path, namespaces=["shop"])
    assert error.why.endswith('in the namespace "shop"')


async def test_a_server_that_never_answers(lab: Lab) -> None:
    lab.api.fall_silent()
    error = await refusal(lab.write(), timeout=0.5)
    assert "did not answer completely within 0.5 s" in error.why


async def test_a_server_that_stays_busy_is_quoted(lab: Lab) -> None:
    lab.api.refuse(503, times=1000)
    error = await refusal(lab.write(), timeout=0.5)
    assert "503 the sandbox was told to refuse this request" in error.why
    assert "0.5 s" in error.why


async def test_a_plugin_that_waits_for_somebody_is_waited_for_and_that_is_said(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A person who finds their second factor takes longer than a server may take to answer.
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": ""}}
    credential["status"] = {"token": lab.api.token}
    (tmp_path / "credential").write_text(json.dumps(credential))
    program = f"until [ -e {tmp_path}/found ]; do sleep 0.05; done; cat {tmp_path}/credential"
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", program]}
    cluster = Cluster(load(changed(lab, user={"exec": plugin}), None), pace=PACE)
    starting = asyncio.create_task(cluster.start(1.0))
    async with asyncio.timeout(DEADLINE):
        while "still running" not in (cluster.status()["last_error"] or ""):
            await asyncio.sleep(0.01)
    assert "may ask for a login" in caplog.text
    await asyncio.sleep(1.0)
    (tmp_path / "found").touch()
    # Listing has its time, whatever the login took; a busy machine needs more than this test gives it.
    with contextlib.suppress(ClusterError):
        await starting
    assert cluster.session.login == 1
    assert cluster.status()["last_error"] is None
    await cluster.close()


async def test_a_plugin_that_is_missing(lab: Lab) -> None:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-program"}
    error = await refusal(changed(lab, user={"exec": plugin}))
    assert error.why == "no-such-program: no such program"


async def test_a_name_that_cannot_be_resolved(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    error = await refusal(changed(lab, server="https://api.example.com:6443"))
    assert "api.example.com cannot be resolved" in error.why


def http(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (http("200 OK", "<html>Please log in</html>"), "not Kubernetes' JSON: '<html>Please log in</html>'"),
        (http("200 OK", "{}"), "not a list of Kubernetes objects"),
        (http("200 OK", '{"items": 3, "metadata": {"resourceVersion": "1"}}'), "not a list of Kubernetes objects"),
        (http("404 Not Found", "404 page not found"), "404 404 page not found"),
    ],
)
async def test_a_server_that_is_no_kubernetes_api(
    lab: Lab, authority: KeyPair, tmp_path: Path, answer: bytes, why: str
) -> None:
    error = await answered(lab, answer, authority, tmp_path)
    assert why in error.why
    assert "server of context 'sandbox'" in error.remedy


async def test_a_server_that_does_not_speak_tls(lab: Lab, tmp_path: Path) -> None:
    error = await answered(lab, http("400 Bad Request", "?"), None, tmp_path)
    assert "does not speak TLS" in error.why


@pytest.mark.parametrize("answer", [b"", b"\x00\xff\n\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"])
async def test_answers_that_break_off_or_are_no_http(
    lab: Lab, authority: KeyPair, tmp_path: Path, answer: bytes
) -> None:
    error = await answered(lab, answer, authority, tmp_path, timeout=0.5)
    assert "the connection broke" in error.why


async def answered(
    lab: Lab, answer: bytes, authority: KeyPair | None, directory: Path, timeout: float = DEADLINE
) -> ClusterError:
    """Start against a server that answers anything with *answer*, and return the error."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await (reader.readuntil(b"\r\n\r\n") if context else reader.read(1))
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            writer.close()

    context: ssl.SSLContext | None = None
    if authority is not None:
        issue(authority, "server", hosts=["127.0.0.1"]).write(directory, "server")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(directory / "server.crt", directory / "server.key")
    server = await asyncio.start_server(respond, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await refusal(changed(lab, server=f"https://127.0.0.1:{port}"), timeout=timeout)


async def test_a_start_that_is_interrupted_leaves_nothing(lab: Lab) -> None:
    lab.api.fall_silent()
    cluster = Cluster(lab.access(), pace=PACE)
    starting = asyncio.create_task(cluster.start(DEADLINE))
    while not lab.api.requests:
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not [task for task in asyncio.all_tasks() if "tp2/cluster" in str(task.get_coro())]


async def test_a_namespace_with_a_strange_name_is_just_empty(lab: Lab) -> None:
    async with lab.followed("a b?") as followed:
        assert followed.cluster.catalog.services == {}
