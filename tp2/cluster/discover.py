"""Where the SSH endpoint is, and which host key it has: asked of the Kubernetes API before every connection.

The answer is of one moment: pods come and go, and a new pod has a new key, so nobody keeps it. The host key is what
the pod's init container printed when it made it (:mod:`tp2.cluster.sshd`). It comes through the API server, over the
TLS that the kubeconfig vouches for, and it is the only key that may be trusted for that pod.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from tp2.cluster.api import Api, Forbidden, Refused
from tp2.cluster.manifest import (
    ENDPOINT,
    ENDPOINT_LABELS,
    HOST_KEY_CONTAINER,
    NAMESPACE,
    SERVICE_PORT,
    Object,
    selector,
)
from tp2.cluster.podstate import deployment_problem, is_ready, pod_problem
from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS
from tp2.cluster.session import Session
from tp2.errors import ClusterError, EndpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pod that takes SSH connections.

    :param uid: tells a pod from another one of the same name.
    :param address: the pod's own address, ``""`` if it has none.
    :param host_key: the one public key that it may present: ``ssh-ed25519 AAAA...``.
    """

    namespace: str
    pod: str
    uid: str
    address: str
    host_key: str


class LoadBalancer(NamedTuple):
    """Where the endpoint's Service can be reached from outside. ``host`` is an IP address or a name."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Found:
    """:param candidates: the pods, the newest first: a rollout takes the older ones away.
    :param load_balancers: of the Service, empty if it has none. Any of the candidates may answer there, so any of
        their host keys may be presented.
    """

    candidates: tuple[Candidate, ...]
    load_balancers: tuple[LoadBalancer, ...] = ()


async def find(session: Session, namespace: str = NAMESPACE) -> Found:
    """The endpoint that is installed in *namespace*.

    :raises EndpointError: there is none, none is ready (with the reason), or none says what its host key is.
    :raises ClusterError: the API cannot be reached, or does not allow looking.
    """
    api = Api(session)
    try:
        pods = await api.select("Pod", namespace, ENDPOINT_LABELS)
    except Forbidden as error:
        raise _may_not_look(error, namespace) from error
    ready = sorted(filter(is_ready, pods), key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)
    if not ready:
        raise await _nothing_ready(api, namespace, pods)
    found = await asyncio.gather(*(_candidate(api, namespace, pod) for pod in ready), return_exceptions=True)
    failures = [result for result in found if isinstance(result, BaseException)]
    for failure in failures:
        if not isinstance(failure, (EndpointError, ClusterError)):
            raise failure
        logger.debug("%s", failure)
    candidates = tuple(result for result in found if isinstance(result, Candidate))
    if not candidates:
        raise failures[0]
    return Found(candidates, await _load_balancers(api, namespace))


async def follow(session: Session, namespace: str, changed: Callable[[], None]) -> NoReturn:
    """Call *changed* whenever the endpoint's pods have changed, or may have, until cancelled."""
    await Api(session).follow("Pod", namespace, {"labelSelector": selector(ENDPOINT_LABELS)}, changed)


async def missing_rights(session: Session, namespace: str = NAMESPACE, scopes: Sequence[str] = ()) -> list[str]:
    """What the user is not allowed to do and tp2 has to, each in RBAC's words; empty if nothing is missing.

    What tp2 can do without (to list namespaces) is not asked for.

    :param namespace: where the endpoint is.
    :param scopes: the namespaces that are to be followed, empty for all of them.
    :raises ClusterError: the API cannot be reached.
    """
    catalog = [(right, scope) for scope in scopes or (None,) for right in CATALOG_RIGHTS]
    endpoint = [(right, namespace) for right in ENDPOINT_RIGHTS]
    denied = await Api(session).denied([*catalog, *endpoint])
    return [right.in_words(scope) for right, scope in denied]


async def _candidate(api: Api, namespace: str, pod: Object) -> Candidate:
    metadata, status = pod["metadata"], pod.get("status") or {}
    name = metadata["name"]
    try:
        log = await api.log(namespace, name, HOST_KEY_CONTAINER)
    except Refused as error:
        # A pod that has just gone is 404; one whose container never ran, 400.
        raise _no_host_key(namespace, name, error.why) from error
    key = read_host_key(log)
    if key is None:
        said = " ".join(log.split())[-120:]
        raise _no_host_key(namespace, name, f"its log ends with {said!r}" if said else "its log is empty")
    return Candidate(namespace, name, str(metadata.get("uid")), str(status.get("podIP") or ""), key)


_KEY: Final = re.compile(r"^(ssh-ed25519 AAAA[A-Za-z0-9+/]+={0,2})(?: .*)?$", re.MULTILINE)


def read_host_key(log: str) -> str | None:
    """The public key in the init container's log, without its comment. After a restart of the node there may be two
    of them: the last one is the pod's."""
    keys = _KEY.findall(log.replace("\r\n", "\n"))
    return keys[-1] if keys else None


async def _load_balancers(api: Api, namespace: str) -> tuple[LoadBalancer, ...]:
    try:
        service = await api.get("Service", namespace, ENDPOINT)
    except Forbidden as error:
        logger.debug("going on without a load balancer: %s", error)
        return ()
    ports = [port["port"] for port in ((service or {}).get("spec") or {}).get("ports") or () if _is_ssh(port)]
    ingress = (((service or {}).get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    hosts = [str(entry.get("ip") or entry.get("hostname") or "") for entry in ingress]
    return tuple(LoadBalancer(host, port) for host in hosts if host for port in ports)


def _is_ssh(port: Object) -> bool:
    return port.get("name") == SERVICE_PORT and isinstance(port.get("port"), int)


async def _nothing_ready(api: Api, namespace: str, pods: Sequence[Object]) -> EndpointError:
    deployment: Object | None = {}
    try:
        deployment = await api.get("Deployment", namespace, ENDPOINT)
    except Forbidden as error:
        logger.debug("cannot look at the Deployment: %s", error)
    if deployment is None and not pods:
        option = "" if namespace == NAMESPACE else f" --namespace {namespace}"
        return EndpointError(
            "no SSH endpoint is installed in this cluster",
            f"there is none in the namespace {namespace!r}",
            f"install it: `tp2 install{option}`; or name an endpoint of your own with --remote",
        )
    what = f"the SSH endpoint in the namespace {namespace!r} is not ready"
    waiting = next(iter(sorted(map(pod_problem, pods), key=lambda problem: not problem.stuck)), None)
    problem = (deployment_problem(deployment) if deployment else None) or waiting
    if problem is None:
        why = "it has no pod"
        return EndpointError(what, why, f"see `kubectl -n {namespace} describe deployment {ENDPOINT}`")
    return EndpointError(what, problem.why, problem.remedy)


def _no_host_key(namespace: str, pod: str, why: str) -> EndpointError:
    return EndpointError(
        f"the host key of the SSH endpoint {pod} is not known",
        f"the container {HOST_KEY_CONTAINER!r} should have printed it, but {why}",
        f"have it make a new one: `kubectl -n {namespace} delete pod {pod}`",
    )


def _may_not_look(error: Forbidden, namespace: str) -> ClusterError:
    refused = ClusterError(
        f"cannot look for the SSH endpoint in the namespace {namespace!r}",
        error.why,
        "ask an administrator to bind you to the Role that `tp2 install` makes there, or name one with --remote",
    )
    refused.lasting = True
    return refused
