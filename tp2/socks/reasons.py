"""What went wrong on the way to the endpoint or behind it, in the user's words.

Everything that the socket layer and asyncssh can raise is turned into one of two things here, and nowhere else:

* an :class:`~tp2.errors.EndpointError` when there is no SSH connection. If waiting cannot mend it (a wrong key, a
  login that is refused), it is an :class:`Unmendable`, and the tunnel stops holding new connections back for it;
* a :class:`ChannelRefused` when there is one, but a single destination cannot be reached through it.
"""

from __future__ import annotations

import errno
import os
import socket
from enum import Enum
from pathlib import Path

import asyncssh
from asyncssh.constants import OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_CONNECT_FAILED

from tp2.errors import EndpointError


class Unmendable(EndpointError):
    """A failure that trying again does not mend: somebody has to change a key, a login or an option first."""

    lasting = True


class NotLetIn(Unmendable):
    """The endpoint takes none of the keys that it was offered."""


class Refusal(Enum):
    """Why a channel to a destination could not be opened; the value is how a log line puts it."""

    REFUSED = "connection refused"
    HOST_UNREACHABLE = "host unreachable"
    NETWORK_UNREACHABLE = "network unreachable"
    TIMED_OUT = "timed out"
    PROHIBITED = "prohibited by the endpoint"
    NOT_CONNECTED = "no tunnel"
    FAILED = "failed"


class ChannelRefused(Exception):
    """A destination could not be reached through the tunnel; *detail* is in the endpoint's words."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(refusal, detail)
        self.refusal = refusal
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.refusal.value} ({self.detail})"


# OpenSSH reports every failure to connect with one code; only the text, strerror's in the C locale, tells them apart.
_CONNECT_FAILURES = (
    ("refused", Refusal.REFUSED),
    ("timed out", Refusal.TIMED_OUT),
    ("no route", Refusal.HOST_UNREACHABLE),
    ("host is down", Refusal.HOST_UNREACHABLE),
    ("network is unreachable", Refusal.NETWORK_UNREACHABLE),
    ("name or service not known", Refusal.HOST_UNREACHABLE),
    ("name does not resolve", Refusal.HOST_UNREACHABLE),
    ("no address associated", Refusal.HOST_UNREACHABLE),
    ("temporary failure in name resolution", Refusal.HOST_UNREACHABLE),
)


def channel_refused(error: asyncssh.ChannelOpenError) -> ChannelRefused:
    """Return why the endpoint did not open a channel (RFC 4254 section 5.1)."""
    if error.code == OPEN_ADMINISTRATIVELY_PROHIBITED:
        return ChannelRefused(Refusal.PROHIBITED, error.reason)
    if error.code == OPEN_CONNECT_FAILED:
        text = error.reason.lower()
        for words, refusal in _CONNECT_FAILURES:
            if words in text:
                return ChannelRefused(refusal, error.reason)
    return ChannelRefused(Refusal.FAILED, error.reason)


_REACH = "check that it runs and that --remote names it; ssh to it shows the same error"


def dial_failed(remote: str, error: OSError) -> EndpointError:
    """Return why no TCP connection to the endpoint came up."""
    what = f"cannot reach the SSH endpoint {remote}"
    if isinstance(error, socket.gaierror):
        return EndpointError(
            what, f"its name does not resolve ({error.strerror})", "check the host in --remote, or name resolution"
        )
    if isinstance(error, ConnectionRefusedError):
        return EndpointError(what, "the connection is refused, so nothing listens on that port", _REACH)
    if isinstance(error, TimeoutError):
        return EndpointError(
            what, "no answer in time", "check that the host is up and that no firewall drops the connection"
        )
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return EndpointError(what, f"{os.strerror(error.errno)}", "check this machine's network, VPN and routes")
    return EndpointError(what, str(error), _REACH)


def handshake_failed(remote: str, error: Exception, offered: str, *, vouched_for: bool = False) -> EndpointError:
    """Return why the SSH handshake or login over a TCP connection failed.

    :param offered: the identities that the login offered, as a phrase.
    :param vouched_for: whether the endpoint is the one that ``tp2 install`` put into the cluster.
    """
    what = f"cannot open an SSH connection to {remote}"
    if isinstance(error, asyncssh.PermissionDenied) and vouched_for:
        return NotLetIn(
            what,
            f"the endpoint does not know your key; offered: {offered}",
            "run `tp2 install` (with the same --identity, if you use one): it adds your key and changes nothing else",
        )
    if isinstance(error, asyncssh.PermissionDenied):
        return NotLetIn(
            what,
            f"permission denied; offered: {offered}",
            "add the public key to the endpoint's authorized_keys, choose another key with --identity, "
            "or another user with --remote USER@HOST",
        )
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return Unmendable(
            what, str(error), "the endpoint and tp2 have no algorithm in common: update or reconfigure its sshd"
        )
    if isinstance(error, TimeoutError):
        return EndpointError(
            what, "connected, but the SSH handshake did not finish in time", "check that the port is an SSH server's"
        )
    if isinstance(error, asyncssh.ConnectionLost | ConnectionError):
        return EndpointError(
            what,
            f"the connection was closed during the handshake ({error})",
            "check that the port is an SSH server's, and its log (MaxStartups, PerSourcePenalties)",
        )
    if isinstance(error, asyncssh.ProtocolError | asyncssh.ProtocolNotSupported):
        return EndpointError(
            what, f"it does not speak SSH ({error})", "check the port in --remote: another service answers there"
        )
    return EndpointError(what, str(error) or type(error).__name__, "see the endpoint's log")


def identity_unusable(path: Path, error: OSError | ValueError) -> Unmendable:
    """Return why a private key file cannot be used."""
    what = f"cannot use the identity {path}"
    if isinstance(error, FileNotFoundError):
        return Unmendable(what, "there is no such file", "check --identity")
    if isinstance(error, OSError):
        return Unmendable(what, error.strerror or str(error), "make it readable for the user who runs tp2")
    if isinstance(error, asyncssh.KeyEncryptionError) or "passphrase" in str(error).lower():
        return Unmendable(
            what,
            "it is protected by a passphrase",
            f"run `ssh-add {path}` and leave --identity out: the keys of ssh-agent are offered then",
        )
    return Unmendable(what, f"it is not an OpenSSH private key ({error})", "check --identity")
