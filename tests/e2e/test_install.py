"""``tp2 install`` and ``tp2 uninstall`` as people type them, against a cluster that makes pods of what is applied."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest
import yaml

from tests.e2e.conftest import Ended, Laptop, eventually
from tests.e2e.kubelet import Kubelet, unpullable, unschedulable
from tests.e2e.test_failures import assert_fails
from tp2.cluster.manifest import AUTHORIZED_KEYS, ENDPOINT, IMAGE, NAMESPACE
from tp2.sandbox.box import tp2_command
from tp2.sandbox.contents import OBJECTS
from tp2.sandbox.kubeapi_resources import BY_KIND
from tp2.sandbox.objects import Object

REPOSITORY = Path(__file__).parents[2]
NAME, PORT = "bare", 6446


@dataclass
class Person:
    """Somebody at the laptop, with a home of their own."""

    laptop: Laptop
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        run = self.home / "run"
        return {**self.laptop.box.environment, "HOME": str(self.home), "TP2_RUNTIME_DIR": str(run)}

    def tp2(self, *arguments: str) -> Ended:
        done = subprocess.run(
            [*self.laptop.host.command(), *tp2_command(*arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def up(self) -> Iterator[None]:
        """tp2 in the background, told nothing."""
        done = self.tp2("up", "--detach")
        assert done.code == 0, done.stderr
        try:
            yield
        finally:
            assert self.tp2("down").code == 0


def person(laptop: Laptop, name: str, *, key: bool = True) -> Person:
    """Make one, who has the bare cluster's kubeconfig and a key."""
    home = laptop.box.directory / name
    (home / ".kube").mkdir(mode=0o700, parents=True)
    (home / ".kube" / "config").symlink_to(kubeconfig(laptop))
    if key:
        (home / ".ssh").mkdir(mode=0o700)
        own = asyncssh.generate_private_key("ssh-ed25519", comment=name)
        own.write_private_key(home / ".ssh" / "id_ed25519")
        own.write_public_key(home / ".ssh" / "id_ed25519.pub")
    return Person(laptop, home)


def kubeconfig(laptop: Laptop) -> Path:
    return laptop.box.directory / NAME / "kubeconfig"


@contextmanager
def bare_cluster(laptop: Laptop, *objects: Object, role: str = "") -> Iterator[None]:
    """A cluster with the sandbox's services, and without an endpoint."""
    api = laptop.box.start_api([*OBJECTS, *objects], NAME, PORT, role)
    try:
        yield
    finally:
        api.kill()
        api.wait()


def names(laptop: Laptop) -> set[str]:
    """Everything there is in the bare cluster."""
    found = set()
    for resource in BY_KIND.values():
        prefix = f"/apis/{resource.group}/v1" if resource.group else "/api/v1"
        for item in laptop.box.request("GET", f"{prefix}/{resource.plural}", None, kubeconfig(laptop))["items"]:
            found.add(f"{resource.kind} {item['metadata'].get('namespace', '')} {item['metadata']['name']}")
    return found


def web(laptop: Laptop) -> str:
    return laptop.curl("http://web.shop/")


def test_it_is_installed_used_by_two_people_and_taken_away_whole(laptop: Laptop) -> None:
    with bare_cluster(laptop), Kubelet(laptop.box, kubeconfig(laptop), "10.244.9.71") as kubelet:
        before = names(laptop)
        me, colleague = person(laptop, "me"), person(laptop, "colleague")
        assert_fails(laptop, tp2_command("up"), 8, "no SSH endpoint is installed", "`tp2 install`", env=me.environment)

        done = me.tp2("install")
        assert (done.code, done.stderr) == (0, ""), done.stderr
        steps = done.stdout.splitlines()
        assert steps[0].startswith("cluster sandbox at https://")
        assert f"Deployment {ENDPOINT} applied" in steps
        assert steps[-2:] == ["the endpoint is ready", "your key is let in"]
        with me.up():
            assert web(laptop) == "this is web.shop, port 80\n"

        assert_fails(laptop, tp2_command("up"), 8, "does not know your key", env=colleague.environment)
        done = colleague.tp2("install")
        assert done.code == 0, done.stderr
        keys = laptop.box.request(
            "GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{AUTHORIZED_KEYS}", None, kubeconfig(laptop)
        )["data"]["authorized_keys"].splitlines()
        assert [line.split()[-1] for line in keys] == ["me", "colleague"]
        for somebody in (colleague, me):
            with somebody.up():
                assert web(laptop) == "this is web.shop, port 80\n"

        done = me.tp2("uninstall")
        assert (done.code, done.stderr) == (0, ""), done.stderr
        assert f"Namespace {NAMESPACE} deleted" in done.stdout
        assert names(laptop) == before
        eventually(lambda: not kubelet.runs)
        assert_fails(laptop, tp2_command("up"), 8, "no SSH endpoint is installed", env=me.environment)
        done = me.tp2("uninstall")
        assert (done.code, done.stdout.splitlines()[-1]) == (0, f"there is no endpoint in the namespace {NAMESPACE}")


