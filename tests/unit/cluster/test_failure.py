"""Every way in which the API can fail has a message that says what, why and what to do."""

from __future__ import annotations

import errno
import json
import socket
import ssl
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from tests.unit.cluster.recordings import lines, recorded
from tp2.cluster.failure import A_MOMENT, ALWAYS, NOT_AT_ALL, ApiError, Failure, NotKubernetes, explain
from tp2.cluster.kubeconfig import Access
from tp2.cluster.lines import LineTooLong


async def no_login(configuration: Any) -> Any:
    raise AssertionError("no test logs in")


ACCESS = Access("lab", "https://api.example.com:6443", "default", no_login)
KEY = ConnectionKey("api.example.com", 6443, True, True, None, None, None, None)


def explained(error: Exception, namespace: str | None = None) -> Failure:
    failure = explain(error, ACCESS, "services", namespace)
    assert all((failure.error.what, failure.error.why, failure.error.remedy))
    return failure


def api_error(name: str) -> ApiError:
    recording = recorded(name)
    return ApiError.from_status(json.loads(recording["body"]), status=recording["status"])


def tls_error(kind: str) -> Exception:
    """The exception of a recorded case, wrapped as aiohttp wrapped it."""
    case = next(case for case in recorded("error-tls.json")["cases"] if case["kind"] == kind)
    inner = case["python_ssl"][0]
    if "verify_code" in inner:
        certificate = ssl.SSLCertVerificationError(inner["errno"], inner["strerror"])
        certificate.verify_code, certificate.verify_message = inner["verify_code"], inner["verify_message"]
        wrapped: Exception = aiohttp.ClientConnectorCertificateError(KEY, certificate)
        wrapped.__cause__ = certificate
    elif inner["class"] == "ssl.SSLError":
        error = ssl.SSLError(inner["errno"], inner["strerror"])
        error.reason = inner["reason"]
        wrapped = aiohttp.ClientConnectorSSLError(KEY, error)
        wrapped.__cause__ = error
    else:
        return aiohttp.ClientConnectorError(KEY, OSError(inner["errno"], inner["strerror"]))
    return wrapped


@pytest.mark.parametrize(
    ("kind", "why", "remedy"),
    [
        ("wrong-ca", "unable to get local issuer", "fetch a new kubeconfig"),
        ("system-ca", "unable to get local issuer", "fetch a new kubeconfig"),
        ("self-signed", "self-signed certificate", "certificate-authority-data"),
        ("hostname-mismatch", "not valid for 'api.example.com'", "tls-server-name"),
        ("ip-mismatch", "not valid for '198.18.5.77'", "tls-server-name"),
        ("expired", "has expired", "clock"),
        ("not-yet-valid", "not yet valid", "clock"),
        ("no-subject-alternative-name", "mismatch", "tls-server-name"),
        ("https-to-a-plain-http-port", "does not speak TLS", "https"),
    ],
)
def test_a_server_that_cannot_be_trusted_is_explained_at_once(kind: str, why: str, remedy: str) -> None:
    failure = explained(tls_error(kind))
    assert failure.patience == NOT_AT_ALL
    assert "https://api.example.com:6443" in failure.error.what
    assert why in failure.error.why
    assert remedy in failure.error.remedy


def test_a_refused_connection_is_tried_again_for_a_moment() -> None:
    failure = explained(tls_error("connection-refused"))
    assert failure.patience == A_MOMENT
    assert failure.error.why == "connection refused"
    assert "VPN" in failure.error.remedy


def test_a_connection_that_breaks_is_tried_again() -> None:
    assert explained(tls_error("closed-during-handshake")).patience == ALWAYS
    assert explained(aiohttp.ClientPayloadError("cut")).patience == ALWAYS
    assert explained(aiohttp.ServerDisconnectedError()).patience == ALWAYS


def test_a_name_that_cannot_be_resolved_is_named() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    failure = explained(aiohttp.ClientConnectorDNSError(KEY, unknown))
    assert failure.patience == A_MOMENT
    assert failure.error.why == "api.example.com cannot be resolved: Name or service not known"
    assert "DNS" in failure.error.remedy


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH])
def test_no_way_to_the_server(number: int) -> None:
    failure = explained(aiohttp.ClientConnectorError(KEY, OSError(number, "Connect call failed")))
    assert "unreachable" in failure.error.why or "no route" in failure.error.why


def test_a_server_that_never_answers() -> None:
    for error in (TimeoutError(), aiohttp.SocketTimeoutError(), aiohttp.ConnectionTimeoutError()):
        assert explained(error).error.why == "it does not answer"


def test_401_asks_for_a_new_login() -> None:
    failure = explained(api_error("error-401-bad-token.json"))
    assert failure.patience == NOT_AT_ALL
    assert "'lab'" in failure.error.what
    assert failure.error.why == "401 Unauthorized"
    assert "log in again" in failure.error.remedy


def test_403_is_told_in_the_words_of_rbac() -> None:
    failure = explained(api_error("error-403-list-services-cluster-wide.json"))
    assert failure.patience == NOT_AT_ALL
    assert failure.error.why == (
        'services is forbidden: User "system:serviceaccount:shop:nobody" cannot list resource "services" '
        'in API group "" at the cluster scope'
    )
    assert "--namespace" in failure.error.remedy
    failure = explained(api_error("error-403-list-services-namespace.json"), "shop")
    assert "in the namespace 'shop'" in failure.error.what
    assert "--namespace" not in failure.error.remedy


def test_403_for_nobody_asks_for_a_login() -> None:
    assert explained(api_error("error-403-anonymous.json")).error.remedy.startswith("log in")


def test_a_server_that_is_no_kubernetes_api() -> None:
    for error in (api_error("error-404-unknown-resource.json"), NotKubernetes("hello")):
        assert explained(error).patience == NOT_AT_ALL
        assert "server of context 'lab'" in explained(error).error.remedy


def test_a_busy_server_is_waited_for() -> None:
    failure = explained(api_error("error-504-too-large-resource-version.json"))
    assert failure.patience == ALWAYS
    assert "504 Timeout: Too large resource version" in failure.error.why


def test_the_error_event_of_a_watch_is_a_status_too() -> None:
    (event,) = lines("watch-services-expired.jsonl")
    error = ApiError.from_status(event["object"])
    assert (error.status, error.message) == (410, "too old resource version: 1 (1399)")


@pytest.mark.parametrize("status", [None, [], {}, {"code": "410"}, {"message": None}, "text", 3])
def test_a_status_that_is_none_has_words_too(status: Any) -> None:
    error = ApiError.from_status(status, status=500)
    assert (error.status, bool(error.message)) == (500, True)


def test_anything_else_has_words_too() -> None:
    for error in (RuntimeError(), KeyError("x"), LineTooLong("a line"), aiohttp.InvalidURL("x:y"), OSError()):
        explained(error)
