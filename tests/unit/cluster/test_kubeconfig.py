"""From a kubeconfig to a client that is logged in."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tp2.cluster.kubeconfig import Access, load
from tp2.errors import ClusterError
from tp2.sandbox.tls import KeyPair, issue, new_authority


@pytest.fixture(scope="module")
def authority() -> KeyPair:
    return new_authority()


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, watched by the tests, in an environment that says nothing of any cluster."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return directory


def data(content: bytes) -> str:
    return base64.b64encode(content).decode()


def write(path: Path, user: dict[str, Any], **cluster: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me", "namespace": "shop"}}],
        "clusters": [{"name": "lab", "cluster": {"server": "https://198.51.100.1:6443", **cluster}}],
        "users": [{"name": "me", "user": user}],
    }
    path.write_text(json.dumps(document))
    return path


def plugin(path: Path, program: str, **more: Any) -> dict[str, Any]:
    path.write_text(program)
    exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable, "args": [str(path)], **more}
    return {"exec": exec_}


def printing(status: dict[str, str]) -> str:
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"print({json.dumps(json.dumps(credential))})"


async def token_of(access: Access) -> str:
    client = await access.connect()
    try:
        settings = await client.configuration.auth_settings()
        return str(settings["BearerToken"]["value"])
    finally:
        await client.close()


async def refusal_of(access: Access) -> ClusterError:
    with pytest.raises(ClusterError) as caught:
        await access.connect()
    assert all((caught.value.what, caught.value.why, caught.value.remedy))
    return caught.value


async def test_a_token_logs_in(tmp_path: Path) -> None:
    access = load(write(tmp_path / "config", {"token": "secret"}), None)
    assert (access.context, access.server, access.namespace) == ("lab", "https://198.51.100.1:6443", "shop")
    assert await token_of(access) == "Bearer secret"


async def test_each_login_takes_the_credentials_that_are_there_then(tmp_path: Path) -> None:
    access = load(write(tmp_path / "config", {"token": "old"}), None)
    write(tmp_path / "config", {"token": "new"})
    assert await token_of(access) == "Bearer new"


async def test_a_client_certificate_leaves_no_key_behind(
    tmp_path: Path, temporary_directory: Path, authority: KeyPair
) -> None:
    me = issue(authority, "me")
    user = {"client-certificate-data": data(me.certificate), "client-key-data": data(me.key)}
    ca = {"certificate-authority-data": data(authority.certificate)}
    access = load(write(tmp_path / "config", user, **ca), None)
    open_files = None
    for _ in range(3):
        client = await access.connect()
        await client.close()
        assert list(temporary_directory.iterdir()) == []
        before, open_files = open_files, len(list(Path("/dev/fd").iterdir()))
        assert before in (None, open_files)


async def test_a_certificate_authority_that_is_none(tmp_path: Path, temporary_directory: Path) -> None:
    for nonsense in ("not base64!", data(b"not a certificate")):
        access = load(write(tmp_path / "config", {}, **{"certificate-authority-data": nonsense}), None)
        error = await refusal_of(access)
        assert "'lab'" in error.what
        assert "kubectl --context lab" in error.remedy
    assert list(temporary_directory.iterdir()) == []


async def test_a_key_file_that_is_missing_is_named(tmp_path: Path) -> None:
    user = {"client-certificate": "me.crt", "client-key": "me.key"}
    error = await refusal_of(load(write(tmp_path / "config", user), None))
    assert str(tmp_path / "me.crt") in error.why


async def test_a_plugin_is_asked_anew_for_every_login(tmp_path: Path) -> None:
    user = plugin(tmp_path / "plugin.py", printing({"token": "first"}))
    access = load(write(tmp_path / "config", user), None)
    assert await token_of(access) == "Bearer first"
    (tmp_path / "plugin.py").write_text(printing({"token": "second"}))
    assert await token_of(access) == "Bearer second"


async def test_a_plugin_that_fails_is_quoted(tmp_path: Path) -> None:
    program = "import sys; sys.stderr.write('your session has expired'); sys.exit(3)"
    error = await refusal_of(load(write(tmp_path / "config", plugin(tmp_path / "plugin.py", program)), None))
    assert error.what == "the credential plugin of context 'lab' failed"
    assert "status 3: your session has expired" in error.why


@pytest.mark.parametrize("output", ["", "nonsense", "[]", "{}", '{"status": null}'])
async def test_a_plugin_that_says_nonsense(tmp_path: Path, output: str) -> None:
    user = plugin(tmp_path / "plugin.py", f"print({output!r})")
    error = await refusal_of(load(write(tmp_path / "config", user), None))
    assert "credential plugin" in error.what


async def test_what_a_plugin_says_is_passed_on_while_it_waits_and_nobody_waits_longer_than_it_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = (
        f"import os, pathlib, sys, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "print('open https://login.example.com', file=sys.stderr, flush=True); time.sleep(60)"
    )
    user = plugin(tmp_path / "plugin.py", program)
    connecting = asyncio.create_task(load(write(tmp_path / "config", user), None).connect())
    async with asyncio.timeout(20):
        while "https://login.example.com" not in caplog.text:
            await asyncio.sleep(0.01)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_plugin_may_give_a_certificate(tmp_path: Path, authority: KeyPair, temporary_directory: Path) -> None:
    me = issue(authority, "me")
    status = {"clientCertificateData": me.certificate.decode(), "clientKeyData": me.key.decode()}
    access = load(write(tmp_path / "config", plugin(tmp_path / "plugin.py", printing(status))), None)
    client = await access.connect()
    await client.close()
    assert list(temporary_directory.iterdir()) == []


async def test_a_plugin_gets_its_arguments_and_environment(tmp_path: Path) -> None:
    program = (
        "import json, os, sys; info = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "token = '-'.join([sys.argv[1], os.environ['STAGE'], info['kind'], info['apiVersion']])\n"
        "print(json.dumps({'status': {'token': token}}))"
    )
    user = plugin(tmp_path / "plugin.py", program)
    user["exec"]["args"].append(7)
    user["exec"]["env"] = [{"name": "STAGE", "value": "test"}, None, {}]
    token = await token_of(load(write(tmp_path / "config", user), None))
    assert token == "Bearer 7-test-ExecCredential-client.authentication.k8s.io/v1"


async def test_a_plugin_that_wants_to_know_the_cluster_is_told(tmp_path: Path, authority: KeyPair) -> None:
    program = (
        "import json, os; spec = json.loads(os.environ['KUBERNETES_EXEC_INFO'])['spec']\n"
        "print(json.dumps({'status': {'token': json.dumps(spec)}}))"
    )
    authority.write(tmp_path, "ca")
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "shop"}}
    cluster = {"certificate-authority": "ca.crt", "extensions": [{"name": "other"}, extension]}
    user = plugin(tmp_path / "plugin.py", program, provideClusterInfo=True)
    spec = json.loads((await token_of(load(write(tmp_path / "config", user, **cluster), None))).removeprefix("Bearer "))
    assert spec["cluster"] == {
        "server": "https://198.51.100.1:6443",
        "certificate-authority-data": data(authority.certificate),
        "config": {"audience": "shop"},
    }
    del user["exec"]["provideClusterInfo"]
    spec = json.loads((await token_of(load(write(tmp_path / "config", user, **cluster), None))).removeprefix("Bearer "))
    assert spec == {"interactive": False}


async def test_a_plugin_that_has_to_ask_somebody_is_not_run_without_a_terminal(tmp_path: Path) -> None:
    user = plugin(tmp_path / "plugin.py", printing({"token": "secret"}), interactiveMode="Always")
    error = await refusal_of(load(write(tmp_path / "config", user), None))
    assert "no terminal" in error.why


async def test_a_missing_plugin_comes_with_its_installation_hint(tmp_path: Path) -> None:
    user = plugin(tmp_path / "plugin.py", "", command="no-such-program", installHint="Install it\nwith care.")
    error = await refusal_of(load(write(tmp_path / "config", user), None))
    assert error.why == "no-such-program: no such program"
    assert error.remedy == "Install it with care."


def test_skipping_verification_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = {"server": "https://insecure.example", "insecure-skip-tls-verify": True}
    for _ in range(2):
        load(write(tmp_path / "config", {"token": "secret"}, **cluster), None)
    assert ["insecure-skip-tls-verify" in record.message for record in caplog.records] == [True]


def test_the_environment_names_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "config", {"token": "secret"})
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'missing'}::{path}")
    assert load(None, None).context == "lab"


def test_the_home_directory_is_looked_into(tmp_path: Path) -> None:
    write(tmp_path / "home" / ".kube" / "config", {"token": "secret"})
    assert load(None, None).context == "lab"


def test_a_tilde_is_the_home_directory(tmp_path: Path) -> None:
    write(tmp_path / "home" / "config", {"token": "secret"})
    assert load(Path("~/config"), None).context == "lab"


def test_no_kubeconfig_anywhere(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no kubeconfig was found") as caught:
        load(None, None)
    assert str(tmp_path / "home") in caught.value.why
    assert "--kubeconfig" in caught.value.remedy


async def test_a_pod_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00:10:96::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("tp2.cluster.kubeconfig._SERVICE_ACCOUNT", tmp_path)
    (tmp_path / "namespace").write_text("shop")
    access = load(None, None)
    assert (access.context, access.server, access.namespace) == ("in-cluster", "https://[fd00:10:96::1]:443", "shop")
    assert "service account" in (await refusal_of(access)).what
