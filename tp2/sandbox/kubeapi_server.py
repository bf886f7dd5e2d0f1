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
from typing import NamedTuple

from aiohttp import web

from tp2.sandbox.kubeapi_store import RESOURCES, Object, Resource, StatusError, Store
from tp2.sandbox.kubeapi_watch import Watch
from tp2.sandbox.tls import KeyPair, issue

logger = logging.getLogger(__name__)

USER = "system:serviceaccount:shop:sandbox"

_DEFAULT_WATCH = 1800.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Target(NamedTuple):
    """What a path is about. ``namespace`` is None for all of them, ``name`` is empty for a collection."""

    resource: Resource
    namespace: str | None
    name: str


class _Refusal(NamedTuple):
    status: int
    retry_after: float | None
    plural: str


def target_of(path: str) -> Target:
    """Read a path of the API.

    :raises StatusError: 404, there is no such resource.
    """
    for resource in RESOURCES:
        prefix = f"/apis/{resource.group}/v1/" if resource.group else "/api/v1/"
        words = path.removeprefix(prefix).split("/") if path.startswith(prefix) else []
        match words:
            case [plural] if plural == resource.plural:
                return Target(resource, None, "")
            case [plural, name] if plural == resource.plural and not resource.namespaced:
                return Target(resource, None, name)
            case ["namespaces", namespace, plural] if plural == resource.plural and resource.namespaced:
                return Target(resource, namespace, "")
            case ["namespaces", namespace, plural, name] if plural == resource.plural and resource.namespaced:
                return Target(resource, namespace, name)
    raise StatusError(404, "NotFound", "the server could not find the requested resource", details={})


class KubeApi:
    """The server. Versions of *store* and the server's *authority* and *token* outlive :meth:`stop`, so a server
    that is started again is the same one, on the same port.

    :param host: the address to listen on, which its certificate is for.
    :param port: 0 for any that is free; the one it got is kept.
    :param certificate: the server's, if it should not be issued by *authority* for *host*.
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
    ) -> None:
        self.store = store
        self.token = token
        self.host = host
        self.port = port
        self.requests: list[str] = []
        self._authority = authority
        self._certificate = certificate or issue(authority, "kube-apiserver", hosts=[host])
        self._runner: web.AppRunner | None = None
        self._watches: set[Watch] = set()
        self._refusals: list[_Refusal] = []
        self._forbidden: dict[str, frozenset[str]] = {}
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
        """End all watches properly and stop listening, as on SIGTERM."""
        self.end_watches()
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

    def forbid(self, plural: str, *, except_in: tuple[str, ...] = ()) -> None:
        """Forbid a resource (its plural), as RBAC does, everywhere or except in some namespaces."""
        self._forbidden[plural] = frozenset(except_in)

    def allow(self, plural: str) -> None:
        """Take a :meth:`forbid` back."""
        self._forbidden.pop(plural, None)

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

    def _authorize(self, target: Target, verb: str) -> None:
        allowed = self._forbidden.get(target.resource.plural)
        if allowed is None or target.namespace in allowed:
            return
        resource = target.resource
        scope = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
        raise StatusError(
            403,
            "Forbidden",
            f'{resource.plural} is forbidden: User "{USER}" cannot {verb} resource "{resource.plural}" '
            f'in API group "{resource.group}" {scope}',
            details={"kind": resource.plural},
        )

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/readyz", "/livez", "/healthz"):
            return web.Response(text="ok")
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.2+tp2-sandbox"})
        target = target_of(request.path)
        namespace = target.namespace or ""
        watching = request.query.get("watch") in ("1", "true")
        match request.method, bool(target.name):
            case "GET", False if watching:
                self._authorize(target, "watch")
                return await self._watch(request, target)
            case "GET", False:
                self._authorize(target, "list")
                return web.json_response(self._list(request, target))
            case "GET", True:
                self._authorize(target, "get")
                return web.json_response(self.store.get(target.resource, namespace, target.name))
            case "POST", False if target.namespace is not None or not target.resource.namespaced:
                self._authorize(target, "create")
                obj = await _body(request, target.resource)
                return web.json_response(self.store.create(target.resource, namespace, obj), status=201)
            case "PUT", True:
                self._authorize(target, "update")
                obj = await _body(request, target.resource)
                return web.json_response(self.store.replace(target.resource, namespace, target.name, obj))
            case "DELETE", True:
                self._authorize(target, "delete")
                return web.json_response(self.store.delete(target.resource, namespace, target.name))
        message = "the server does not allow this method on the requested resource"
        raise StatusError(405, "MethodNotAllowed", message, details={})

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
        return self.store.page(target.resource, target.namespace, 0 if from_cache else limit, token)

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        version = _number(request, "resourceVersion", 500)
        seconds = _number(request, "timeoutSeconds", 400) or _DEFAULT_WATCH
        bookmarks = request.query.get("allowWatchBookmarks") in ("1", "true")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        watch = Watch(self.store, target.resource, target.namespace, version, seconds, bookmarks=bookmarks)
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


async def _body(request: web.Request, resource: Resource) -> Object:
    try:
        obj = await request.json()
    except ValueError as error:
        message = f"the object provided is unrecognized (must be of type {resource.kind}): {error}"
        raise StatusError(400, "BadRequest", message) from error
    if not isinstance(obj, dict) or obj.get("kind", resource.kind) != resource.kind:
        message = f"the object provided cannot be handled as a {resource.kind}"
        raise StatusError(400, "BadRequest", message)
    return obj


def _number(request: web.Request, parameter: str, error_code: int) -> int:
    text = request.query.get(parameter) or "0"
    if text.isascii() and text.isdigit():
        return int(text)
    # A malformed resourceVersion is 400 for a LIST and, without a reason, 500 for a WATCH.
    reason = "BadRequest" if error_code == 400 else ""
    raise StatusError(error_code, reason, f'{parameter}: Invalid value: "{text}"')