def test_what_is_printed_is_the_manifest_of_the_repository_and_touches_no_cluster(laptop: Laptop) -> None:
    nobody = laptop.box.directory / "nobody-at-all"
    env = {**laptop.box.environment, "HOME": str(nobody), "KUBECONFIG": "/nonexistent"}
    printed = laptop.host.run(*tp2_command("install", "--print"), env=env)
    assert printed == (REPOSITORY / "deploy" / "proxy.yaml").read_text()
    key = str(laptop.box.identity)
    other = laptop.host.run(
        *tp2_command("install", "--print", "--namespace", "ssh", "--image", "registry.example/sshd:1", "-i", key),
        env=env,
    )
    documents = list(yaml.safe_load_all(other))
    assert {document["metadata"].get("namespace", "ssh") for document in documents} == {"ssh"}
    assert IMAGE not in other
    assert laptop.box.identity.with_suffix(".pub").read_text().split()[1] in other


def test_what_is_printed_and_applied_by_hand_works(laptop: Laptop) -> None:
    printed = laptop.host.run(*tp2_command("install", "--print"), env=laptop.box.environment)
    with bare_cluster(laptop), Kubelet(laptop.box, kubeconfig(laptop), "10.244.9.72"):
        me = person(laptop, "by-hand")
        # As its comment says to make it.
        keys = {"authorized_keys": (me.home / ".ssh" / "id_ed25519.pub").read_text()}
        config_map = {"kind": "ConfigMap", "metadata": {"namespace": NAMESPACE, "name": AUTHORIZED_KEYS}, "data": keys}
        for obj in (*yaml.safe_load_all(printed), config_map):
            resource, place = BY_KIND[obj["kind"]], obj["metadata"].get("namespace")
            prefix = f"/apis/{resource.group}/v1" if resource.group else "/api/v1"
            path = f"{prefix}/namespaces/{place}/{resource.plural}" if place else f"{prefix}/{resource.plural}"
            laptop.box.request("POST", path, obj, kubeconfig(laptop))
        eventually(lambda: me.tp2("up", "--detach").code == 0)
        assert web(laptop) == "this is web.shop, port 80\n"
        assert me.tp2("down").code == 0
        # It is what tp2 install would have applied: nothing changes but who may log in.
        assert me.tp2("install").code == 0
        assert me.tp2("uninstall").code == 0


def test_an_image_that_cannot_be_pulled(laptop: Laptop) -> None:
    image = "registry.example/sshd:1"
    statuses = (
        unpullable(image, "ErrImagePull", f'failed to resolve "{image}": not found'),
        unpullable(image, "ImagePullBackOff", f'Back-off pulling image "{image}"'),
    )
    with bare_cluster(laptop), Kubelet(laptop.box, kubeconfig(laptop), "10.244.9.73", *statuses):
        env = person(laptop, "image").environment
        command = tp2_command("install", "--image", image, "--timeout", "4s")
        assert_fails(laptop, command, 8, "does not become ready", image, "not found", "--image", env=env)


def test_a_pod_that_no_node_takes(laptop: Laptop) -> None:
    why = "0/3 nodes are available: 3 Insufficient memory."
    with bare_cluster(laptop), Kubelet(laptop.box, kubeconfig(laptop), "10.244.9.74", unschedulable(why)):
        env = person(laptop, "pending").environment
        command = tp2_command("install", "--timeout", "3s")
        assert_fails(laptop, command, 8, "does not become ready", "is pending", why, "add a node", env=env)


def test_without_the_rights_all_that_are_missing_are_named_and_nothing_is_changed(laptop: Laptop) -> None:
    rules = [
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "create"]},
    ]
    viewer = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "viewer"},
        "rules": rules,
    }
    with bare_cluster(laptop, viewer, role="viewer"):
        env = person(laptop, "viewer-only").environment
        missing = (
            "create namespaces at the cluster scope",
            f'create serviceaccounts in the namespace "{NAMESPACE}"',
            f'get configmaps in the namespace "{NAMESPACE}"',
            f'patch deployments.apps in the namespace "{NAMESPACE}"',
            f'patch services in the namespace "{NAMESPACE}"',
            f'list pods in the namespace "{NAMESPACE}"',
        )
        assert_fails(laptop, tp2_command("install"), 7, "not allowed", *missing, "--print", env=env)


def test_without_a_key_nothing_is_installed(laptop: Laptop) -> None:
    with bare_cluster(laptop):
        env = person(laptop, "keyless", key=False).environment
        assert_fails(laptop, tp2_command("install"), 2, "no SSH key", "ssh-keygen", "--identity", env=env)
        namespaces = laptop.box.request("GET", "/api/v1/namespaces", None, kubeconfig(laptop))["items"]
        assert NAMESPACE not in {item["metadata"]["name"] for item in namespaces}


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_a_cluster_that_is_not_there(laptop: Laptop, command: str) -> None:
    with bare_cluster(laptop):
        env = person(laptop, f"far-{command}").environment
    assert_fails(laptop, tp2_command(command), 7, "cannot reach the Kubernetes API", "refused", env=env)


def test_a_value_that_makes_no_sense_is_refused_by_name(laptop: Laptop) -> None:
    for option, value in (("--namespace", "No Namespace"), ("--timeout", "soon")):
        done = laptop.tp2("install", option, value)
        assert done.code == 2
        assert option in done.stderr
        assert "Traceback" not in done.stderr
