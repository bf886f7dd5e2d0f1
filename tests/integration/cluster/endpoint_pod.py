"""The endpoint's pod without a cluster: the manifest's own commands and files, in namespaces of the kernel.

As in the pod, the process is alone in its PID namespace, runs as the manifest's user without any capability and
without a way to gain one, sees a read-only root file system and the pod's ``/etc/passwd``, and finds its volumes where
the manifest mounts them. Other than in the pod, it shares the machine's network: so sshd listens on a free loopback
port instead of the manifest's.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.integration.socks.sshd import reserve_port, write_key
from tp2.cluster import sshd
from tp2.cluster.manifest import CONFIG, ENDPOINT, IMAGE, NAMESPACE, objects

START_TIMEOUT = 30.0
LOOPBACK = "127.0.0.1"


class EndpointPod:
    """The pod's two containers. ``identity`` is a key that it lets in, ``stranger`` one that it does not.

    :param directory: where volumes, keys and the log go.
    :param without: directives to take out of the configuration, to see what the others do alone.
    """

    def __init__(self, directory: Path, without: Sequence[str] = ()) -> None:
        self.log = directory / "log"
        self.identity, self.stranger = directory / "identity", directory / "stranger"
        self.authorized_keys = directory / "authorized-keys" / sshd.AUTHORIZED_KEYS_FILE
        self.host_key_file = directory / "host-key" / Path(sshd.HOST_KEY).name
        self.host_key = ""
        self._directory = directory
        self._reservation = reserve_port()
        self.port: int = self._reservation.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        found = {(item["kind"], item["metadata"]["name"]): item for item in objects(NAMESPACE, IMAGE, ())}
        self._files: dict[str, str] = found["ConfigMap", CONFIG]["data"]
        self._spec: Any = found["Deployment", ENDPOINT]["spec"]["template"]["spec"]
        self._make_volumes(without)

    def start(self) -> None:
        """Run the init container, then the other; return when it accepts connections."""
        self.host_key = self.make_host_key()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("containers"), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not start: {self.log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it with all its connections."""
        if self._process is not None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            for first in children:
                # The first process of a PID namespace takes all others with it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(first), signal.SIGKILL)
            self._process.wait(START_TIMEOUT)
        self._reservation.close()

    def make_host_key(self) -> str:
        """Run the init container and return its log."""
        return self._output(self._command("initContainers"))

    def run(self, script: str) -> str:
        """Run a shell script where sshd runs, and return what it says."""
        return self._output(self._command("containers", ["/bin/sh", "-c", script]))

    def _output(self, command: Sequence[str]) -> str:
        result = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT)
        if result.returncode:
            raise RuntimeError(f"failed in the pod: {result.stderr}")
        return result.stdout

    def _make_volumes(self, without: Sequence[str]) -> None:
        for volume in self._spec["volumes"]:
            (self._directory / volume["name"]).mkdir()
        lines = [line for line in self._files["sshd_config"].splitlines() if line.partition(" ")[0] not in without]
        elsewhere = {f"Port {sshd.PORT}": f"Port {self.port}\nListenAddress {LOOPBACK}"}
        config = "\n".join(elsewhere.get(line, line) for line in lines) + "\n"
        for name, text in {**self._files, "sshd_config": config}.items():
            (self._directory / "config" / name).write_text(text)
        self.authorized_keys.write_text(write_key(self.identity))
        write_key(self.stranger)

    def _command(self, containers: str, command: Sequence[str] = ()) -> list[str]:
        container = self._spec[containers][0]
        mounts = []
        for mount in container["volumeMounts"]:
            source = shlex.quote(str(self._directory / mount["name"] / mount.get("subPath", "")))
            target = shlex.quote(mount["mountPath"])
            if "subPath" not in mount:
                mounts.append(f"mkdir -p {target}")
            mounts.append(f"mount --bind {source} {target}")
            if mount.get("readOnly"):
                mounts.append(f"mount -o remount,bind,ro {target}")
        script = "\n".join(
            (
                "set -e",
                # The directory of all mount points that an image does not have.
                "mount -t tmpfs tmpfs /run",
                *mounts,
                "mount -o remount,bind,ro /",
                'exec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all --no-new-privs -- "$@"',
            )
        )
        user = [f"--map-user={sshd.UID}", f"--map-group={sshd.UID}"]
        unshare = ["unshare", "--user", *user, "--mount", "--pid", "--fork", "--kill-child", "--keep-caps"]
        return [*unshare, "sh", "-c", script, "sh", *(command or container["command"])]

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, self.port)) == 0


@contextlib.contextmanager
def running(directory: Path, without: Sequence[str] = ()) -> Iterator[EndpointPod]:
    """A pod that accepts connections, for as long as the context lasts."""
    pod = EndpointPod(directory, without)
    try:
        pod.start()
        yield pod
    finally:
        pod.stop()
