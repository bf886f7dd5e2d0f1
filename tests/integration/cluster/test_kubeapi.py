"""The sandbox's Kubernetes API over HTTP, compared with recordings; and as a program."""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.cluster.conftest import DEADLINE, PACE, Followed, Lab, service
from tests.unit.cluster.recordings import lines, recorded
from tp2.cluster.kubeconfig import load
from tp2.sandbox import kubeapi, kubeapi_watch
from tp2.sandbox.kubeapi_resources import PODS, SERVICES


class Client:
    """Requests with the token and CA of a lab's server."""

    def __init__(self, lab: Lab, session: aiohttp.ClientSession, context: ssl.SSLContext) -> None:
        self._lab = lab
        self._session = session
        self._context = context

    async def request(
        self, method: str, path: str, body: Any = None, token: str = "secret", kind: str = "application/json"
    ) -> tuple[int, Any]:
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {token}"} if token else {})
        url = self._lab.api.url + path
        async with self._session.request(method, url, json=body, headers=headers, ssl=self._context) as response:
            text = await response.text()
            return response.status, json.loads(text) if response.content_type == "application/json" else text

    async def watch(self, query: str) -> list[Any]:
        """All lines of a watch that ends."""
        url = f"{self._lab.api.url}/api/v1/services?watch=1&{query}"
        headers = {"Authorization": "Bearer secret"}
        async with self._session.get(url, headers=headers, ssl=self._context) as response:
            assert response.status == 200
            return [json.loads(line) async for line in response.content]


@pytest.fixture
async def client(lab: Lab, authority: Any) -> AsyncIterator[Client]:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    async with aiohttp.ClientSession() as session:
        yield Client(lab, session, context)


async def test_errors_are_those_of_the_recordings(lab: Lab, client: Client) -> None:
    cases = {
        "error-401-bad-token.json": ("GET", "/api/v1/services", "wrong"),
        "error-404-unknown-resource.json": ("GET", "/api/v1/thingies", "secret"),
    }
    for name, (method, path, token) in cases.items():
        recording = recorded(name)
        assert await client.request(method, path, token=token) == (recording["status"], json.loads(recording["body"]))
    lab.api.forbid("services")
    for name, path in (
        ("error-403-list-services-cluster-wide.json", "/api/v1/services"),
        ("error-403-list-services-namespace.json", "/api/v1/namespaces/shop/services"),
    ):
        status, body = await client.request("GET", path)
        expected = json.loads(recorded(name)["body"])
        expected["message"] = expected["message"].replace(":nobody", ":sandbox")
        assert (status, body) == (403, expected)


async def test_a_watch_from_a_version_that_is_too_old_is_one_error_event(lab: Lab, client: Client) -> None:
    lab.api.store.compact()
    (event,) = await client.watch("resourceVersion=1")
    (expected,) = lines("watch-services-expired.jsonl")
    expected["object"]["message"] = f"too old resource version: 1 ({lab.api.store.version})"
    assert event == expected


async def test_a_watch_without_a_version_begins_with_everything_and_a_bookmark(lab: Lab, client: Client) -> None:
    added, bookmark = await client.watch("allowWatchBookmarks=true&timeoutSeconds=1")
    assert (added["type"], added["object"]["metadata"]["name"], added["object"]["kind"]) == ("ADDED", "web", "Service")
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert bookmark["object"]["metadata"]["resourceVersion"] == str(lab.api.store.version)


async def test_a_bookmark_comes_before_the_end_and_looks_as_recorded(
    lab: Lab, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeapi_watch, "_BOOKMARK_BEFORE_END", 0.5)
    (bookmark,) = await client.watch(f"allowWatchBookmarks=1&timeoutSeconds=1&resourceVersion={lab.api.store.version}")
    expected = lines("watch-services-lifecycle.jsonl")[-1]
    expected["object"]["metadata"]["resourceVersion"] = str(lab.api.store.version)
    assert bookmark == expected


async def test_a_watch_from_the_future_is_silent(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeapi_watch, "_BOOKMARK_BEFORE_END", 0.5)
    assert await client.watch("allowWatchBookmarks=1&timeoutSeconds=1&resourceVersion=99999999") == []


