"""Requests about single objects: what installing and finding the endpoint ask of the Kubernetes API.

Where :mod:`tp2.cluster.stream` follows whole resources for as long as tp2 runs, this asks once and answers or raises.
Every failure comes out as a :class:`~tp2.errors.ClusterError` in words; the two that callers decide on have classes of
their own (:class:`Forbidden`, :class:`Refused`). Expired credentials are renewed on the way (:class:`Session`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NoReturn, TypeVar
from urllib.parse import quote

import aiohttp

from tp2.backoff import Backoff
from tp2.cluster.failure import ApiError, NotKubernetes, explain
from tp2.cluster.manifest import Object, selector
from tp2.cluster.rights import Right, scope_in_words
from tp2.cluster.session import Session
from tp2.cluster.stream import Resource
from tp2.errors import ClusterError

logger = logging.getLogger(__name__)

_CORE, _RBAC = "/api/v1", "/apis/rbac.authorization.k8s.io/v1"

RESOURCES: Final = {
    "Namespace": Resource("Namespace", _CORE, "namespaces"),
    "ServiceAccount": Resource("ServiceAccount", _CORE, "serviceaccounts"),
    "ConfigMap": Resource("ConfigMap", _CORE, "configmaps"),
    "Pod": Resource("Pod", _CORE, "pods"),
    "Service": Resource("Service", _CORE, "services"),
    "Deployment": Resource("Deployment", "/apis/apps/v1", "deployments"),
    "ClusterRole": Resource("ClusterRole", _RBAC, "clusterroles"),
    "Role": Resource("Role", _RBAC, "roles"),
}

FIELD_MANAGER: Final = "tp2"
LOG_LIMIT: Final = 64 * 1024
"""How much of a container's log is read, in bytes."""

_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=10)
_WATCH_SECONDS: Final = 300
_TRANSPORT: Final = (NotKubernetes, OSError, aiohttp.ClientError, ValueError)

_Answer = TypeVar("_Answer")


class Forbidden(ClusterError):
    """403: RBAC, or an admission check, does not allow it. ``why`` is the API server's own message."""


class Refused(ClusterError):
    """The API answered, and the answer is an error; ``status`` is the HTTP status."""

    def __init__(self, what: str, why: str, remedy: str, status: int) -> None:
        super().__init__(what, why, remedy)
        self.status = status


def group_of(resource: Resource) -> str:
    """The API group as RBAC writes it, ``""`` for core/v1."""
    return resource.prefix.split("/")[2] if resource.prefix.startswith("/apis/") else ""


