"""Every failure has words for the user, and the right kind."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import asyncssh
import pytest
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_CONNECT_FAILED, OPEN_RESOURCE_SHORTAGE

from tp2.errors import EndpointError, ExitCode
from tp2.socks.reasons import (
    Refusal,
    Unmendable,
    channel_refused,
    dial_failed,
    handshake_failed,
    identity_unusable,
)


@pytest.mark.parametrize(
    ("code", "reason", "refusal"),
    [
        (OPEN_CONNECT_FAILED, "Connection refused", Refusal.REFUSED),
        (OPEN_CONNECT_FAILED, "Connection timed out", Refusal.TIMED_OUT),
        (OPEN_CONNECT_FAILED, "No route to host", Refusal.HOST_UNREACHABLE),
        (OPEN_CONNECT_FAILED, "Network is unreachable", Refusal.NETWORK_UNREACHABLE),
        (OPEN_CONNECT_FAILED, "Name or service not known", Refusal.HOST_UNREACHABLE),
        (OPEN_CONNECT_FAILED, "Temporary failure in name resolution", Refusal.HOST_UNREACHABLE),
        (OPEN_CONNECT_FAILED, "", Refusal.FAILED),
        (OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed", Refusal.PROHIBITED),
        (OPEN_RESOURCE_SHORTAGE, "Connection refused", Refusal.FAILED),
    ],
)
def test_a_channel_failure_is_known_by_its_code_and_text(code: int, reason: str, refusal: Refusal) -> None:
    refused = channel_refused(asyncssh.ChannelOpenError(code, reason))
    assert refused.refusal is refusal
    assert reason in str(refused)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "does not resolve"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "refused"),
        (TimeoutError(), "no answer"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), os.strerror(errno.EHOSTUNREACH)),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), os.strerror(errno.ENETUNREACH)),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    ],
)
def test_a_dial_failure_may_be_mended_by_waiting(error: OSError, words: str) -> None:
    described = dial_failed("me@host:22", error)
    assert words in described.why
    assert "me@host:22" in described.what
    assert described.remedy
    assert described.exit_code is ExitCode.ENDPOINT
    assert not isinstance(described, Unmendable)


@pytest.mark.parametrize(
    ("error", "words", "unmendable"),
    [
        (asyncssh.PermissionDenied("no"), "offered: my key", True),
        (asyncssh.KeyExchangeFailed("nothing in common"), "nothing in common", True),
        (asyncssh.ConnectionLost("Connection lost"), "closed during the handshake", False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "closed during the handshake", False),
        (asyncssh.ProtocolError("too long"), "does not speak SSH", False),
        (TimeoutError(), "in time", False),
        (IndexError("strange bytes"), "strange bytes", False),
        (AssertionError(), "AssertionError", False),
    ],
)
def test_a_handshake_failure_says_whether_somebody_has_to_act(error: Exception, words: str, unmendable: bool) -> None:
    described = handshake_failed("me@host:22", error, "my key")
    assert words in described.why
    assert described.remedy
    assert isinstance(described, EndpointError)
    assert isinstance(described, Unmendable) is unmendable


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), "no such file"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (asyncssh.KeyImportError("Passphrase must be specified"), "passphrase"),
        (asyncssh.KeyEncryptionError("encrypted"), "passphrase"),
        (asyncssh.KeyImportError("Invalid private key"), "not an OpenSSH private key"),
    ],
)
def test_an_identity_that_cannot_be_used_is_named(error: OSError | ValueError, words: str) -> None:
    described = identity_unusable(Path("/keys/mine"), error)
    assert "/keys/mine" in described.what
    assert words in described.why
    assert described.remedy