async def test_objects_are_created_read_replaced_and_deleted(client: Client) -> None:
    collection = "/api/v1/namespaces/shop/services"
    status, created = await client.request("POST", collection, service("new"))
    assert (status, created["kind"], created["metadata"]["namespace"]) == (201, "Service", "shop")
    assert await client.request("GET", f"{collection}/new") == (200, created)
    created["spec"]["ports"][0]["port"] = 81
    status, replaced = await client.request("PUT", f"{collection}/new", created)
    assert (status, replaced["spec"]["ports"][0]["port"]) == (200, 81)
    assert (await client.request("PUT", f"{collection}/new", created))[0] == 409
    assert (await client.request("DELETE", f"{collection}/new"))[0] == 200
    assert (await client.request("GET", f"{collection}/new"))[0] == 404
    assert (await client.request("POST", collection, {"kind": "Pod", "metadata": {"name": "x"}}))[0] == 400
    assert (await client.request("POST", "/api/v1/services", service("x")))[0] == 405
    assert (await client.request("POST", "/api/v1/namespaces", {"metadata": {"name": "more"}}))[0] == 201
    status, more = await client.request("GET", "/api/v1/namespaces/more")
    assert (status, more["status"]) == (200, {"phase": "Active"})


async def test_an_object_is_applied_whether_it_is_there_or_not(lab: Lab, client: Client) -> None:
    path = "/apis/apps/v1/namespaces/shop/deployments/web?fieldManager=tp2"
    apply = "application/apply-patch+yaml"
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 1}}
    status, created = await client.request("PATCH", path, body, kind=apply)
    assert (status, created["metadata"]["generation"]) == (201, 1)
    assert await client.request("PATCH", path, body, kind=apply) == (200, created)
    assert (await client.request("PATCH", path.partition("?")[0], body, kind=apply))[0] == 422
    assert (await client.request("PATCH", path, body))[0] == 415
    merge = "application/merge-patch+json"
    status, merged = await client.request("PATCH", path, {"spec": {"paused": True}}, kind=merge)
    assert (status, merged["spec"]) == (200, {"replicas": 1, "paused": True})
    assert (await client.request("PATCH", path.replace("/web", "/none"), {}, kind=merge))[0] == 404
    lab.api.forbid("deployments", verbs=("patch",))
    status, refused = await client.request("PATCH", path, body, kind=apply)
    assert (status, refused["message"].partition(" is")[0]) == (403, 'deployments.apps "web"')


async def test_a_list_is_of_what_its_selector_says(lab: Lab, client: Client) -> None:
    lab.api.store.create(PODS, "shop", {"metadata": {"name": "a", "labels": {"app": "web"}}})
    lab.api.store.create(PODS, "shop", {"metadata": {"name": "b"}})
    _, pods = await client.request("GET", "/api/v1/namespaces/shop/pods?labelSelector=app%3Dweb")
    assert [item["metadata"]["name"] for item in pods["items"]] == ["a"]
    for name, parameter in (("label", "labelSelector=a%3D%3D%3Db"), ("field", "fieldSelector=spec.nothing%3D1")):
        status, _ = await client.request("GET", f"/api/v1/services?{parameter}")
        assert status == recorded(f"error-400-bad-{name}-selector.json")["status"]


async def test_a_pod_says_what_it_was_told_to(lab: Lab, client: Client) -> None:
    lab.api.store.create(PODS, "shop", {"metadata": {"name": "a"}})
    lab.api.logs["shop", "a"] = "hello\n"
    path = "/api/v1/namespaces/shop/pods/a/log"
    assert await client.request("GET", path) == (200, "hello\n")
    assert (await client.request("GET", path.replace("/a/", "/b/")))[0] == 404
    assert (await client.request("DELETE", path))[0] == 405
    lab.api.forbid("pods/log")
    assert (await client.request("GET", path))[0] == 403
    assert (await client.request("GET", path.removesuffix("/log")))[0] == 200


