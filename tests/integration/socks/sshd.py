"""OpenSSH's real sshd on a free loopback port, with keys and a configuration of its own in a directory."""

from __future__ import annotations

import contextlib
import getpass
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import asyncssh

SSHD = Path("/usr/sbin/sshd")
START_TIMEOUT = 30.0


class Sshd:
    """One sshd. ``identity`` is a private key that it lets in; ``host_key`` is the line it must be known by.

    :param directory: where its files go.
    :param options: further lines of its configuration, or other values for those it has.
    """

    def __init__(self, directory: Path, options: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.options = dict(options or {})
        self.user = getpass.getuser()
        # Kept while it is down too: nobody else gets the port, and who connects to it is refused.
        self._reservation = reserve_port()
        self.port: int = self._reservation.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.identity = directory / "identity"
        self.authorized_keys = directory / "authorized_keys"
        self._host_key_file = directory / "host_key"
        self.host_key = write_key(self._host_key_file)
        self.authorized_keys.write_text(write_key(self.identity))

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._reservation.close()

    def new_host_key(self) -> str:
        """Give it another host key, which it has from its next start on."""
        self.host_key = write_key(self._host_key_file)
        return self.host_key

    def start(self) -> None:
        """Start it; return when it accepts connections."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": str(self._host_key_file),
            "AuthorizedKeysFile": str(self.authorized_keys),
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "AllowTcpForwarding": "yes",
            "MaxStartups": "100",
            "LogLevel": "VERBOSE",
            **self.options,
        }
        path = self.directory / "sshd_config"
        path.write_text("".join(f"{key} {value}\n" for key, value in config.items()))
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", path], stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"sshd does not start: {self.log}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it with all its connections."""
        if self._process:
            listener = self._process.pid
            # Held still first: one that is just being forked would be missed, and keep the port listening.
            with contextlib.suppress(ProcessLookupError):
                os.kill(listener, signal.SIGSTOP)
                os.waitid(os.P_PID, listener, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            for pid in [*_descendants(listener), listener]:
                _kill(pid)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop its sessions in their tracks: their connections stay open and nothing answers."""
        for pid in self.sessions:
            os.kill(pid, signal.SIGSTOP)

    @property
    def sessions(self) -> list[int]:
        """The processes of its connections."""
        return _descendants(self._process.pid) if self._process else []

    @property
    def log(self) -> str:
        """What it has to say."""
        return (self.directory / "log").read_text()

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def write_key(path: Path) -> str:
    """Write a new private key to *path* and return its public line."""
    key = asyncssh.generate_private_key("ssh-ed25519", comment=path.name)
    path.write_bytes(key.export_private_key())
    path.chmod(0o600)
    return key.export_public_key().decode()


def reserve_port() -> socket.socket:
    """Return a socket that holds a free loopback port without listening on it.

    With SO_REUSEADDR on both, a server may still listen on that port; nobody is given it by chance.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in _descendants(child)]


def _kill(pid: int) -> None:
    """Kill *pid* and return when it has let go of its sockets."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            select.select([process], [], [], START_TIMEOUT)
        finally:
            os.close(process)
