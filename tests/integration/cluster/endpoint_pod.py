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
from tp2.cluster.manifest import CONFIG, IMAGE, NAMESPACE, objects

START_TIMEOUT = 30.0
LOOPBACK = "127.0.0.1"


class EndpointPod:
    """The pod's two containers. ``identity`` is a key that it lets in, ``stranger`` one that it does not.

    :param directory: where volumes, keys and the log go.
    """

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log"
        self.identity, self.stranger = directory / "identity", directory / "stranger"
        self.host_key = ""
        self._directory = directory
        self._reservation = reserve_port()
        self.port: int = self._reservation.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        found = {(item["kind"], item["metadata"]["name"]): item for item in objects(NAMESPACE, IMAGE, ())}
        self._files: dict[str, str] = found["ConfigMap", CONFIG]["data"]
        deployment = next(item for (kind, _), item in found.items() if kind == "Deployment")
        self._spec: Any = deployment["spec"]["template"]["spec"]
        self._make_volumes()

    def start(self) -> None:
        """Run the init container, then the other; return when it accepts connections."""
        self.host_key = self.run(self._spec["initContainers"][0]["command"])
        with self.log.open("ab") as log:
            command = self._in_the_pod(self._spec["containers"][0]["command"])
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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

    def run(self, command: Sequence[str]) -> str:
        """Run a command in the pod and return what it says."""
        result = subprocess.run(self._in_the_pod(command), capture_output=True, text=True, timeout=START_TIMEOUT)
        if result.returncode:
            raise RuntimeError(f"{command[0]} failed in the pod: {result.stderr}")
        return result.stdout

    def _make_volumes(self) -> None:
        volumes = {"config": self._files, "authorized-keys": {}, "host-key": {}}
        for name, files in volumes.items():
            (self._directory / name).mkdir()
            for file, text in files.items():
                (self._directory / name / file).write_text(text)
        config = self._directory / "config" / "sshd_config"
        elsewhere = f"Port {self.port}\nListenAddress {LOOPBACK}"
        config.write_text(config.read_text().replace(f"Port {sshd.PORT}", elsewhere))
        allowed = self._directory / "authorized-keys" / sshd.AUTHORIZED_KEYS_FILE
        allowed.write_text(write_key(self.identity))
        write_key(self.stranger)

    def _in_the_pod(self, command: Sequence[str]) -> list[str]:
        mounts = [mount for container in self._spec["containers"] for mount in container["volumeMounts"]]
        binds = []
        for mount in mounts:
            source = shlex.quote(str(self._directory / mount["name"] / mount.get("subPath", "")))
            target = shlex.quote(mount["mountPath"])
            made = "" if "subPath" in mount else f"mkdir -p {target} && "
            binds.append(f"{made}mount --bind {source} {target}")
        script = "\n".join(
            (
                "set -e",
                # The only directory that the pod's mount points are in, and where this machine keeps sockets.
                "keep=$PWD; mount --rbind / / && mount -t tmpfs tmpfs /run; cd $keep",
                *binds,
                "mount -o remount,bind,ro /",
                'exec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set=-all --no-new-privs -- "$@"',
            )
        )
        user = [f"--map-user={sshd.UID}", f"--map-group={sshd.UID}"]
        unshare = ["unshare", "--user", *user, "--mount", "--pid", "--fork", "--kill-child", "--keep-caps"]
        return [*unshare, "sh", "-c", script, "sh", *command]

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((LOOPBACK, self.port)) == 0


@contextlib.contextmanager
def running(directory: Path) -> Iterator[EndpointPod]:
    """A pod that accepts connections, for as long as the context lasts."""
    pod = EndpointPod(directory)
    try:
        pod.start()
        yield pod
    finally:
        pod.stop()
