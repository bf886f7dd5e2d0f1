"""Why the Kubernetes API cannot be used, in words for people: one place that knows every way it fails.

Pure. Exceptions of ssl, asyncio and aiohttp and the API's own Status objects come in, a :class:`Failure` goes out.
It says, besides what, why and remedy, how long it is worth trying again while tp2 starts: not at all if only a
person can change it, about a second for what a restarting server shows, until the start times out for the rest.
Once tp2 is up, everything is tried again for ever.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from tp2.cluster.http import SocksFailed
from tp2.cluster.kubeconfig import Access
from tp2.cluster.lines import LineTooLong
from tp2.cluster.proxies import without_password
from tp2.errors import ClusterError

NOT_AT_ALL, A_MOMENT, ALWAYS = 0.0, 1.0, math.inf

_UNREACHABLE = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
_Error = TypeVar("_Error", bound=BaseException)


@dataclass(frozen=True, slots=True)
class Failure:
    """:param patience: seconds for which a start should go on trying after the first failure like this."""

    error: ClusterError
    patience: float


class ApiError(Exception):
    """The API answered with an error, as an HTTP status or as an ERROR event in a watch.

    :param message: the Status object's message, or what was sent in its place.
    :param retry_after: seconds that the server asks to be left alone, 0 if it did not say.
    """

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @classmethod
    def from_status(cls, obj: Any, *, status: int = 0, retry_after: float = 0.0) -> ApiError:
        """From a Status object (meta/v1), or from whatever stands in its place."""
        fields = obj if isinstance(obj, dict) else {}
        code, message = fields.get("code"), fields.get("message")
        return cls(code if type(code) is int else status, str(message or obj), retry_after)


class MayNotList(ClusterError):
    """403 for a list: RBAC does not allow it. ``why`` is the API server's own message."""


class NotKubernetes(Exception):
    """The server's answer is not one that a Kubernetes API gives."""


def explain(error: Exception, access: Access, plural: str, namespace: str | None) -> Failure:
    """What *error* means to somebody who wanted to list and watch *plural* (in *namespace*, or everywhere)."""
    if isinstance(error, ClusterError):
        return Failure(error, NOT_AT_ALL)
    if isinstance(error, ApiError):
        return _api(error, access, plural, namespace)
    if verification := _within(error, ssl.SSLCertVerificationError):
        return Failure(_certificate(verification, access), NOT_AT_ALL)
    return _transport(error, access)


def _api(error: ApiError, access: Access, plural: str, namespace: str | None) -> Failure:
    where = f"in the namespace {namespace!r}" if namespace else "in all namespaces"
    if error.status == 401:
        return Failure(
            ClusterError(
                f"the Kubernetes API at {access.server} does not accept the credentials of context {access.context!r}",
                f"401 {error.message}",
                "log in again: the token or client certificate has expired, or belongs to another cluster",
            ),
            NOT_AT_ALL,
        )
    if error.status == 403:
        remedy = f"ask for the right to list and watch services and endpointslices {where}"
        if namespace is None:
            remedy += ", or name the namespaces that you may read with --namespace"
        if '"system:anonymous"' in error.message:
            # Where anonymous access is on, as it is by default, no credentials are not 401 but nobody's rights.
            remedy = f"log in: the user of context {access.context!r} has no credentials in the kubeconfig"
            return Failure(ClusterError(f"{plural} {where} may not be listed", error.message, remedy), NOT_AT_ALL)
        return Failure(MayNotList(f"{plural} {where} may not be listed", error.message, remedy), NOT_AT_ALL)
    what = f"the Kubernetes API at {access.server} cannot list {plural} {where}"
    why = f"{error.status} {error.message}"
    if error.status in (400, 404, 405, 406):
        remedy = f"check that the server of context {access.context!r} is the Kubernetes API (1.21 or later)"
        return Failure(ClusterError(what, why, remedy), NOT_AT_ALL)
    return Failure(ClusterError(what, why, "wait for the API server to recover; tp2 keeps trying"), ALWAYS)


def slow_login(access: Access) -> ClusterError:
    """New credentials are waited for: the plugin that should give them is still running."""
    return ClusterError(
        f"there are no new credentials for context {access.context!r} yet",
        "the credential plugin of the kubeconfig is still running",
        f"see what `kubectl --context {access.context} get services` waits for: it may ask for a login",
    )


