"""One attempt at an SSH connection to the endpoint: who must be there, who we are, and the handshake.

The endpoint's key is always checked, against a pinned key or against known_hosts; there is no third way. Every
file is read anew at each attempt, so an identity or a known_hosts line that is put right is picked up by the
next one. ``~/.ssh/config`` is not read: the same options do the same thing on every machine.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from asyncssh.connection import SSHConnection

from tp2.errors import EndpointError, UsageError
from tp2.socks.dial import Way
from tp2.socks.reasons import Unmendable, handshake_failed, identity_unusable

HANDSHAKE_TIMEOUT = 15.0
"""Seconds from the TCP connection to the end of the login: a few round trips, with room for slow DNS at sshd."""

KEEPALIVE_INTERVAL = 5.0
KEEPALIVE_MISSES = 3
"""A silent endpoint is given up after 20 s at the latest: long enough for a Wi-Fi roam, short enough for a person
who waits for a page. The bytes of one keepalive every 5 s of silence do not matter."""

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr")
"""AES-GCM first: with AES instructions it moves twice to three times the bytes of chacha20; the last two are for
endpoints that have no GCM."""

HOST_KEYS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""Algorithms by which the endpoint may prove its key (RFC 8709, RFC 5656, RFC 8332)."""


@dataclass(frozen=True)
class Endpoint:
    """Where the SSH endpoint is; *user* defaults to the name of the user who runs tp2.

    :raises UsageError: when there is no *user* and the system knows no name for the one who runs tp2.
    """

    host: str
    port: int = 22
    user: str | None = None

    def __post_init__(self) -> None:
        self.login  # noqa: B018  asked now, so that a missing name is an error where the endpoint is named

    @property
    def login(self) -> str:
        """The name to log in as."""
        try:
            return self.user or getpass.getuser()
        except (KeyError, OSError) as error:
            raise UsageError(
                f"no user to log in as at {self.host}", f"this user has no name ({error})", "use --remote USER@HOST"
            ) from None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.login}@{host}:{self.port}"


def is_up(connection: SSHConnection) -> bool:
    """Whether *connection* still has its transport.

    asyncssh lets go of the transport before it tells the channels that their connection is gone, and then tells
    them ``connection_lost(None)`` if the end was an orderly one: this is how to know it from a channel's own end.
    """
    return connection.get_extra_info("socket") is not None


def parse_host_key(text: str) -> asyncssh.SSHKey:
    """Return the public key in *text*, one line as in a ``.pub`` file.

    :raises UsageError: when it is none.
    """
    try:
        return asyncssh.import_public_key(text)
    except asyncssh.KeyImportError as error:
        raise UsageError(
            "the endpoint's host key cannot be read",
            str(error),
            "--host-key takes an OpenSSH public key, such as /etc/ssh/ssh_host_ed25519_key.pub of the endpoint",
        ) from None


class _Client(asyncssh.SSHClient):
    """Remembers which key an endpoint presented that was not trusted, and passes on the end of the connection."""

    def __init__(self, on_lost: Callable[[Exception | None], None]) -> None:
        self.presented: asyncssh.SSHKey | None = None
        self._on_lost = on_lost

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.presented = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.presented = key
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(exc)


_Trusted = tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]
"""Trusted host keys, trusted CA keys and revoked keys for one endpoint."""


