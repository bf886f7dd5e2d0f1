"""The asking side. Plain blocking sockets: ``tp2 mappings`` must not pay for an event loop."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any, Final

from tp2.errors import ExitCode, NotRunning, Tp2Error
from tp2.runtime import RuntimeDirectory
from tp2.system.alarm import alarm

#: Seconds that a healthy daemon never needs to answer.
TIMEOUT: Final = 10.0


#: Seconds between two looks whether tp2 is ready.
LOOK_EVERY: Final = 0.1


def wait_until_ready(runtime: RuntimeDirectory, seconds: float) -> dict[str, Any]:
    """Return the status as soon as it is ready, or as it is after so many *seconds*.

    :raises NotRunning: tp2 does not run, not even then.
    :raises Tp2Error: as :func:`ask`.
    """
    deadline = time.monotonic() + seconds
    while True:
        last = time.monotonic() >= deadline
        try:
            answer = ask(runtime, "status")
            if last or answer["state"] == "ready":
                return answer
        except NotRunning:
            if last:
                raise
        time.sleep(max(0.0, min(LOOK_EVERY, deadline - time.monotonic())))


def ask(runtime: RuntimeDirectory, operation: str, **arguments: Any) -> dict[str, Any]:
    """Ask the daemon of *runtime* one question and return its answer.

    :param arguments: what the operation takes besides its name.
    :raises NotRunning: nobody answers there.
    :raises Tp2Error: the answer says so, does not come, or somebody else gives it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        try:
            with runtime.socket_address() as address:
                sock.connect(address)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise _not_running(runtime) from error
        except OSError as error:
            raise Tp2Error(
                "cannot ask the running tp2",
                f"{runtime.socket}: {error.strerror or error}",
                "ask as the user who started it, or as root",
            ) from error
        _check_peer(sock, runtime)
        try:
            sock.sendall(json.dumps({"op": operation, **arguments}).encode() + b"\n")
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
            message = json.loads(answer)
        except TimeoutError as error:
            raise Tp2Error(
                "tp2 does not answer",
                f"process {runtime.holder()} said nothing for {TIMEOUT:.0f} s",
                "see its output; end it with 'kill PID' if it hangs",
            ) from error
        except (OSError, ValueError) as error:
            raise _not_running(runtime) from error
    match message:
        case {"error": [str(what), str(why), str(remedy)], "exit_code": int(code)}:
            raise _told(what, why, remedy, code)
    if not isinstance(message, dict) or "error" in message:
        why = str(message.get("error")) if isinstance(message, dict) else "not an object"
        raise Tp2Error(f"tp2 did not answer '{operation}'", why, "check that the running tp2 has the same version")
    return message


def _told(what: str, why: str, remedy: str, code: int) -> Tp2Error:
    """Return the daemon's error, with the exit code that it would have had there."""
    error = Tp2Error(what, why, remedy)
    with suppress(ValueError):
        error.exit_code = ExitCode(code)
    return error


def stop(runtime: RuntimeDirectory, timeout: float = 30.0) -> None:
    """Tell the daemon of *runtime* to stop, and return when it is gone.

    :raises NotRunning: there is none.
    :raises Tp2Error: it is still there after *timeout* seconds.
    """
    try:
        with runtime.watch_holder() as wait:
            ask(runtime, "down")
            # flock(2) blocks, and has no timeout.
            with alarm(timeout):
                wait()
    except TimeoutError as error:
        raise Tp2Error(
            "tp2 is still stopping",
            f"process {runtime.holder()} has not ended within {timeout:.0f} s",
            "see its output; 'kill -9 PID' is safe: the kernel removes its rules",
        ) from error


def peer_uid(sock: socket.socket) -> int | None:
    """Return the user at the other end of a Unix socket, or None where the platform does not say (unix(7))."""
    if sys.platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    return None


def _check_peer(sock: socket.socket, runtime: RuntimeDirectory) -> None:
    uid = peer_uid(sock)
    if uid not in (None, 0, os.geteuid()) and os.geteuid() != 0:
        raise Tp2Error(
            "cannot trust the running tp2",
            f"{runtime.socket} is answered by user {uid}, and this is user {os.geteuid()}",
            "set TP2_RUNTIME_DIR to a directory of this user's own",
        )


def _not_running(runtime: RuntimeDirectory) -> NotRunning:
    return NotRunning(
        "tp2 is not running",
        f"nobody answers at {runtime.socket}",
        "start it with 'tp2 up'; if it runs elsewhere, set TP2_RUNTIME_DIR as it was set there",
    )