# OpenSSL's X509_V_ERR_*: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_CERTIFICATES = {
    9: "check this machine's clock",
    10: "check this machine's clock; if it is right, the server's certificate has to be renewed",
    18: "put the server's certificate, or its CA's, into certificate-authority-data of the kubeconfig",
    62: "use a name of the server that its certificate has, or set tls-server-name in the kubeconfig to one",
    64: "use an address of the server that its certificate has, or set tls-server-name in the kubeconfig to a name",
}
_WRONG_CA = (
    "fetch a new kubeconfig: its certificate authority did not sign this server's certificate "
    "(another or re-created cluster, or a proxy that opens TLS)"
)


def _certificate(error: ssl.SSLCertVerificationError, access: Access) -> ClusterError:
    return ClusterError(
        f"the Kubernetes API at {access.server} cannot be trusted",
        str(getattr(error, "verify_message", "") or error).rstrip("."),
        _CERTIFICATES.get(getattr(error, "verify_code", 0), _WRONG_CA),
    )


def _transport(error: Exception, access: Access) -> Failure:
    what = f"cannot reach the Kubernetes API at {access.server}"
    check = f"check that the cluster runs and that {access.server} can be reached from here (VPN, proxy, firewall)"
    # A time-out is an OSError too, so it goes first.
    if isinstance(error, TimeoutError):
        return Failure(ClusterError(what, "it does not answer", check), ALWAYS)
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError, SocksFailed)):
        return _proxy(error, access, what)
    if unresolved := _within(error, socket.gaierror):
        host = getattr(error, "host", "") or "its name"
        remedy = "check the server's name in the kubeconfig, and this machine's DNS (is a VPN needed?)"
        return Failure(ClusterError(what, f"{host} cannot be resolved: {_text(unresolved)}", remedy), A_MOMENT)
    if tls := _within(error, ssl.SSLError):
        plain = tls.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
        why = "it does not speak TLS on that port" if plain else f"TLS failed: {_text(tls)}"
        remedy = "check the server's port, and whether its URL is https, in the kubeconfig"
        return Failure(ClusterError(what, why, remedy), NOT_AT_ALL)
    if isinstance(error, (NotKubernetes, LineTooLong, aiohttp.InvalidURL)):
        remedy = f"check the server of context {access.context!r} in the kubeconfig"
        return Failure(ClusterError(what, _text(error), remedy), NOT_AT_ALL)
    number = getattr(error, "errno", None)
    if number in _UNREACHABLE:
        return Failure(ClusterError(what, os.strerror(number).lower(), check), A_MOMENT)
    return Failure(ClusterError(what, f"the connection broke: {_text(error)}", check), ALWAYS)


def _proxy(error: Exception, access: Access, what: str) -> Failure:
    proxy = without_password(access.proxy or "in between")
    if not isinstance(error, aiohttp.ClientHttpProxyError):
        cause = getattr(error, "os_error", None) or error
        number = getattr(cause, "errno", None)
        words = os.strerror(number).lower() if number in _UNREACHABLE else _text(cause)
        remedy = "check that it runs, and proxy-url in the kubeconfig or the HTTPS_PROXY and NO_PROXY variables"
        return Failure(ClusterError(what, f"the proxy {proxy} failed: {words}", remedy), A_MOMENT)
    why = f"the proxy {proxy} refused: {error.status} {error.message}"
    if error.status == 407:
        return Failure(
            ClusterError(what, why, "put the login into its URL: http://USER:PASSWORD@HOST:PORT"), NOT_AT_ALL
        )
    if error.status >= 500:
        remedy = f"check that {access.server} can be reached from the proxy"
        return Failure(ClusterError(what, why, remedy), A_MOMENT)
    remedy = "have whoever runs the proxy let it pass, or have proxy-url or NO_PROXY lead around the proxy"
    return Failure(ClusterError(what, why, remedy), NOT_AT_ALL)


def _within(error: BaseException | None, kind: type[_Error]) -> _Error | None:
    """The innermost exception of *kind* that *error* was raised from, or is: aiohttp's wrappers inherit from what
    they wrap, but lack its details."""
    found: _Error | None = None
    while error is not None:
        if isinstance(error, kind):
            found = error
        error = getattr(error, "os_error", None) or error.__cause__
    return found


def _text(error: BaseException) -> str:
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(str(words).split()) or type(error).__name__