@dataclass(frozen=True)
class Access:
    """Everything that a login at *endpoint* needs to know.

    :param identity: the private key to offer, and then no other; ``None`` offers those of ssh-agent and of ``~/.ssh``.
    :param host_key: the one key that the endpoint may present; ``None`` checks *known_hosts* instead.
    :param known_hosts: a file in OpenSSH's format; ``None`` means ``~/.ssh/known_hosts``.
    """

    endpoint: Endpoint
    identity: Path | None
    host_key: asyncssh.SSHKey | None
    known_hosts: Path | None

    async def log_in(self, way: Way, on_lost: Callable[[Exception | None], None]) -> asyncssh.SSHClientConnection:
        """Return an authenticated connection over *way*.

        :param on_lost: called once, after all channels were told, when the connection has ended.
        :raises EndpointError: when it does not come up; the way's stream is the caller's to end in any case.
        """
        trusted = await asyncio.to_thread(self._trusted, way)
        keys = await asyncio.to_thread(self._keys)
        client = _Client(on_lost)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                return await asyncssh.connect(
                    self.endpoint.host,
                    self.endpoint.port,
                    tunnel=way.stream,
                    config=None,
                    client_factory=lambda: client,
                    username=self.endpoint.login,
                    known_hosts=lambda _host, _addr, _port: trusted,
                    server_host_key_algs=_host_key_algorithms(trusted),
                    x509_trusted_certs=None,
                    client_keys=keys,
                    agent_path=() if self.identity is None else None,
                    preferred_auth=["publickey"],
                    gss_kex=False,
                    gss_auth=False,
                    encryption_algs=CIPHERS,
                    compression_algs=["none"],
                    keepalive_interval=KEEPALIVE_INTERVAL,
                    keepalive_count_max=KEEPALIVE_MISSES,
                )
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._not_trusted(way, trusted, client.presented, error) from None
        except EndpointError:
            raise
        except Exception as error:  # noqa: BLE001  asyncssh passes on whatever its parsers raise on strange bytes
            raise handshake_failed(
                str(self.endpoint), error, self._offered(), vouched_for=bool(way.host_keys)
            ) from None

    def _keys(self) -> object:
        if self.identity is None:
            return ()
        try:
            return asyncssh.load_keypairs(str(self.identity))
        except (OSError, ValueError) as error:
            raise identity_unusable(self.identity, error) from None

    def _offered(self) -> str:
        return str(self.identity) if self.identity else "the keys of ssh-agent and ~/.ssh, if there are any"

    def _trusted(self, way: Way) -> _Trusted:
        if way.host_keys:
            return self._vouched_for(way), [], []
        if self.host_key:
            return [self.host_key], [], []
        path = self._known_hosts_path()
        try:
            table = asyncssh.read_known_hosts(str(path))
        except FileNotFoundError:
            return [], [], []
        except (OSError, ValueError) as error:
            raise Unmendable(
                f"cannot check the key of {self.endpoint}", f"{path}: {error}", "mend that file, or use --host-key"
            ) from None
        # By the name that the user gave, as ssh does: an address that a resolver put behind it proves nothing.
        host_keys, ca_keys, revoked, *_ = table.match(
            self.endpoint.host, "", None if self.endpoint.port == 22 else self.endpoint.port
        )
        return list(host_keys), list(ca_keys), list(revoked)

    def _vouched_for(self, way: Way) -> list[asyncssh.SSHKey]:
        try:
            return [asyncssh.import_public_key(line) for line in way.host_keys]
        except asyncssh.KeyImportError as error:
            raise EndpointError(
                f"cannot check the key of {self.endpoint}",
                f"{way.vouched_for_by} gives one that cannot be read: {error}",
                f"look at what {way.vouched_for_by} says; it should be an OpenSSH public key",
            ) from None

    def _known_hosts_path(self) -> Path:
        return self.known_hosts or Path("~/.ssh/known_hosts").expanduser()

    def _not_trusted(
        self, way: Way, trusted: _Trusted, presented: asyncssh.SSHKey | None, error: Exception
    ) -> EndpointError:
        host_keys, _, revoked = trusted
        shown = _describe(presented) if presented else f"one that is not valid ({error})"
        expected = " or ".join(map(_describe, host_keys))
        if way.host_keys:
            # Who vouches is asked again at the next attempt, and may then name the key of a server that is new.
            return EndpointError(
                f"{self.endpoint} is not who it should be",
                f"{way.vouched_for_by} says its key is {expected}, but it presents {shown}",
                "find out who answers in its place before you go on",
            )
        source = "--host-key" if self.host_key else str(self._known_hosts_path())
        if presented in revoked:
            return Unmendable(
                f"{self.endpoint} is not trusted", f"its key {shown} is marked as revoked in {source}", "do not use it"
            )
        if expected:
            return Unmendable(
                f"{self.endpoint} is not who it should be",
                f"{source} says its key is {expected}, but it presents {shown}",
                "find out why before you go on: either the endpoint was rebuilt, and its new key belongs into "
                f"{source}, or somebody else answers in its place",
            )
        return Unmendable(
            f"{self.endpoint} is not known",
            f"it presents the key {shown}, and {source} has none for it",
            "compare that fingerprint with the endpoint's own (ssh-keygen -lf on it), then give the key with "
            "--host-key, or add it to known_hosts (ssh-keyscan, or connect once with ssh)",
        )


def _describe(key: asyncssh.SSHKey) -> str:
    return f"{key.get_algorithm()} {key.get_fingerprint()}"


def _host_key_algorithms(trusted: _Trusted) -> list[str]:
    # Those of the trusted keys first, so that the endpoint presents one of them if it has it; the others too, so
    # that one that has not presents what it has, and the error can show it.
    host_keys, ca_keys, _ = trusted
    known = {algorithm.decode() for key in host_keys for algorithm in key.sig_algorithms}
    plain = sorted(HOST_KEYS, key=lambda algorithm: algorithm not in known)
    return [f"{algorithm}-cert-v01@openssh.com" for algorithm in HOST_KEYS if ca_keys] + plain
