"""The HTTP side of the sandbox's Kubernetes API: paths, verbs, tokens, rights, and misbehaviour on demand.

A :class:`KubeApi` can be started, stopped, killed and started again: its objects, versions, CA, token and port are
the same then. What tests make it do beside its work stands under "Misbehaviour".
"""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml
from aiohttp import web

from tp2.sandbox.kubeapi_portforward import PortForwards
from tp2.sandbox.kubeapi_resources import LOG, PODS, Object, Resource, StatusError, Target, target_of
from tp2.sandbox.kubeapi_rights import Rights
from tp2.sandbox.kubeapi_selectors import Selector, read_selector
from tp2.sandbox.kubeapi_store import Store
from tp2.sandbox.kubeapi_watch import Watch
from tp2.sandbox.tls import KeyPair, issue

logger = logging.getLogger(__name__)

_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_APPLY, _MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
_DEFAULT_WATCH = 1800.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refusal(NamedTuple):
    status: int
    retry_after: float | None
    plural: str


class KubeApi:
    """The server. Versions of *store* and the server's *authority* and *token* outlive :meth:`stop`, so a server
    that is started again is the same one, on the same port.

    :param host: the address to listen on, which its certificate is for.
    :param port: 0 for any that is free; the one it got is kept.
    :param certificate: the server's, if it should not be issued by *authority* for *host*.
    :param role: the Role and ClusterRole that the user is bound to, if they may not do everything.

    ``logs`` is what the pods say, by namespace and name, unless an annotation of theirs does; ``port_forwards`` are
    those into them.
    """

    def __init__(
        self,
        store: Store,
        authority: KeyPair,
        token: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        certificate: KeyPair | None = None,
        role: str = "",
    ) -> None:
        self.store = store
        self.token = token
        self.host = host
        self.port = port
        self.requests: list[str] = []
        self.logs: dict[tuple[str, str], str] = {}
        self._authority = authority
        self._certificate = certificate or issue(authority, "kube-apiserver", hosts=[host])
        self._runner: web.AppRunner | None = None
        self._watches: set[Watch] = set()
        self._refusals: list[_Refusal] = []
        self._rights = Rights(role, lambda resource: self.store.objects(resource, None))
        self.port_forwards = PortForwards(store, self._rights)
        self._silent = False
        self._watching = asyncio.Condition()

    @property
    def url(self) -> str:
        """The API's URL."""
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    def kubeconfig(self, namespace: str = "default") -> Object:
        """A kubeconfig for this server, with its CA and token in it. Its context is called ``sandbox``."""
        authority = base64.b64encode(self._authority.certificate).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "sandbox",
            "clusters": [{"name": "sandbox", "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": "sandbox", "user": {"token": self.token}}],
            "contexts": [
                {"name": "sandbox", "context": {"cluster": "sandbox", "user": "sandbox", "namespace": namespace}}
            ],
        }

    async def start(self) -> None:
        """Listen. :raises OSError: the address cannot be had."""
        app = web.Application(middlewares=[_errors, self._guarded], client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._dispatch)
        # A client that goes away ends its watch; nothing is logged: tests and demo read their own output.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=self._tls())
        try:
            await site.start()
        except OSError:
            await self.stop()
            raise
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End all watches properly, cut all port-forwards and stop listening, as a minute after a SIGTERM."""
        self.end_watches()
        self.port_forwards.cut()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def kill(self) -> None:
        """Cut all connections and stop listening, as on SIGKILL."""
        self.cut_watches()
        if self._runner is not None and self._runner.server is not None:
            for connection in self._runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        await self.stop()

    # Misbehaviour

    def end_watches(self) -> None:
        """End all open watches cleanly."""
        for watch in self._watches:
            watch.tell(b"", "end")

    def cut_watches(self, rest: bytes = b"") -> None:
        """Send *rest* (half a line) on all open watches and cut their connections."""
        for watch in self._watches:
            watch.tell(rest, "cut")

    def inject(self, data: bytes) -> None:
        """Send *data* on all open watches, as it is."""
        for watch in self._watches:
            watch.tell(data, "")

    def refuse(self, status: int, times: int = 1, *, retry_after: float | None = None, plural: str = "") -> None:
        """Answer the next *times* requests (for a resource, by its plural) with *status*.

        :param retry_after: seconds for the Retry-After header, None for no such header.
        """
        self._refusals.extend([_Refusal(status, retry_after, plural)] * times)

    def forbid(self, plural: str, *, verbs: tuple[str, ...] = (), except_in: tuple[str, ...] = ()) -> None:
        """Forbid a resource (``pods``) or subresource (``pods/portforward``), as RBAC does.

        :param verbs: what is forbidden, empty for everything.
        :param except_in: namespaces where it is allowed.
        """
        self._rights.forbid(plural, verbs=verbs, except_in=except_in)

    def allow(self, plural: str) -> None:
        """Take a :meth:`forbid` back."""
        self._rights.allow(plural)

    def fall_silent(self, silent: bool = True) -> None:
        """Accept connections and requests but answer none that comes from now on, or answer again."""
        self._silent = silent

    async def watched(self, count: int) -> None:
        """Wait until *count* watches are open."""
        async with self._watching:
            await self._watching.wait_for(lambda: len(self._watches) >= count)

    # Requests

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=self._authority.certificate.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        with TemporaryDirectory() as directory:
            # OpenSSL reads keys from files only.
            self._certificate.write(Path(directory), "server")
            context.load_cert_chain(Path(directory, "server.crt"), Path(directory, "server.key"))
        return context

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        if self._silent:
            await asyncio.Event().wait()
        for refusal in self._refusals:
            if refusal.plural in request.path.split("/") or not refusal.plural:
                self._refusals.remove(refusal)
                error = StatusError(refusal.status, "", "the sandbox was told to refuse this request")
                headers = {} if refusal.retry_after is None else {"Retry-After": f"{refusal.retry_after:g}"}
                return web.json_response(error.status, status=refusal.status, headers=headers)
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        if not certificate and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise StatusError(401, "Unauthorized", "Unauthorized")
        return await handler(request)

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok")
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.2+tp2-sandbox"})
        if (request.method, request.path) == ("POST", _ACCESS_REVIEWS):
            return web.json_response(self._rights.review(await _parsed(request)), status=201)
        target = target_of(request.path)
        if target.subresource:
            return await self._subresource(request, target)
        namespace = target.namespace or ""
        match request.method, bool(target.name):
            case "GET", False if request.query.get("watch") in ("1", "true"):
                self._rights.check(target, "watch")
                return await self._watch(request, target)
            case "GET", False:
                self._rights.check(target, "list")
                return web.json_response(self._list(request, target))
            case "GET", True:
                self._rights.check(target, "get")
                return web.json_response(self.store.get(target.resource, namespace, target.name))
            case "POST", False if target.namespace is not None or not target.resource.namespaced:
                self._rights.check(target, "create")
                obj = await _body(request, target.resource)
                return web.json_response(self.store.create(target.resource, namespace, obj), status=201)
            case "PUT", True:
                self._rights.check(target, "update")
                obj = await _body(request, target.resource)
                return web.json_response(self.store.replace(target.resource, namespace, target.name, obj))
            case "PATCH", True:
                return await self._patch(request, target)
            case "DELETE", True:
                self._rights.check(target, "delete")
                return web.json_response(self.store.delete(target.resource, namespace, target.name))
        raise _not_allowed()

    async def _subresource(self, request: web.Request, target: Target) -> web.StreamResponse:
        match request.method, target.resource.plural, target.subresource:
            case "GET", "pods", "log":
                self._rights.check(target, "get")
                pod = self.store.get(PODS, target.namespace or "", target.name)
                said = (pod["metadata"].get("annotations") or {}).get(LOG, "")
                return web.Response(text=self.logs.get((target.namespace or "", target.name), said))
            case _, "pods", "portforward":
                return await self.port_forwards.serve(request, target)
        raise _not_allowed()

    async def _patch(self, request: web.Request, target: Target) -> web.Response:
        if request.content_type not in (_APPLY, _MERGE):
            message = (
                f"the body of the request was in an unknown format - accepted media types include: {_MERGE}, {_APPLY}"
            )
            raise StatusError(415, "UnsupportedMediaType", message)
        self._rights.check(target, "patch")
        namespace = target.namespace or ""
        patch = await _body(request, target.resource)
        if request.content_type == _APPLY:
            if not request.query.get("fieldManager"):
                message = (
                    'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
                )
                raise StatusError(422, "Invalid", message)
            if not self.store.has(target.resource, namespace, target.name):
                self._rights.check(target, "create")
                return web.json_response(self.store.create(target.resource, namespace, patch), status=201)
        return web.json_response(self.store.merge(target.resource, namespace, target.name, patch))

    def _list(self, request: web.Request, target: Target) -> Object:
        version = _number(request, "resourceVersion", 400)
        limit = _number(request, "limit", 400)
        exact = request.query.get("resourceVersionMatch") == "Exact" or (
            limit and "resourceVersionMatch" not in request.query
        )
        if version > self.store.version:
            raise StatusError(
                504, "Timeout", f"Timeout: Too large resource version: {version}, current: {self.store.version}"
            )
        if version and exact and version != self.store.version:
            raise StatusError(410, "Expired", "The resourceVersion for the provided list is too old.")
        from_cache = request.query.get("resourceVersion") == "0"
        token = request.query.get("continue", "")
        return self.store.page(target.resource, target.namespace, 0 if from_cache else limit, token, _selector(request))

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        version = _number(request, "resourceVersion", 500)
        seconds = _number(request, "timeoutSeconds", 400) or _DEFAULT_WATCH
        bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        watch = Watch(
            self.store,
            target.resource,
            target.namespace,
            version,
            seconds,
            selector=_selector(request),
            bookmarks=bookmarks,
        )
        cut = False
        try:
            await response.prepare(request)
            self._watches.add(watch)
            self.store.listeners.add(watch.wake)
            async with self._watching:
                self._watching.notify_all()
            cut = await watch.run(response)
        except ConnectionResetError:
            logger.debug("the client of a watch of %s went away", target.resource.plural)
        finally:
            self.store.listeners.discard(watch.wake)
            self._watches.discard(watch)
        if cut and request.transport is not None:
            request.transport.abort()
        return response


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except StatusError as error:
        headers = {"Retry-After": "1"} if error.code == 504 else {}
        return web.json_response(error.status, status=error.code, headers=headers)


async def _parsed(request: web.Request) -> Any:
    try:
        # JSON is YAML, but is read faster by itself.
        return yaml.safe_load(await request.text()) if request.content_type.endswith("yaml") else await request.json()
    except (ValueError, yaml.YAMLError) as error:
        raise StatusError(400, "BadRequest", f"the object provided is unrecognized: {error}") from error


async def _body(request: web.Request, resource: Resource) -> Object:
    obj = await _parsed(request)
    if not isinstance(obj, dict) or obj.get("kind", resource.kind) != resource.kind:
        message = f"the object provided cannot be handled as a {resource.kind}"
        raise StatusError(400, "BadRequest", message)
    return obj


def _selector(request: web.Request) -> Selector:
    return read_selector(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))


def _not_allowed() -> StatusError:
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, details={})


def _number(request: web.Request, parameter: str, error_code: int) -> int:
    text = request.query.get(parameter) or "0"
    if text.isascii() and text.isdigit():
        return int(text)
    # A malformed resourceVersion is 400 for a LIST and, without a reason, 500 for a WATCH.
    reason = "BadRequest" if error_code == 400 else ""
    raise StatusError(error_code, reason, f'{parameter}: Invalid value: "{text}"')
