"""Whoever gets no port-forward is told why, and what to do about it."""

from __future__ import annotations

import json
import ssl
from typing import Any

import pytest

from tests.unit.cluster.recordings import lines
from tp2.cluster.failure import ApiError
from tp2.cluster.kubeconfig import Access
from tp2.cluster.portforward_frames import NotPortForward, StreamFailed
from tp2.cluster.portforward_reasons import Place, broken, not_opened
from tp2.errors import ClusterError, EndpointError, Tp2Error


async def _no_login(_: Any) -> Any:
    raise AssertionError


ACCESS = Access("staging", "https://api.example.com", "default", _no_login)
PLACE = Place("shop", "db-1", 9000)


def refusal(name: str) -> Tp2Error:
    """What is said of a recorded refusal."""
    handshake = lines(f"portforward-{name}.jsonl")[0]["handshake"]
    try:
        status = json.loads(handshake["body"])
    except ValueError:
        status = {"message": handshake["body"] or handshake["reason"]}
    return not_opened(ApiError.from_status(status, status=handshake["status"]), ACCESS, PLACE)


@pytest.mark.parametrize(
    ("name", "kind", "lasting", "what", "why", "remedy"),
    [
        ("rbac-create-only", ClusterError, True, "'shop' is not allowed", 'get resource "pods/portforward"', "ask"),
        ("rbac-get-only", ClusterError, True, "is not allowed", "create on pods/portforward is not granted", "get and"),
        ("negotiation-unknown", ClusterError, True, "over WebSockets", "v4.channel.k8s.io was refused", "proxy"),
        ("refused-unknown-pod", EndpointError, False, "shop/db-1 is gone", 'pods "nowhere" not found', "another pod"),
        ("refused-pod-completed", EndpointError, False, "does not run", 'pod not found ("done_shop")', "another pod"),
        ("refused-kubelet-unreachable", EndpointError, False, "port 9000 of", "500 error dialing backend: d", "node"),
        ("refused-no-ports", ClusterError, False, "port 9000 of pod shop/db-1", "400 query parameter", "WebSockets"),
    ],
)
def test_each_recorded_refusal_has_its_own_message(
    name: str, kind: type[Tp2Error], lasting: bool, what: str, why: str, remedy: str
) -> None:
    error = refusal(name)
    assert type(error) is kind
    assert error.lasting is lasting
    assert what in error.what
    assert why in error.why
    assert remedy in error.remedy


def test_somebody_without_credentials_is_told_to_log_in() -> None:
    message = 'pods "db-1" is forbidden: User "system:anonymous" cannot get resource "pods/portforward"'
    assert "'staging' has no credentials" in not_opened(ApiError(403, message), ACCESS, PLACE).remedy


@pytest.mark.parametrize(
    ("error", "lasting", "why"),
    [
        (ApiError(401, "Unauthorized"), True, "401 Unauthorized"),
        (ssl.SSLCertVerificationError(1, "certificate has expired"), True, "certificate has expired"),
        (ConnectionRefusedError(111, "Connection refused"), False, "connection refused"),
        (TimeoutError(), False, "does not answer"),
    ],
)
def test_failures_on_the_way_to_the_api_are_those_of_every_request(error: Exception, lasting: bool, why: str) -> None:
    explained = not_opened(error, ACCESS, PLACE)
    assert type(explained) is ClusterError
    assert explained.lasting is lasting
    assert why in explained.why
    assert ACCESS.server in explained.what


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StreamFailed("... connect: connection refused"), ("nothing listens on port 9000", "connection refused")),
        (StreamFailed("... write: broken pipe"), ("has ended", "broken pipe")),
        (NotPortForward("a text message"), ("has ended", "a text message")),
        (ConnectionError("closed with code 1000"), ("port 9000 of pod shop/db-1 has ended", "code 1000")),
        (ValueError(), ("has ended", "ValueError")),
    ],
)
def test_an_end_says_whose_it_was_and_why(error: Exception, words: tuple[str, str]) -> None:
    ended = broken(error, PLACE)
    assert words[0] in ended.what
    assert words[1] in ended.why
    assert ended.remedy
    assert not ended.lasting
