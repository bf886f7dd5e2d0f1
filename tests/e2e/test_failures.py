"""When the environment is at fault: one message that says what, why and what to do; nothing is left behind."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Laptop
from tp2.cluster.manifest import NAMESPACE
from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS, rules
from tp2.sandbox.box import API_PORT, NODE, tp2_command
from tp2.sandbox.kubeapi_resources import LOG
from tp2.sandbox.namespaces import SEARCH_PATH
from tp2.sandbox.objects import Object, namespace


def assert_fails(laptop: Laptop, command: list[str], code: int, *words: str, env: dict[str, str] | None = None) -> None:
    """Run *command*: it ends with *code*, and its only message has *words*; the machine is as before."""
    before = laptop.ruleset()
    done = subprocess.run(
        [*laptop.host.command(), *command],
        env=env or laptop.box.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("tp2: ") == 1, done.stderr
    assert done.stderr.count("  why: ") == 1
    assert done.stderr.count("  try: ") == 1
    assert "ready" not in done.stdout
    for word in words:
        assert word in done.stderr, done.stderr
    assert laptop.ruleset() == before
    directory = Path(laptop.box.environment["TP2_RUNTIME_DIR"])
    assert not directory.exists() or list(directory.iterdir()) == []
    for pid in laptop.host.processes():
        assert b"tp2.forward.helper" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def up_with(laptop: Laptop, **options: str | None) -> list[str]:
    """Return the command of ``tp2 up`` with *options* changed, or left out where None."""
    command = laptop.box.up_command()
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in command:
            position = command.index(flag)
            del command[position : position + 2]
        if value is not None:
            command += [flag, value]
    return command


def installed(laptop: Laptop, kubeconfig: str | None = None, *options: str) -> list[str]:
    """Return the command of a person who uses the endpoint that is installed, in the cluster of *kubeconfig*."""
    more = ["--kubeconfig", kubeconfig] if kubeconfig else []
    return laptop.box.up_command(*more, *options, installed=True)


@contextmanager
def another_cluster(laptop: Laptop, *objects: Object, role: str = "") -> Iterator[str]:
    """Run a cluster of these objects; give its kubeconfig.

    :param role: what its user is bound to.
    """
    box = laptop.box
    api = box.start_api(objects, "another", 6445, role)
    try:
        yield str(box.directory / "another" / "kubeconfig")
    finally:
        api.kill()
        api.wait()


def endpoint_pod(laptop: Laptop, **changes: Any) -> Object:
    """The endpoint's pod of the sandbox, with another status."""
    pod = copy.deepcopy(next(item for item in laptop.box.objects if item["kind"] == "Pod"))
    pod["status"] |= changes
    return pod


def test_without_an_endpoint(laptop: Laptop) -> None:
    with another_cluster(laptop, namespace("default")) as kubeconfig:
        assert_fails(laptop, installed(laptop, kubeconfig), 8, "no SSH endpoint is installed", "`tp2 install`")


def test_an_endpoint_that_no_node_takes(laptop: Laptop) -> None:
    scheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient memory.",
    }
    pod = endpoint_pod(laptop, phase="Pending", conditions=[scheduled], containerStatuses=[])
    with another_cluster(laptop, pod) as kubeconfig:
        assert_fails(laptop, installed(laptop, kubeconfig), 8, "is not ready", "Insufficient memory")


def test_an_endpoint_whose_image_cannot_be_pulled(laptop: Laptop) -> None:
    why = {"reason": "ErrImagePull", "message": "manifest unknown"}
    container = {"name": "sshd", "image": "registry.example/sshd:1", "state": {"waiting": why}, "ready": False}
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]
    pod = endpoint_pod(laptop, phase="Pending", conditions=conditions, containerStatuses=[container])
    with another_cluster(laptop, pod) as kubeconfig:
        assert_fails(laptop, installed(laptop, kubeconfig), 8, "is not ready", "registry.example/sshd:1", "image")


def test_an_endpoint_that_does_not_know_the_key(laptop: Laptop) -> None:
    stranger = str(laptop.box.directory / "host_key")
    assert_fails(laptop, installed(laptop, None, "--identity", stranger), 8, "does not know your key", "`tp2 install`")


def test_an_endpoint_whose_key_is_not_the_one_that_the_api_vouches_for(laptop: Laptop) -> None:
    pod = endpoint_pod(laptop)
    pod["metadata"]["annotations"][LOG] = laptop.box.host_key.read_text()
    with another_cluster(laptop, pod) as kubeconfig:
        assert_fails(laptop, installed(laptop, kubeconfig), 8, "is not who it should be", "SHA256:")


def test_a_direct_way_that_is_not_there(laptop: Laptop) -> None:
    assert_fails(laptop, installed(laptop, None, "--via", "direct"), 8, "no load balancer", "--via")


