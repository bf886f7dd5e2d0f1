"""The endpoint's pod on a free loopback port, with a key that it lets in and one that it does not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.integration.socks.sshd import reserve_port, write_key
from tp2.sandbox.pod import PodFiles

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
        self.host_key = ""
        self._reservation = reserve_port()
        self.port: int = self._reservation.getsockname()[1]
        self._files = PodFiles(directory, LOOPBACK, self.port, without)
        self.authorized_keys = self._files.authorized_keys
        self.host_key_file = self._files.host_key
        self._process: subprocess.Popen[bytes] | None = None
        self.authorized_keys.write_text(write_key(self.identity))
        write_key(self.stranger)

    def start(self) -> None:
        """Run the init container, then the other; return when it accepts connections."""
        self.host_key = self.make_host_key()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._files.command("containers"), stdin=subprocess.DEVNULL, stdout=log, stderr=log
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
        return self._output(self._files.command("initContainers"))

    def run(self, script: str) -> str:
        """Run a shell script where sshd runs, and return what it says."""
        return self._output(self._files.command("containers", ["/bin/sh", "-c", script]))

    def _output(self, command: Sequence[str]) -> str:
        result = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT)
        if result.returncode:
            raise RuntimeError(f"failed in the pod: {result.stderr}")
        return result.stdout

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
