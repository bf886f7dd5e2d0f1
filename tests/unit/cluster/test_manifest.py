"""What ``tp2 install`` puts into a cluster is valid, is confined as far as Kubernetes can, and says what it is."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cluster.manifest_schema import errors_of
from tests.unit.cluster.pod_security import violations
from tp2 import __version__
from tp2.cluster import sshd
from tp2.cluster.manifest import (
    AUTHORIZED_KEYS,
    CONFIG,
    ENDPOINT,
    ENDPOINT_LABELS,
    IMAGE,
    NAMESPACE,
    SERVICE_PORT,
    Object,
    is_ours,
    merged_keys,
    objects,
    selector,
    to_yaml,
)
from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS, NAMESPACE_RIGHTS

REPOSITORY = Path(__file__).parents[3]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGp5dGhvbnB5dGhvbnB5dGhvbnB5dGhvbnB5dGhv somebody@laptop"


@pytest.fixture
def items() -> list[Object]:
    return objects(NAMESPACE, IMAGE, [KEY])


def one(items: list[Object], kind: str, name: str = ENDPOINT) -> Any:
    return next(item for item in items if (item["kind"], item["metadata"]["name"]) == (kind, name))


def pod_of(items: list[Object]) -> Any:
    return one(items, "Deployment")["spec"]["template"]["spec"]


def containers(items: list[Object]) -> list[Any]:
    return [*pod_of(items)["initContainers"], *pod_of(items)["containers"]]


@pytest.mark.parametrize("keys", [[], [KEY], [KEY, KEY]])
def test_every_object_is_what_the_api_reference_says(keys: list[str]) -> None:
    for item in objects("other-namespace", "registry.example/image:1", keys):
        assert errors_of(item) == []


def misspelt(items: list[Object]) -> None:
    pod_of(items)["securityContext"]["runAsNonroot"] = True


def wrong_type(items: list[Object]) -> None:
    containers(items)[0]["resources"]["limits"]["cpu"] = 2


def without_selector(items: list[Object]) -> None:
    del one(items, "Deployment")["spec"]["selector"]


def bad_label(items: list[Object]) -> None:
    items[0]["metadata"]["labels"]["app.kubernetes.io/version"] = "not a label"


@pytest.mark.parametrize("spoil", [misspelt, wrong_type, without_selector, bad_label])
def test_the_schema_notices_what_is_wrong(items: list[Object], spoil: Callable[[list[Object]], None]) -> None:
    spoil(items)
    assert any(errors_of(item) for item in items)


def test_the_pod_keeps_to_the_restricted_profile(items: list[Object]) -> None:
    assert violations(pod_of(items)) == []
    assert items[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("hostNetwork",), True),
        (("hostPID",), True),
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "runAsUser"), 0),
        (("securityContext", "seccompProfile", "type"), "Unconfined"),
        (("volumes", 0), {"name": "config", "hostPath": {"path": "/etc"}}),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "privileged"), True),
        (("containers", 0, "securityContext", "capabilities", "drop"), []),
        (("containers", 0, "securityContext", "capabilities", "add"), ["NET_ADMIN"]),
        (("initContainers", 0, "securityContext"), {}),
        (("containers", 0, "ports", 0, "hostPort"), 22),
    ],
)
def test_the_profile_notices_what_is_wrong(items: list[Object], path: tuple[Any, ...], value: Any) -> None:
    pod = copy.deepcopy(pod_of(items))
    place = pod
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert violations(pod)


def test_the_pod_is_confined_beyond_the_profile(items: list[Object]) -> None:
    pod = pod_of(items)
    assert pod["automountServiceAccountToken"] is False
    assert one(items, "ServiceAccount")["automountServiceAccountToken"] is False
    for container in containers(items):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"].keys() == {"requests", "limits"}
        assert all(value.keys() == {"cpu", "memory"} for value in container["resources"].values())


def test_kubernetes_asks_sshd_itself_whether_it_is_well(items: list[Object]) -> None:
    container = pod_of(items)["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {SERVICE_PORT: sshd.PORT}
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["tcpSocket"]["port"] in ports
    assert f"\nPort {sshd.PORT}\n" in one(items, "ConfigMap", CONFIG)["data"]["sshd_config"]
    port = one(items, "Service")["spec"]["ports"][0]
    assert (port["port"], port["targetPort"]) == (22, SERVICE_PORT)


def test_every_mount_has_its_volume_and_every_volume_its_source(items: list[Object]) -> None:
    pod = pod_of(items)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for container in containers(items) for mount in container["volumeMounts"]} == volumes.keys()
    config = one(items, "ConfigMap", CONFIG)["data"]
    for container in containers(items):
        for mount in container["volumeMounts"]:
            assert mount.get("subPath", "passwd") in config
    assert volumes["config"]["configMap"]["name"] == CONFIG
    assert volumes["authorized-keys"]["configMap"] == {"name": AUTHORIZED_KEYS, "optional": True}


def test_the_pods_user_has_a_name_in_the_pods_passwd(items: list[Object]) -> None:
    name, _, uid, gid, *_, shell = one(items, "ConfigMap", CONFIG)["data"]["passwd"].strip().split(":")
    security = pod_of(items)["securityContext"]
    assert (name, int(uid), int(gid)) == (sshd.USER, security["runAsUser"], security["runAsGroup"])
    assert shell == "/bin/false"


def test_the_host_key_is_made_in_the_pod_and_is_in_no_object(items: list[Object]) -> None:
    assert "PRIVATE KEY" not in to_yaml(items)
    assert not [item for item in items if item["kind"] == "Secret"]
    volume = next(volume for volume in pod_of(items)["volumes"] if volume["name"] == "host-key")
    assert volume["emptyDir"]["medium"] == "Memory"
    writers = [
        container["name"]
        for container in containers(items)
        for mount in container["volumeMounts"]
        if mount["name"] == "host-key" and not mount.get("readOnly")
    ]
    assert writers == ["host-key"]


def test_selectors_select_the_pods(items: list[Object]) -> None:
    labels = one(items, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert one(items, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert one(items, "Service")["spec"]["selector"].items() <= labels.items()
    assert selector(ENDPOINT_LABELS) == "app.kubernetes.io/name=tp2,app.kubernetes.io/component=endpoint"


def test_another_configuration_makes_another_pod(items: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    template = one(items, "Deployment")["spec"]["template"]
    assert one(objects(NAMESPACE, IMAGE, []), "Deployment")["spec"]["template"] == template
    monkeypatch.setattr(sshd, "CONFIG", sshd.CONFIG + "LogLevel DEBUG\n")
    changed = one(objects(NAMESPACE, IMAGE, []), "Deployment")["spec"]["template"]
    assert changed["metadata"]["annotations"] != template["metadata"]["annotations"]


def test_replicas_and_the_services_type_are_left_to_people(items: list[Object]) -> None:
    assert "replicas" not in one(items, "Deployment")["spec"]
    assert "type" not in one(items, "Service")["spec"]


def test_everything_goes_into_the_namespace_and_bears_its_labels() -> None:
    for item in objects("elsewhere", IMAGE, [KEY]):
        labels = item["metadata"]["labels"]
        assert item["metadata"].get("namespace", "elsewhere") == "elsewhere"
        assert labels["app.kubernetes.io/name"] == labels["app.kubernetes.io/managed-by"] == "tp2"
        assert labels["app.kubernetes.io/version"] == __version__
        assert is_ours(item, "elsewhere")
        assert not is_ours(item, NAMESPACE)
    assert not is_ours({"metadata": {"name": "web"}}, NAMESPACE)


def test_the_namespace_comes_first_and_the_deployment_after_what_it_mounts(items: list[Object]) -> None:
    kinds = [item["kind"] for item in items]
    assert kinds[0] == "Namespace"
    assert kinds.index("Deployment") > max(
        index for index, kind in enumerate(kinds) if kind in ("ConfigMap", "ServiceAccount")
    )


def granted(role: Any) -> set[tuple[str, str, str]]:
    return {
        (verb, resource, group)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }


def test_users_get_exactly_the_rights_that_tp2_uses(items: list[Object]) -> None:
    cluster, namespace = one(items, "ClusterRole", "tp2-user"), one(items, "Role", "tp2-user")
    assert granted(cluster) == {right[:3] for right in (*CATALOG_RIGHTS, *NAMESPACE_RIGHTS)}
    assert granted(namespace) == {right[:3] for right in ENDPOINT_RIGHTS}
    rights = granted(cluster) | granted(namespace)
    assert not [right for right in rights if "*" in right]
    assert {verb for verb, *_ in rights} == {"get", "list", "watch", "create"}
    assert {resource for verb, resource, _ in rights if verb == "create"} == {"pods/portforward"}
    assert "secrets" not in {resource for _, resource, _ in rights}


def test_the_printed_manifest_reads_back_as_the_objects(items: list[Object]) -> None:
    assert list(yaml.safe_load_all(to_yaml(items))) == items


def test_every_verb_is_explained_in_the_printed_manifest(items: list[Object]) -> None:
    comments = [line for line in to_yaml(items).splitlines() if line.startswith("#")]
    for right in (*CATALOG_RIGHTS, *NAMESPACE_RIGHTS, *ENDPOINT_RIGHTS):
        pattern = rf"# {right.verb} +{re.escape(right.resource)} +{re.escape(right.purpose)}"
        assert any(re.fullmatch(pattern, line) for line in comments)
    assert any("kubectl create clusterrolebinding" in line for line in comments)


def test_a_manifest_without_keys_says_how_to_add_one() -> None:
    text = to_yaml(objects("elsewhere", IMAGE, []))
    assert f"#   kubectl --namespace elsewhere create configmap {AUTHORIZED_KEYS} \\" in text
    assert AUTHORIZED_KEYS not in {item["metadata"]["name"] for item in yaml.safe_load_all(text)}


def test_the_repositorys_manifest_is_the_printed_one() -> None:
    printed = to_yaml(objects(NAMESPACE, IMAGE, []))
    assert (REPOSITORY / "deploy" / "proxy.yaml").read_text() == printed, "write to_yaml(objects(...)) there again"


def test_the_default_image_is_pinned() -> None:
    tag = IMAGE.rpartition(":")[2]
    assert re.fullmatch(r"\d+\.\d+_p\d+-r\d+-ls\d+", tag), "VERSION-lsNUMBER is one build; `latest` and VERSION move"


def test_an_image_of_ones_own_is_used_for_both_containers() -> None:
    images = {container["image"] for container in containers(objects(NAMESPACE, "registry.example/sshd:2", []))}
    assert images == {"registry.example/sshd:2"}


def test_the_dockerfile_builds_for_the_pods_user() -> None:
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    assert f"USER {sshd.UID}:{sshd.UID}" in dockerfile
    assert f"EXPOSE {sshd.PORT}" in dockerfile
    assert "rm -f /etc/ssh/ssh_host_*" in dockerfile


def test_a_second_persons_key_does_not_shut_out_the_first() -> None:
    other = KEY.replace("IGp5", "IGp6").replace("somebody", "another")
    assert merged_keys(f"{KEY}\n", [other]) == [KEY, other]
    assert merged_keys(f"# team\n\n{KEY}\n{other}\n", [KEY]) == ["# team", KEY, other]
    assert merged_keys("", [KEY, KEY]) == [KEY]


def test_a_key_with_options_or_another_comment_is_the_same_key() -> None:
    present = f"restrict,port-forwarding {KEY}"
    assert merged_keys(present, [KEY.replace("laptop", "desk")]) == [present]