def test_a_way_to_an_endpoint_that_is_not_the_installed_one(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, via="api"), 2, "--via", "--remote")


def test_without_privilege_and_without_sudo(laptop: Laptop) -> None:
    ordinary = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    assert_fails(laptop, [*ordinary, "env", "PATH=/nonexistent", *up_with(laptop)], 5, "needs root", "sudo")


def test_with_a_sudo_that_refuses(laptop: Laptop) -> None:
    ordinary = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    assert_fails(laptop, [*ordinary, *up_with(laptop)], 5, "cannot get the privilege", "sudo")


def test_without_the_capability(laptop: Laptop) -> None:
    without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    assert_fails(laptop, [*without, *up_with(laptop)], 5, "CAP_NET_ADMIN")


def test_without_nftables(laptop: Laptop) -> None:
    ldconfig = shutil.which("ldconfig", path=SEARCH_PATH)
    assert ldconfig is not None
    library = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True).stdout
    path = next(line.split()[-1] for line in library.splitlines() if "libnftables.so.1 " in line)
    hidden = ["unshare", "--mount", "sh", "-c", f'mount --bind /dev/null {path} && exec "$@"', "sh"]
    assert_fails(laptop, [*hidden, *up_with(laptop)], 6, "libnftables", "apt install libnftables1")


def test_a_kubeconfig_that_is_not_there(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, kubeconfig="/nonexistent/config"), 7, "/nonexistent/config")


@pytest.mark.parametrize("content", ["{", "just words", "apiVersion: v1\nkind: Config\n", "\0\1\2"])
def test_a_kubeconfig_that_is_none(laptop: Laptop, content: str) -> None:
    path = laptop.box.directory / "broken-kubeconfig"
    path.write_text(content)
    assert_fails(laptop, up_with(laptop, kubeconfig=str(path)), 7, str(path))


def test_a_context_that_is_not_there(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, context="prod"), 7, "prod", "sandbox")


def changed_kubeconfig(laptop: Laptop, old: str, new: str) -> str:
    path = laptop.box.directory / "changed-kubeconfig"
    content = laptop.box.kubeconfig.read_text()
    assert old in content
    path.touch(mode=0o600)
    path.write_text(content.replace(old, new))
    return str(path)


def test_an_api_that_refuses_connections(laptop: Laptop) -> None:
    kubeconfig = changed_kubeconfig(laptop, f"{NODE}:{API_PORT}", f"{NODE}:1")
    assert_fails(laptop, up_with(laptop, kubeconfig=kubeconfig), 7, f"{NODE}:1", "refused")


def test_an_api_without_a_route(laptop: Laptop) -> None:
    kubeconfig = changed_kubeconfig(laptop, f"{NODE}:{API_PORT}", "10.9.9.9:6443")
    assert_fails(laptop, up_with(laptop, kubeconfig=kubeconfig), 7, "10.9.9.9:6443")


def test_an_api_whose_name_is_unknown(laptop: Laptop) -> None:
    kubeconfig = changed_kubeconfig(laptop, f"{NODE}:{API_PORT}", "api.example:6443")
    assert_fails(laptop, up_with(laptop, kubeconfig=kubeconfig), 7, "api.example")


def test_an_api_with_a_certificate_of_another_authority(laptop: Laptop) -> None:
    with another_cluster(laptop, namespace("default")) as other:
        # The right server's address, with the wrong server's authority.
        content = json.loads(Path(other).read_text())
        content["clusters"][0]["cluster"]["server"] = f"https://{NODE}:{API_PORT}"
        path = laptop.box.directory / "wrong-authority"
        path.write_text(json.dumps(content))
        words = ("cannot be trusted", "certificate", "fetch a new kubeconfig")
        assert_fails(laptop, up_with(laptop, kubeconfig=str(path)), 7, *words)


def test_an_api_that_does_not_take_the_credentials(laptop: Laptop) -> None:
    token = json.loads(laptop.box.kubeconfig.read_text())["users"][0]["user"]["token"]
    kubeconfig = changed_kubeconfig(laptop, token, "expired")
    words = ("does not accept the credentials of context 'sandbox'", "401", "log in again")
    assert_fails(laptop, up_with(laptop, kubeconfig=kubeconfig), 7, *words)


def test_a_user_without_any_rights(laptop: Laptop) -> None:
    with another_cluster(laptop, namespace("default"), role="nobodys") as kubeconfig:
        words = ('cannot list resource "', "at the cluster scope", "--namespace")
        assert_fails(laptop, up_with(laptop, kubeconfig=kubeconfig), 7, *words)


