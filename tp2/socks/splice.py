"""The byte path of one connection between two sockets: the kernel moves the bytes, and tp2 never sees most of them.

A connection begins with plain copies, which is all that most of them need. A direction that moves more gets a pipe, and
from then on splice(2) moves what comes into the pipe and from there to the other socket, by reference. Where there is
no splice(2) it goes on with copies.

Back-pressure: a direction reads only when all that it read before is written, so that at most a pipe full waits.

========================== ============================================================================
what happens               what follows
========================== ============================================================================
one side sends EOF         EOF to the other side, once it has taken all bytes; the other way goes on
both of them               both are closed
one side is reset, or      the other one is reset
cannot be written to
========================== ============================================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

from tp2.socks.relay import reset_on_close

logger = logging.getLogger(__name__)

COPY_SIZE: Final = 64 * 1024
"""Bytes that are copied in one turn of the event loop."""

PIPE_FROM: Final = 512 * 1024
"""Bytes after which a direction gets a pipe: two descriptors, and as much kernel memory as waits in it."""

PIPE_SIZE: Final = 256 * 1024
"""Bytes asked for a pipe, and spliced in one turn of the event loop; the kernel may give less (pipe(7))."""

_SPLICE: Final = hasattr(os, "splice")
_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if _SPLICE else 0

# Of all connections: what is read into it is written, or copied, before anything else happens.
_scratch: Final = memoryview(bytearray(COPY_SIZE))


class Owner(Protocol):
    """Who is told of what moves."""

    def sent(self, size: int) -> None:
        """Bytes went from the client to the server."""

    def received(self, size: int) -> None:
        """Bytes went from the server to the client."""

    def ended(self) -> None:
        """Both are closed; told once, later."""


class Splice:
    """Moves bytes between *client* and *server*, two connected non-blocking sockets, which belong to it.

    :param to_server: bytes of the client's that were read before; *to_client* likewise.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        owner: Owner,
        *,
        to_server: bytes = b"",
        to_client: bytes = b"",
    ) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._sockets = (client, server)
        self._ended = False
        self._directions = (
            _Direction(self, client, server, to_server, owner.sent),
            _Direction(self, server, client, to_client, owner.received),
        )
        for direction in self._directions:
            direction.start()

    def abort(self) -> None:
        """Reset both sides."""
        if not self._ended:
            for sock in self._sockets:
                reset_on_close(sock)
            self.end()

    def end(self) -> None:
        """Close both sides."""
        if self._ended:
            return
        self._ended = True
        for direction in self._directions:
            direction.stop()
        for sock in self._sockets:
            sock.close()
        self._loop.call_soon(self._owner.ended)

    def finished(self) -> None:
        """One direction has passed on its EOF."""
        if all(direction.finished for direction in self._directions):
            self.end()


class _Direction:
    """From *source* to *sink*. It waits for one of them at a time: for the source to read, or for the sink to write."""

    def __init__(
        self,
        whole: Splice,
        source: socket.socket,
        sink: socket.socket,
        first: bytes,
        count: Callable[[int], None],
    ) -> None:
        self.finished = False
        self._count = count
        self._moved = 0
        self._whole = whole
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._unsent: bytes | memoryview = first
        self._eof = False
        self._pipe: tuple[int, int] | None = None
        self._in_pipe = 0

    def start(self) -> None:
        """Begin with what was read before."""
        if self._unsent:
            self._loop.add_writer(self._sink, self._guarded, self._write)
        else:
            self._loop.add_reader(self._source, self._guarded, self._read)

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        self._drop_pipe()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            logger.debug("a connection ends: %s", error)
            self._whole.abort()

    def _read(self) -> None:
        if self._pipe is None and self._moved >= PIPE_FROM and _SPLICE:
            self._pipe = _new_pipe()
        if self._pipe is not None:
            size = self._in_pipe = os.splice(self._source.fileno(), self._pipe[1], PIPE_SIZE, flags=_FLAGS)
        else:
            size = self._source.recv_into(_scratch)
            self._unsent = _scratch[:size]
        self._eof = not size
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self._send()
        if self._unsent or self._in_pipe:
            # It belongs to all connections, so what is kept is a copy.
            self._unsent = bytes(self._unsent)
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._guarded, self._write)
        elif self._eof:
            self._loop.remove_reader(self._source)
            self._pass_eof_on()

    def _write(self) -> None:
        self._send()
        if self._unsent or self._in_pipe:
            return
        self._loop.remove_writer(self._sink)
        self._loop.add_reader(self._source, self._guarded, self._read)

    def _send(self) -> None:
        """Write what was read, as far as the sink takes it."""
        if self._unsent:
            size = self._sink.send(self._unsent)
            self._unsent = self._unsent[size:]
            self._moved += size
            self._count(size)
        while self._in_pipe:
            assert self._pipe is not None
            size = os.splice(self._pipe[0], self._sink.fileno(), self._in_pipe, flags=_FLAGS)
            self._in_pipe -= size
            self._count(size)

    def _pass_eof_on(self) -> None:
        self.finished = True
        self._drop_pipe()
        self._sink.shutdown(socket.SHUT_WR)
        self._whole.finished()

    def _drop_pipe(self) -> None:
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None


def _new_pipe() -> tuple[int, int] | None:
    """Return a pipe, its reading end first; None if no descriptor is left for it."""
    try:
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        logger.debug("no pipe for a connection, which goes on without: %s", error)
        return None
    with contextlib.suppress(OSError):
        # A user's pipes may all together have only so much (pipe(7)); the usual 64 KiB will do.
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return pipe
