"""A privileged helper, started and spoken to as the daemon does, but without an event loop."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tp2.forward import protocol
from tp2.forward.protocol import Request


class Helper:
    """A helper on its way up.

    :param words: its arguments.
    :param prefix: what comes before its command: the way into a namespace, say.
    """

    def __init__(self, *words: str, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(60)
        command = [*prefix, sys.executable, "-I", "-m", "tp2.forward.helper", *words]
        with theirs:
            self.process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), env=os.environ | (env or {})
            )
        self.lines = self.channel.makefile("rb")

    def hello(self) -> bytes:
        """Return its first line, or nothing if it ends without."""
        return self.lines.readline()

    def send(self, request: Request, *descriptors: int) -> None:
        """Ask, and do not wait."""
        socket.send_fds(self.channel, [protocol.encode_request(request)], list(descriptors))

    def ask(self, request: Request, *descriptors: int) -> None:
        """Ask, and wait for the answer.

        :raises Tp2Error: the answer is an error.
        """
        self.send(request, *descriptors)
        protocol.decode_reply(self.lines.readline())

    def close(self) -> int:
        """Let it go; return its exit code when it has ended."""
        self.lines.close()
        self.channel.close()
        return self.process.wait(60)
