"""From ``tp2 up`` to a running daemon: who runs as whom, in which process, and where its words go.

The order is: refuse what can be refused without asking anything of anybody; start the helper (sudo may ask for a
password now, before anything has changed) and import what is heavy meanwhile; become the user; take the lock; go to
the background if so asked; run.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from tp2.errors import UsageError
from tp2.forward.client import StartingHelper
from tp2.forward.privilege import become, calling_user
from tp2.runtime import RuntimeDirectory
from tp2.settings import Mode, Rules, Settings, Via
from tp2.system import imports, limits, notify
from tp2.terminal.progress import Progress

#: What the daemon would import as it goes. It may then have become a user who cannot read root's installation of tp2.
_NEEDED_LATER: Final = ("concurrent.futures.thread", "encodings.idna")


def up(settings: Settings, runtime: RuntimeDirectory, *, detach: bool) -> int:
    """Bring tp2 up; return the exit code when it has ended, or when it is ready if *detach*.

    :raises Tp2Error: it could not come up, or could not go on.
    """
    began = time.monotonic()
    _refuse_what_cannot_be(settings)
    runtime.check_free()
    with StartingHelper(settings.forwarder) as starting:
        # This takes most of a second, in which the helper starts.
        with imports.quickly():
            for module in (*_NEEDED_LATER, *(["tp2.metrics"] if settings.metrics else [])):
                importlib.import_module(module)
            from tp2 import daemon, resolvers
            from tp2.cluster import lean

            lean.prepare()

        found = resolvers.discover(settings)
        helper = starting.wait()
        # Each mapping is a socket, and so is each connection. Root may go further than the user that it becomes.
        limits.raise_open_files()
        become(calling_user())
        with runtime, Progress() as progress:
            report = _detach(runtime, progress) if detach else partial(_report, progress)
            _log_to_stderr(verbose=settings.verbose)
            progress.start()
            return daemon.main(settings, found, runtime, helper, report, began)


def _refuse_what_cannot_be(settings: Settings) -> None:
    if settings.mode is Mode.ORIGDST and (sys.platform != "linux" or settings.forwarder is Rules.PF):
        raise UsageError(
            "cannot run in mode origdst",
            "only nftables, on Linux, lets tp2 ask where a redirected connection was going",
            "use --mode portmap, which works everywhere",
        )
    if settings.remote is not None and settings.socks_upstream is not None:
        raise UsageError(
            "--remote and --socks-upstream are two ways into the cluster",
            "connections go through an SSH endpoint or through somebody's own proxy",
            "leave one of the two out",
        )
    if settings.socks_upstream is not None and settings.socks_upstream[:2] == settings.socks:
        raise UsageError(
            f"{settings.socks} is tp2's own SOCKS5 proxy",
            "--socks-upstream names somebody else's",
            "let tp2 listen elsewhere: --socks 127.0.0.1:1081",
        )
    if settings.remote is not None and settings.via is not Via.AUTO:
        raise UsageError(
            f"--via {settings.via} says nothing about {settings.remote}",
            "it chooses the way to the endpoint that is installed in the cluster, and --remote names another one",
            "leave one of the two out",
        )


def _report(progress: Progress, stage: str, outcome: str) -> None:
    progress.done(stage, f"{stage:<8} {outcome}")
    notify.status(f"{stage} {outcome}")
    if stage == "ready":
        notify.ready()


def _detach(runtime: RuntimeDirectory, progress: Progress) -> Callable[[str, str], None]:
    """Go on in a process of its own session; the caller's process ends with the outcome of the start.

    Returns the report for the new process: until ready its words go where the caller's would, then to the log.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        is_ready = os.read(reading, 1)
        # Not sys.exit: lock, helper and runtime directory are the other process' now, and must not be undone here.
        os._exit(0 if is_ready else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os.close(reading)
    os.setsid()
    runtime.write_pid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def report(stage: str, outcome: str) -> None:
        _report(progress, stage, outcome)
        if stage == "ready":
            log = os.open(runtime.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            os.write(writing, b"!")
            os.close(writing)

    return report


def _log_to_stderr(*, verbose: bool) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("tp2").setLevel(logging.DEBUG if verbose else logging.INFO)
    # It complains of an event that comes while a watch is given up, which is no trouble: we look at the files then.
    logging.getLogger("watchdog").setLevel(logging.CRITICAL)