class Api:
    """One-off requests over an open *session*.

    :raises ClusterError: every method does, when the API cannot be reached or refuses.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """An object, or None if there is none of that name."""
        try:
            return await self._json("GET", "get", RESOURCES[kind], namespace, name)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    async def select(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """All objects of a kind in *namespace* that have *labels*."""
        query = {"labelSelector": selector(dict(labels))}
        answer = await self._json("GET", "list", RESOURCES[kind], namespace, query=query)
        return answer.get("items") or []

    async def apply(self, obj: Object) -> Object:
        """Make it so, by server-side apply: what others set in fields that *obj* does not name stays."""
        metadata = obj["metadata"]
        return await self._json(
            "PATCH",
            "patch",
            RESOURCES[obj["kind"]],
            metadata.get("namespace"),
            metadata["name"],
            query={"fieldManager": FIELD_MANAGER, "force": "true"},
            body=obj,
            content_type="application/apply-patch+yaml",
        )

    async def patch(self, kind: str, namespace: str, name: str, change: Object) -> Object:
        """Change an object by a JSON merge patch (RFC 7396)."""
        return await self._json(
            "PATCH", "patch", RESOURCES[kind], namespace, name, body=change, content_type="application/merge-patch+json"
        )

    async def delete(self, obj: Object) -> None:
        """Delete this very object, what belongs to it first; it is gone when :meth:`get` says so."""
        metadata = obj["metadata"]
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": metadata["uid"]}}
        resource, place = RESOURCES[obj["kind"]], metadata.get("namespace")
        try:
            await self._json("DELETE", "delete", resource, place, metadata["name"], body=options)
        except Refused as error:
            # Gone already, or replaced by somebody's new one.
            if error.status not in (404, 409):
                raise

    async def log(self, namespace: str, pod: str, container: str) -> str:
        """The end of what a container of a pod has printed."""
        resource = Resource("Pod", _CORE, "pods/log")
        path = f"{RESOURCES['Pod'].path(namespace)}/{quote(pod, safe='')}/log"
        query = {"container": container, "tailLines": "100", "limitBytes": str(LOG_LIMIT)}
        body = await self._ask("GET", "get", resource, namespace, pod, path, query, accept="application/json, */*")
        return body.decode("utf-8", "replace")

    async def denied(self, rights: Iterable[tuple[Right, str | None]]) -> list[tuple[Right, str | None]]:
        """Those *rights*, each in a namespace or at the cluster scope (None), that the user lacks."""
        asked = list(rights)
        try:
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(self._allowed(right, namespace)) for right, namespace in asked]
        except ExceptionGroup as failures:
            # They fail together and for the same reason: the first one tells it.
            raise failures.exceptions[0] from None
        return [right for right, answer in zip(asked, answers, strict=True) if not answer.result()]

    async def follow(
        self, kind: str, namespace: str | None, query: Mapping[str, str], changed: Callable[[], None]
    ) -> NoReturn:
        """Call *changed* whenever an object of the kind has changed, and whenever one may have, until cancelled.

        Without the right to watch, or while the API is away, that is now and then.
        """
        backoff = Backoff(first=0.5, ceiling=15.0)
        clock = asyncio.get_running_loop().time
        everything = {**query, "watch": "1", "timeoutSeconds": str(_WATCH_SECONDS)}
        timeout = aiohttp.ClientTimeout(total=_WATCH_SECONDS + 15, sock_connect=10)
        while True:
            login = self._session.login
            try:
                path = RESOURCES[kind].path(namespace)
                async with await self._session.request("GET", path, everything, timeout) as response:
                    async for _ in response.content.iter_any():
                        backoff.succeeded(clock())
                        changed()
            except ApiError as error:
                logger.debug("cannot follow %s: %s", RESOURCES[kind].plural, error.message)
                if error.status == 401:
                    await self._log_in_again(login)
            except _TRANSPORT as error:
                logger.debug("stopped following %s: %s", RESOURCES[kind].plural, error)
            await asyncio.sleep(backoff.failed(clock()))
            changed()

    async def until(
        self,
        check: Callable[[], Awaitable[_Answer | None]],
        watched: Iterable[tuple[str, str | None, Mapping[str, str]]],
    ) -> _Answer:
        """The first answer of *check* that is not None. It is asked now and after every change of what is *watched*:
        kinds, each with a namespace and a query with selectors."""
        news = asyncio.Event()
        followers = [asyncio.create_task(self.follow(*target, news.set)) for target in watched]
        try:
            while (answer := await check()) is None:
                await news.wait()
                news.clear()
            return answer
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)

    async def _log_in_again(self, login: int) -> None:
        try:
            await self._session.renew(login)
        except ClusterError as error:
            logger.debug("%s", error)

    async def _allowed(self, right: Right, namespace: str | None) -> bool:
        plural, _, subresource = right.resource.partition("/")
        attributes = {"verb": right.verb, "group": right.group, "resource": plural}
        if subresource:
            attributes["subresource"] = subresource
        if namespace is not None:
            attributes["namespace"] = namespace
        resource = Resource("SelfSubjectAccessReview", "/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        answer = await self._json("POST", "create", resource, None, body=review, path=_REVIEWS)
        return (answer.get("status") or {}).get("allowed") is True

    async def _json(
        self,
        method: str,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        path: str = "",
    ) -> Object:
        path = path or resource.path(namespace) + (f"/{quote(name, safe='')}" if name else "")
        text = await self._ask(
            method, verb, resource, namespace, name, path, query or {}, body=body, content_type=content_type
        )
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return answer
        strange = NotKubernetes(f"the server's answer to {method} {path} is not a Kubernetes object")
        raise explain(strange, self._session.access, resource.plural, namespace).error

    async def _ask(
        self,
        method: str,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str,
        path: str,
        query: Mapping[str, str],
        *,
        body: Object | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes:
        try:
            return await self._session.ask(
                method, path, query, _TIMEOUT, body=body, content_type=content_type, accept=accept
            )
        except ApiError as error:
            if error.status in (0, 401) or '"system:anonymous"' in error.message:
                raise explain(error, self._session.access, resource.plural, namespace).error from error
            raise _in_words(error, verb, resource, namespace, name) from error
        except _TRANSPORT as error:
            raise explain(error, self._session.access, resource.plural, namespace).error from error


def _in_words(error: ApiError, verb: str, resource: Resource, namespace: str | None, name: str) -> ClusterError:
    right = Right(verb, resource.plural, group_of(resource)).in_words(namespace)
    if error.status == 403:
        return Forbidden(f"not allowed to {right}", error.message, f"ask an administrator for the right to {right}")
    what = f"cannot {verb} {resource.plural} {name or scope_in_words(namespace)}".rstrip()
    why = f"{error.status} {error.message}"
    if error.status == 429 or error.status >= 500:
        return Refused(what, why, "wait for the API server to recover, then try again", error.status)
    return Refused(what, why, "check that the server is the Kubernetes API (1.22 or later)", error.status)
