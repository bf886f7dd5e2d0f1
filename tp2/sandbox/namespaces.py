"""Hosts made of Linux namespaces: a network of their own, mounts of their own, and nothing left behind.

A namespace lives as long as a process in it, here a holder that waits for the end of its standard input: when the
program that made it ends, however it ends, so does the holder. Nothing is named below /run/netns, so two sandboxes
never meet. Without root, everything happens inside one user namespace in which the caller is root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

#: Seconds that a command of the set-up may take.
PATIENCE: Final = 20.0


#: Where tools are: an ordinary user's PATH often leaves out those of an administrator.
SEARCH_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class Host:
    """One namespace host.

    :param name: for messages.
    :param inside: a host whose user namespace this one shares; needed when not root, for all but the first.
    """

    def __init__(self, name: str, inside: Host | None = None) -> None:
        self.name = name
        command = ["unshare", "--net", "--mount", "--propagation", "private"]
        self._enter_user = os.geteuid() != 0
        if self._enter_user:
            command[1:1] = ["--user", "--map-root-user"] if inside is None else []
        if inside is not None and self._enter_user:
            command = [*inside.command(user_only=True), *command]
        # A sign of life first: when it has come, the namespaces exist.
        command += ["sh", "-c", "echo; exec cat >/dev/null"]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"\n":
            raise RuntimeError(f"the namespace for {name} could not be made: see above")
        self._processes: list[subprocess.Popen[Any]] = []
        # A /run of its own: daemons put their sockets there, and must not meet those of the machine.
        self.shell("""
            mount -t tmpfs tmpfs /run
            mkdir /run/sshd
            ip link set lo up""")

    @property
    def pid(self) -> int:
        """A process in this host's namespaces."""
        return self._holder.pid

    def command(self, *, user_only: bool = False) -> list[str]:
        """Return the beginning of a command line that runs the rest of it in this host."""
        command = ["nsenter", "--target", str(self.pid)]
        if self._enter_user:
            command += ["--user", "--preserve-credentials"]
        return [*command, "--"] if user_only else [*command, "--net", "--mount", "--"]

    def run(
        self,
        *arguments: str | Path,
        stdin: str = "",
        timeout: float = PATIENCE,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command to its end in this host, with *stdin* as its input; return its standard output.

        :raises subprocess.CalledProcessError: it failed, unless *check* is False.
        """
        command = [*self.command(), *map(str, arguments)]
        done = subprocess.run(
            command, input=stdin, stdout=subprocess.PIPE, text=True, timeout=timeout, check=check, env=_with_path(env)
        )
        return done.stdout

    def start(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command in this host; it ends with the host, or with this program."""
        # nsenter replaces itself, so the process that is returned is the command.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *self.command(), *map(str, arguments)]
        process = subprocess.Popen(command, env=_with_path(env), **options)
        self._processes.append(process)
        return process

    def shell(self, script: str) -> str:
        """Run a shell script in this host, each line of which must succeed."""
        return self.run("sh", "-eu", "-c", script)

    def link(self, interface: str, address: str, peer: Host, peer_interface: str, peer_address: str) -> None:
        """Connect this host to *peer* with a virtual cable; addresses carry their prefix length."""
        self.shell(f"""
            ip link add {interface} type veth peer name {peer_interface} netns {peer.pid}
            ip addr add {address} dev {interface}
            ip link set {interface} up""")
        peer.shell(f"""
            ip addr add {peer_address} dev {peer_interface}
            ip link set {peer_interface} up""")

    def own_etc(self, files: Mapping[str, str]) -> None:
        """Give this host an /etc of its own: a copy of the machine's, but for *files* (names and contents)."""
        # What an ordinary user may not read (shadow, private keys) is not missed here.
        self.shell("""
            cp -a /etc /run/etc 2>/dev/null || true
            mount --bind /run/etc /etc""")
        for name, content in files.items():
            self.write_etc(name, content)

    def commands(self) -> dict[int, list[bytes]]:
        """Return the words of the command of each process of this host, but for those that are gone by now."""
        found = {}
        for pid in self.processes():
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return found

    def write_etc(self, name: str, content: str) -> None:
        """Replace a file of this host's own /etc, atomically, as a network manager does."""
        self.run(
            "sh",
            "-euc",
            'cat >"/etc/$1.new"; chmod 644 "/etc/$1.new"; mv -f "/etc/$1.new" "/etc/$1"',
            "sh",
            name,
            stdin=content,
        )

    def wait_listening(self, address: str, port: int) -> None:
        """Return when a program listens on TCP *address*:*port* in this host.

        :raises TimeoutError: none does in time.
        """
        # There is no event for "somebody else's process listens" that an outsider could wait for.
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.run("ss", "--no-header", "--tcp", "--listening", "--numeric", "src", f"{address}:{port}"):
                return
            time.sleep(0.02)
        raise TimeoutError(f"nothing listens on {address}:{port} in {self.name}")

    def processes(self) -> list[int]:
        """Return the ids of all processes in this host's network, as seen from here, but for the holder."""
        wanted = _network(self.pid)
        return [pid for pid in _all_processes() if pid != self.pid and _network(pid) == wanted]

    def family(self, pid: int) -> list[int]:
        """Return *pid* and all its descendants, oldest first."""
        parents = {child: _parent(child) for child in _all_processes()}
        found = [pid]
        for member in found:
            found += [child for child, parent in parents.items() if parent == member]
        return found

    def kill(self, *pids: int) -> None:
        """Kill processes of this host (SIGKILL); those that are gone already are no matter."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End everything that runs in this host, and the host."""
        if self._holder.poll() is None:
            self.kill(*self.processes())
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _network(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    return None


def _parent(pid: int) -> int | None:
    """Return the parent of a process (field 4 of /proc/PID/stat, proc(5)), or None if it is gone."""
    with contextlib.suppress(OSError):
        # The command, field 2, may hold spaces and parentheses: fields are counted from its last one.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _with_path(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**(os.environ if env is None else env), "PATH": SEARCH_PATH}
