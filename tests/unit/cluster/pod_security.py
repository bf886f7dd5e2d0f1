"""The rules of the *restricted* pod security standard, one by one.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ (baseline and restricted, Linux)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_PROFILES = {"RuntimeDefault", "Localhost"}


def violations(pod: dict[str, Any]) -> list[str]:
    """What the pod (its ``spec``) does that the restricted profile forbids."""
    return [*_of_pod(pod), *(found for container in _containers(pod) for found in _of_container(pod, container))]


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for key in ("containers", "initContainers", "ephemeralContainers") for entry in pod.get(key) or ()]


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    security = pod.get("securityContext") or {}
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"host namespaces: {key}"
    for volume in pod.get("volumes") or ():
        if "hostPath" in volume:
            yield f"hostPath volumes: {volume['name']}"
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield f"volume types: {kind}"
    for sysctl in security.get("sysctls") or ():
        if sysctl["name"] not in _SAFE_SYSCTLS:
            yield f"sysctls: {sysctl['name']}"
    if (security.get("windowsOptions") or {}).get("hostProcess"):
        yield "HostProcess"
    yield from _of_either(security, "pod")


def _of_container(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    name = container["name"]
    security, shared = container.get("securityContext") or {}, pod.get("securityContext") or {}
    if security.get("privileged"):
        yield f"privileged containers: {name}"
    if security.get("allowPrivilegeEscalation") is not False:
        yield f"privilege escalation: {name}"
    capabilities = security.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()) or set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}:
        yield f"capabilities: {name}"
    if security.get("runAsNonRoot", shared.get("runAsNonRoot")) is not True:
        yield f"running as non-root: {name}"
    profile = security.get("seccompProfile") or shared.get("seccompProfile") or {}
    if profile.get("type") not in _PROFILES:
        yield f"seccomp: {name}"
    if any(port.get("hostPort") for port in container.get("ports") or ()):
        yield f"host ports: {name}"
    if security.get("procMount", "Default") != "Default":
        yield f"/proc mount type: {name}"
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        action = (container.get(probe) or {}).get("httpGet") or (container.get(probe) or {}).get("tcpSocket") or {}
        if action.get("host"):
            yield f"host probes: {name}"
    yield from _of_either(security, name)


def _of_either(security: dict[str, Any], name: str) -> Iterator[str]:
    if security.get("runAsUser") == 0:
        yield f"running as non-root user: {name}"
    selinux = security.get("seLinuxOptions") or {}
    if selinux.get("type") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"SELinux: {name}"
    if (security.get("appArmorProfile") or {}).get("type") == "Unconfined":
        yield f"AppArmor: {name}"
    if (security.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield f"seccomp: {name}"