def test_a_user_without_the_right_to_port_forward(laptop: Laptop) -> None:
    rights = [right for right in (*CATALOG_RIGHTS, *ENDPOINT_RIGHTS) if right.resource != "pods/portforward"]
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "nearly"},
        "rules": rules(rights),
    }
    with another_cluster(laptop, *laptop.box.objects, role, role="nearly") as kubeconfig:
        words = (
            "port-forwarding to pods in the namespace",
            "in all, these rights are missing",
            f'get pods/portforward in the namespace "{NAMESPACE}"',
            f'create pods/portforward in the namespace "{NAMESPACE}"',
        )
        assert_fails(laptop, installed(laptop, kubeconfig), 7, *words)


def test_a_credential_plugin_that_is_not_there(laptop: Laptop) -> None:
    content = json.loads(laptop.box.kubeconfig.read_text())
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-login", "installHint": "Get it."}
    content["users"][0]["user"] = {"exec": plugin}
    path = laptop.box.directory / "plugin-kubeconfig"
    path.write_text(json.dumps(content))
    assert_fails(laptop, up_with(laptop, kubeconfig=str(path)), 7, "no-such-login: no such program", "Get it.")


def test_a_proxy_that_is_not_there(laptop: Laptop) -> None:
    content = json.loads(laptop.box.kubeconfig.read_text())
    content["clusters"][0]["cluster"]["proxy-url"] = "http://192.0.2.1:3128"
    path = laptop.box.directory / "proxy-kubeconfig"
    path.write_text(json.dumps(content))
    words = ("the proxy http://192.0.2.1:3128 failed", "refused", "proxy-url")
    assert_fails(laptop, up_with(laptop, kubeconfig=str(path)), 7, *words)


def test_an_endpoint_that_refuses_connections(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, remote=f"root@{NODE}:1"), 8, f"{NODE}:1", "refused")


def test_an_endpoint_without_a_route(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, remote="root@10.9.9.9:22"), 8, "10.9.9.9:22")


def test_an_endpoint_whose_name_is_unknown(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, remote="root@bastion.example:22"), 8, "bastion.example")


def test_an_endpoint_that_is_no_ssh_server(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, remote=f"root@{NODE}:{API_PORT}"), 8, f"{NODE}:{API_PORT}")


def test_an_endpoint_with_another_key_than_the_pinned_one(laptop: Laptop) -> None:
    # Any key but the endpoint's own.
    assert_fails(
        laptop, up_with(laptop, host_key=str(laptop.box.identity.with_suffix(".pub"))), 8, "SHA256:", "--host-key"
    )


def test_an_endpoint_that_nobody_vouches_for(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, host_key=None), 8, "known_hosts")


def test_an_identity_that_the_endpoint_does_not_know(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, identity=str(laptop.box.directory / "host_key")), 8, "identity")


def test_an_identity_that_is_not_there(laptop: Laptop) -> None:
    assert_fails(laptop, up_with(laptop, identity="/nonexistent/key"), 8, "/nonexistent/key")


@contextmanager
def listening(laptop: Laptop, port: int) -> Iterator[int]:
    script = (
        "import socket, sys; listener = socket.create_server(('127.0.0.1', int(sys.argv[1])));"
        "print('ready', flush=True); sys.stdin.read()"
    )
    process = laptop.host.start(sys.executable, "-c", script, str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_a_taken_socks_port(laptop: Laptop) -> None:
    with listening(laptop, 1080) as pid:
        assert_fails(laptop, up_with(laptop), 9, "127.0.0.1 port 1080", str(pid), "--socks")


def test_values_that_make_no_sense_are_refused_by_name(laptop: Laptop) -> None:
    for option, value in (
        ("--ports", "9-1"),
        ("--idle-timeout", "soon"),
        ("--socks", "localhost"),
        ("--dns", "nameserver"),
        ("--remote", "a b"),
        ("--host-key", "/nonexistent.pub"),
        ("--mode", "tun"),
    ):
        done = laptop.run(*tp2_command("up", option, value))
        assert done.code == 2
        assert option in done.stderr
        assert "Traceback" not in done.stderr


def test_a_machine_without_a_nameserver(laptop: Laptop) -> None:
    empty = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /etc/resolv.conf && exec "$@"', "sh"]
    assert_fails(laptop, [*empty, *up_with(laptop)], 1, "/etc/resolv.conf", "--dns")


def test_a_runtime_directory_of_somebody_else(laptop: Laptop) -> None:
    theirs = laptop.box.directory / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345) if os.geteuid() == 0 else pytest.skip("needs root")
    env = {**laptop.box.environment, "TP2_RUNTIME_DIR": str(theirs)}
    assert_fails(laptop, up_with(laptop), 1, str(theirs), "TP2_RUNTIME_DIR", env=env)
