"""The programs that are measured, as a person would start them, on the laptop of a sandbox."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from bench import dnsperf, usage
from bench.cluster import Name
from bench.dnsperf import Run, Unanswered
from tp2.errors import Tp2Error
from tp2.sandbox.box import Sandbox, tp2_command

#: Seconds that a program has to end in.
PATIENCE: Final = 30.0


class Server(Protocol):
    """A DNS server on 127.0.0.1:``port`` of the laptop of ``box``."""

    box: Sandbox
    port: int

    def answered(self) -> int:
        """How many answers it has given from what it knows, by its own count."""


class Tp2:
    """A ``tp2 up`` in the foreground, ready.

    ``stages`` says when each line of it came, by its first word, in seconds on the monotonic clock; ``began`` is when
    the command was given.
    """

    def __init__(self, box: Sandbox, *options: str, installed: bool = False) -> None:
        """:param installed: see :meth:`tp2.sandbox.box.Sandbox.up_command`.
        :raises Tp2Error: it did not come up.
        """
        self.box = box
        self.began = time.monotonic()
        self.stages: dict[str, float] = {}
        self._log = box.directory / "tp2.log"
        with self._log.open("wb") as log:
            self._process = box.laptop.start(
                *box.up_command(*options, installed=installed),
                env=box.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.stages[line.split()[0]] = time.monotonic()
            if line.startswith("ready"):
                break
        else:
            raise self._failed("tp2 did not come up")
        status = self.status()
        self.port = int(status["dns"]["listen"].rpartition(":")[2])
        self.pid = int(status["pid"])

    def status(self) -> dict[str, Any]:
        """``tp2 status --json``."""
        answer: dict[str, Any] = json.loads(
            self.box.laptop.run(*tp2_command("status", "--json"), env=self.box.environment)
        )
        return answer

    def memory(self) -> float:
        """Megabytes (10^6 octets) of the daemon in memory: VmRSS of proc(5)."""
        return usage.status(self.pid, "VmRSS")

    def answered(self) -> int:
        """How many answers it has given from the cluster so far."""
        return int(self.status()["dns"]["cluster_answers"])

    def stop(self) -> None:
        """End it, and return when everything of it is gone."""
        self._process.terminate()
        self.wait()

    def wait(self) -> None:
        """Return when it has ended, which somebody else told it to, and everything of it is gone."""
        if self._process.wait(PATIENCE) != 0:
            raise self._failed("tp2 did not end well")

    def _failed(self, what: str) -> Tp2Error:
        code, words = self._process.wait(PATIENCE), self._log.read_text(encoding="utf-8")
        return Tp2Error(what, f"it ended with {code}, saying:\n{words}", "look into that, then try again")


class Dnsmasq:
    """dnsmasq on a port of its own, with *names* in a hosts file and a cache that holds them all."""

    PORT: Final = 5399

    def __init__(self, box: Sandbox, names: Sequence[Name]) -> None:
        self.box = box
        self.port = self.PORT
        hosts = box.directory / "dnsmasq.hosts"
        hosts.write_text("".join(f"{item.address} {item.full}\n" for item in names), encoding="ascii")
        box.laptop.start(
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--user=", "--group="),
            *("--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1", f"--port={self.port}"),
            *(f"--addn-hosts={hosts}", f"--cache-size={max(10_000, len(names))}", "--local=/cluster.local/"),
            # As long as tp2's answers.
            "--local-ttl=5",
            stdin=subprocess.DEVNULL,
        )
        box.laptop.wait_listening("127.0.0.1", self.port)

    def answered(self) -> int:
        """How many answers it has given from its names so far."""
        # dnsmasq(8), under --cache-size: its statistics are CHAOS TXT records.
        text = self.box.laptop.run("dig", "+short", "@127.0.0.1", "-p", str(self.port), "chaos", "txt", "hits.bind")
        return int(text.strip().strip('"'))


def verify(server: Server, names: Sequence[Name]) -> None:
    """Ask *server* for every one of *names*, with dig.

    :raises Unanswered: one of the answers is not the name's address, and nothing else.
    """
    questions = "".join(f"{item.full} A\n" for item in names)
    dig = ("dig", "+short", "+tries=1", "@127.0.0.1", "-p", str(server.port), "-f", "-")
    answers = server.box.laptop.run(*dig, stdin=questions, timeout=PATIENCE + len(names) / 100).splitlines()
    if answers != [item.address for item in names]:
        right = sum(item.address == answer for item, answer in zip(names, answers, strict=False))
        raise Unanswered(
            type(server).__name__, f"{len(names)} addresses were asked for, and {right} are as they should"
        )


def measure(server: Server, questions: Path, **options: Any) -> Run:
    """Ask *server* each question once, which leaves it warm, then let dnsperf measure; return the second run.

    :param options: those of :func:`bench.dnsperf.ask`.
    :raises Unanswered: a question was not answered, or the server has not counted as many answers as the client.
    """
    before = server.answered()
    warming = dnsperf.ask(server.box.laptop, server.port, questions)
    run = dnsperf.ask(server.box.laptop, server.port, questions, **options)
    counted = server.answered() - before
    if counted < warming.completed + run.completed:
        received = warming.completed + run.completed
        raise Unanswered(type(server).__name__, f"the client has {received} answers, but {counted} were given")
    return run
