"""The Kubernetes side: the kubeconfig, who logs in by it, the API, its clock, and every right that tp2 needs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from tp2.cluster import kubeconfig
from tp2.cluster.api import Api
from tp2.cluster.failure import ApiError, NotKubernetes, explain
from tp2.cluster.kubeconfig import Access
from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS, NAMESPACE_RIGHTS, Right
from tp2.cluster.session import Session
from tp2.cluster.stream import Resource
from tp2.cluster.watch import Cluster
from tp2.diagnosis.model import Finding, failed, not_applicable, ok, warning
from tp2.errors import ClusterError
from tp2.settings import Settings

#: Seconds of difference between two clocks that are noticed, and that break logins.
NOTICED: Final = 60.0
BREAKS: Final = 300.0

#: Seconds that a login may take: a plugin that asks somebody takes longer, and then there is somebody who knows.
LOGIN: Final = 6.0

#: Seconds that the API has for one answer.
ANSWER: Final = 4.0
_TIMEOUT: Final = aiohttp.ClientTimeout(total=ANSWER, sock_connect=ANSWER)

#: How many Services are looked at for their addresses.
_MOST: Final = "1000"

#: What tp2 can do without, and what it then lacks.
_DISPENSABLE: Final = {
    ("watch", "pods"): "a new endpoint is then noticed late",
    ("get", "services"): "the endpoint's load balancer is then not found",
    ("get", "deployments"): "why the endpoint has no pod is then not known",
}


class Kubernetes:
    """The checks. What one finds out the next ones use.

    :param now: this machine's clock, in Unix time.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._now = now
        self._access: Access | None = None
        self._cluster: Cluster | None = None
        #: The addresses of the Services, once they are known.
        self.services: list[str] = []
        #: An address and port of a Service, to ask the endpoint for.
        self.destination: tuple[str, int] | None = None

    @property
    def access(self) -> Access:
        """The way to the cluster."""
        assert self._access is not None
        return self._access

    @property
    def cluster(self) -> Cluster:
        """A cluster whose session is logged in, and which follows nothing."""
        assert self._cluster is not None
        return self._cluster

    @property
    def session(self) -> Session:
        """The login."""
        return self.cluster.session

    @contextlib.asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Close what was opened on leaving."""
        try:
            yield
        finally:
            if self._cluster is not None:
                await self._cluster.close()

    async def kubeconfig(self) -> Finding:
        """Whether there is one, and which cluster it means."""
        with _heard("tp2.cluster.kubeconfig"):
            self._access = access = kubeconfig.load(self._settings.kubeconfig, self._settings.context)
        self._cluster = Cluster(access, namespaces=self._settings.namespaces)
        files = [str(path) for path in kubeconfig.files(self._settings.kubeconfig)]
        if access.trusts_anybody:
            return warning(
                f"whoever is on the way to {access.server} can read and change everything, credentials included",
                f"the kubeconfig says insecure-skip-tls-verify for context {access.context!r}",
                "give it the cluster's certificate-authority-data instead",
            )
        return ok(f"context {access.context} of {', '.join(files)}: {access.server}")

    async def plugin(self) -> Finding:
        """Whether the credential plugin, if there is one, can be found."""
        plugin = self.access.plugin
        if plugin is None:
            return not_applicable("credential plugin", "this context has none")
        command = str(plugin.get("command") or "")
        if shutil.which(command) is None:
            where = _why_not(command)
            hint = " ".join(str(plugin.get("installHint") or "").split())
            return failed(
                f"the credential plugin {command or '(no name)'} cannot be run",
                f"context {self.access.context!r} logs in by it, and {where}",
                hint
                or f"install it, or put it on PATH: `kubectl --context {self.access.context} get services` needs it",
            )
        return ok(f"{command} is there")

    async def login(self) -> Finding:
        """Whether there are credentials."""
        with _heard("tp2.cluster.plugin") as words:
            began = time.monotonic()
            try:
                async with asyncio.timeout(LOGIN):
                    await self.session.open()
            except TimeoutError:
                plugin = self.access.plugin
                who = f"the credential plugin {plugin.get('command')}" if plugin else "the login"
                said = f"; so far it said: {' '.join(words)}" if words else ", and has said nothing"
                return failed(
                    f"{who} does not end",
                    f"it was still running after {LOGIN:g} s{said}",
                    f"run `kubectl --context {self.access.context} get services` in a terminal: "
                    "it may ask for a login, or wait for a network",
                )
        return ok(f"there are credentials ({time.monotonic() - began:.1f} s)")

    async def clock(self) -> Finding:
        """Whether this machine and the API server have the same time.

        Asked without credentials and without checking who answers: a clock that is wrong makes certificates look as
        if they had expired, and the answer is only compared.
        """
        if self.access.proxy:
            return not_applicable("clock", "the API is behind a proxy")
        parts = urlsplit(self.access.server)
        theirs: float | None
        try:
            async with asyncio.timeout(ANSWER):
                theirs = await _date(parts.hostname or "", parts.port or 443, tls=parts.scheme == "https")
        except (OSError, ValueError, asyncio.IncompleteReadError):
            theirs = None
        if theirs is None:
            return not_applicable("clock", "the API server does not tell its time")
        ahead = self._now() - theirs
        words = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the API server's"
        remedy = "set this machine's clock: timedatectl set-ntp true, or after sleep in a VM, hwclock --hctosys"
        if abs(ahead) > BREAKS:
            return failed(
                "this machine's clock is wrong", f"it is {words}, which certificates and tokens do not bear", remedy
            )
        if abs(ahead) > NOTICED:
            return warning("this machine's clock is a little wrong", f"it is {words}", remedy)
        return ok("the API server has the same time")

    async def api(self) -> Finding:
        """Whether the API answers, is trusted, and takes the credentials."""
        began = time.monotonic()
        try:
            async with await self.session.get("/version", {}, _TIMEOUT) as response:
                version = (await response.json()).get("gitVersion")
        except ApiError as error:
            if error.status != 403:
                raise self._explained(error) from None
            version = None
        except (NotKubernetes, OSError, aiohttp.ClientError, ValueError) as error:
            raise self._explained(error) from None
        except AttributeError:
            raise self._explained(NotKubernetes("the server's version is no object")) from None
        return ok(f"answers within {(time.monotonic() - began) * 1000:.0f} ms{f', {version}' if version else ''}")

    async def rights(self) -> Finding | Sequence[Finding]:
        """Whether the user may do all that tp2 has to do for them."""
        settings, api = self._settings, Api(self.session)
        scopes: list[str | None] = list(dict.fromkeys(settings.namespaces)) or [None]
        endpoint = [] if settings.remote else [(right, settings.endpoint_namespace) for right in ENDPOINT_RIGHTS]
        catalog = [(right, scope) for scope in scopes for right in CATALOG_RIGHTS]
        optional = [(right, None) for right in NAMESPACE_RIGHTS]
        denied = await api.denied([*catalog, *endpoint, *optional])
        lacking = [entry for entry in denied if entry not in optional]
        found: list[Finding] = []
        if scopes == [None] and any(entry in catalog for entry in lacking):
            own = self.access.namespace
            if not await api.denied([(right, own) for right in CATALOG_RIGHTS]):
                found.append(_only_in(own, [entry for entry in lacking if entry in catalog]))
                lacking = [entry for entry in lacking if entry not in catalog]
        found += [_lacks(right, scope) for right, scope in lacking]
        asked = len(catalog) + len(endpoint)
        without = (
            "; namespaces may not be listed, which it does without" if len(denied) > len(lacking) and not found else ""
        )
        return found or ok(f"all {asked} that tp2 needs{without}")

    async def services_there(self) -> Finding:
        """Which addresses the Services have."""
        namespaces: Sequence[str | None] = self._settings.namespaces or (None,)
        found: list[dict[str, Any]] = []
        for namespace in namespaces:
            path = Resource("Service", "/api/v1", "services").path(namespace)
            try:
                async with await self.session.get(path, {"limit": _MOST}, _TIMEOUT) as response:
                    found += (await response.json()).get("items") or []
            except ApiError as error:
                if error.status == 403:
                    return not_applicable("services", "they may not be listed in all namespaces")
                raise self._explained(error) from None
            except (OSError, aiohttp.ClientError, ValueError, AttributeError) as error:
                raise self._explained(error) from None
        for service in found:
            spec = service.get("spec") or {}
            addresses = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip and ip != "None"]
            self.services += addresses
            ports = [p.get("port") for p in spec.get("ports") or () if p.get("protocol", "TCP") == "TCP"]
            if addresses and ports and self.destination is None:
                self.destination = (addresses[0], int(ports[0]))
        return ok(f"{len(found)} services with {len(self.services)} addresses")

    def _explained(self, error: Exception) -> ClusterError:
        return explain(error, self.access, "services", None).error


def _lacks(right: Right, scope: str | None) -> Finding:
    words = right.in_words(scope)
    without = _DISPENSABLE.get((right.verb, right.resource))
    remedy = f"ask an administrator for the right to {words}; `tp2 install --print` has the roles"
    if without:
        return warning(f"the user may not {words}", f"tp2 needs it for this: {right.purpose}; {without}", remedy)
    if scope is None:
        remedy += ", or name the namespaces that you may read with --namespace"
    return failed(f"the user may not {words}", f"tp2 needs it for this: {right.purpose}", remedy)


def _only_in(namespace: str, lacking: Sequence[tuple[Right, str | None]]) -> Finding:
    words = ", ".join(right.in_words(scope) for right, scope in lacking)
    return warning(
        f"only the namespace {namespace!r} will be known",
        f"the user may not {words}",
        "name the namespaces that you may read with --namespace, or ask an administrator for these rights",
    )


def _why_not(command: str) -> str:
    if "/" not in command:
        return "it is not on PATH"
    return "it may not be executed" if Path(command).exists() else "it is not there"


async def _date(host: str, port: int, *, tls: bool) -> float | None:
    """Return the time that an HTTP server has, as Unix time (RFC 9110 section 6.6.1); None if it does not say."""
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        authority = f"[{host}]" if ":" in host else host
        writer.write(f"GET /version HTTP/1.1\r\nHost: {authority}:{port}\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            return parsedate_to_datetime(value.strip()).timestamp()
    return None


@contextlib.contextmanager
def _heard(name: str) -> Iterator[deque[str]]:
    """Give the end of what is logged under a name, which does not go anywhere else meanwhile."""
    words: deque[str] = deque(maxlen=5)

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            words.append(record.getMessage())

    logger, handler = logging.getLogger(name), Listening()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield words
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
