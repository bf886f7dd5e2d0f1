"""``tp2 logs``: what a detached tp2 has written, and writes until it ends."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import BinaryIO

from tp2.errors import NotRunning, Tp2Error
from tp2.runtime import RuntimeDirectory


def show(runtime: RuntimeDirectory, *, follow: bool, last: int | None) -> None:
    """Copy the log to standard output; with *follow* until that tp2 ends, or Ctrl-C.

    :param last: how many lines of what is there already; None for all.
    :raises NotRunning: tp2 does not run, and has left no log.
    :raises Tp2Error: the log cannot be read, or the running tp2 has none.
    """
    try:
        # Opened first, to know which tp2 wrote the log. The file outlives its name: it can be read to its end.
        with runtime.watch_holder() as wait, _open(runtime) as log:
            _copy_last(log, last)
            if follow and runtime.holder() is not None:
                asyncio.run(_follow(runtime, log, wait))
            _copy(log)
    except KeyboardInterrupt:
        # That is how a look ends.
        return


async def _follow(runtime: RuntimeDirectory, log: BinaryIO, wait: Callable[[], None]) -> None:
    from tp2.system.filewatch import watching

    loop = asyncio.get_running_loop()
    async with watching([runtime.log]) as changed:
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            changed.set()

        def watch() -> None:
            wait()
            loop.call_soon_threadsafe(end)

        # A thread that nobody waits for: it may sit in flock(2) for as long as that tp2 lives.
        threading.Thread(target=watch, daemon=True).start()
        while not ended:
            await changed.wait()
            changed.clear()
            _copy(log)


def _open(runtime: RuntimeDirectory) -> BinaryIO:
    try:
        # Opened as it is written: no link of somebody else's is followed.
        return os.fdopen(os.open(runtime.log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")
    except FileNotFoundError as error:
        pid = runtime.holder()
        if pid is None:
            raise NotRunning(
                "tp2 is not running, and has left no log",
                f"there is no {runtime.log}",
                "start it with 'tp2 up --detach'; if it runs elsewhere, set TP2_RUNTIME_DIR as it was set there",
            ) from error
        raise Tp2Error(
            "the running tp2 keeps no log",
            f"process {pid or '(unknown)'} runs in the foreground, or is not ready yet",
            "look where it was started: its terminal, or 'journalctl --unit tp2' for a service",
        ) from error
    except OSError as error:
        raise Tp2Error(
            "cannot read the log",
            f"{runtime.log}: {(error.strerror or str(error)).lower()}",
            "ask as the user who started tp2, or as root",
        ) from error


def _copy_last(log: BinaryIO, last: int | None) -> None:
    if last is not None:
        _write(b"".join(deque(log, maxlen=last)))
    _copy(log)


def _copy(log: BinaryIO) -> None:
    while content := log.read(1 << 16):
        _write(content)


def _write(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