async def test_who_asks_what_it_may_do_is_told_what_would_happen(lab: Lab, client: Client) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    lab.api.forbid("services", verbs=("list", "watch"), except_in=("shop",))
    for name in ("ssar-denied.json", "ssar-allowed.json"):
        pair = recorded(name)["pairs"][0]
        body = pair["request"]["body"]
        if name == "ssar-allowed.json":
            lab.api.allow("services")
        status, answer = await client.request("POST", path, body)
        expected = pair["response"]["body"]
        assert (status, answer["spec"]) == (201, expected["spec"])
        assert answer["status"].keys() == expected["status"].keys()
        assert answer["status"]["allowed"] is expected["status"]["allowed"]
    lab.api.forbid("pods/portforward", verbs=("create",))
    for subresource, verb, allowed in (
        ("portforward", "create", False),
        ("portforward", "get", True),
        ("", "create", True),
    ):
        asked = {"verb": verb, "resource": "pods", "subresource": subresource, "namespace": "shop"}
        _, answer = await client.request("POST", path, {"spec": {"resourceAttributes": asked}})
        assert answer["status"]["allowed"] is allowed
    status, answer = await client.request("POST", path, {"spec": {}})
    expected = json.loads(recorded("ssar-invalid.json")["response"]["body"])
    assert (status, answer["message"]) == (422, expected["message"])


async def test_versions_of_lists_mean_what_they_mean_to_a_real_server(lab: Lab, client: Client) -> None:
    lab.api.store.create(SERVICES, "shop", service("another"))
    path = "/api/v1/services?"
    assert len((await client.request("GET", f"{path}resourceVersion=0&limit=1"))[1]["items"]) == 2
    assert len((await client.request("GET", f"{path}limit=1"))[1]["items"]) == 1
    assert (await client.request("GET", f"{path}resourceVersion=1"))[0] == 200
    assert (await client.request("GET", f"{path}resourceVersion=1&limit=2"))[0] == 410
    assert (await client.request("GET", f"{path}resourceVersion=1&resourceVersionMatch=Exact"))[0] == 410
    assert (await client.request("GET", f"{path}resourceVersion=99999999"))[0] == 504
    assert (await client.request("GET", f"{path}resourceVersion=abc"))[0] == 400
    assert (await client.request("GET", f"{path}watch=1&resourceVersion=abc"))[0] == 500
    status, nowhere = await client.request("GET", "/api/v1/namespaces/nowhere/services")
    assert (status, nowhere["items"]) == (200, [])


async def test_it_says_what_it_is(client: Client) -> None:
    assert (await client.request("GET", "/version"))[1]["minor"] == "36"
    assert await client.request("GET", "/readyz") == (200, "ok")
    assert (await client.request("GET", "/readyz", token=""))[0] == 401


@contextlib.contextmanager
def program(directory: Path, port: int, objects: Path) -> Iterator[subprocess.Popen[str]]:
    """The program, from ``ready`` on; it has to end well unless it was killed."""
    command = [sys.executable, "-m", "tp2.sandbox.kubeapi", "--listen", f"127.0.0.1:{port}", "--dir", str(directory)]
    command += ["--objects", str(objects), "--namespace", "shop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.terminate()
            status = process.wait(DEADLINE)
        assert status in (0, -signal.SIGKILL)


async def test_the_program_keeps_its_kubeconfig_valid_when_it_is_started_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps([{"kind": "Service", **service("web", namespace="shop")}]))
    second.write_text(json.dumps({"kind": "ServiceList", "items": [service("other", namespace="shop")]}))
    path = tmp_path / "api" / "kubeconfig"
    with program(path.parent, 0, first) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        kubeconfig = path.read_bytes()
        access = load(path, None)
        assert access.namespace == "shop"
        followed = Followed(access, (), PACE)
        await followed.cluster.start(DEADLINE)
        await followed.has("web")
        process.kill()
    try:
        await followed.status(synced=False)
        with program(path.parent, int(access.server.rpartition(":")[2]), second):
            assert path.read_bytes() == kubeconfig
            await followed.has("other")
    finally:
        await followed.cluster.close()


@pytest.mark.parametrize(
    ("listen", "objects"),
    [("127.0.0.1:0", "nonsense"), ("127.0.0.1:0", '[{"kind": "Job"}]'), ("127.0.0.1:0", "[1]"), ("192.0.2.1:1", "[]")],
)
def test_the_program_says_why_it_cannot_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listen: str, objects: str
) -> None:
    (tmp_path / "objects.json").write_text(objects)
    arguments = ["--listen", listen, "--dir", str(tmp_path / "api"), "--objects", str(tmp_path / "objects.json")]
    assert kubeapi.main(arguments) == 1
    assert capsys.readouterr().err.startswith("python -m tp2.sandbox.kubeapi: ")
    assert not (tmp_path / "api" / "kubeconfig").exists()
