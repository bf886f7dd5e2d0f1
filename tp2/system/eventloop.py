"""The daemon's event loop: uvloop where it exists, with a gap closed, and with an eye on whose descriptors are whose.

uvloop's libuv closes descriptors by number, beside the Python objects that stand for them. Where both take one for
theirs it is closed twice, and the second time it is another connection's by then. What follows does not end by itself:
libuv accepts no socket of a number that it believes to have, so each connection that gets this number is refused, and
what is sent on one connection may arrive on another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

try:
    import uvloop
except ImportError:  # no wheel for the platform
    uvloop = None  # type: ignore[assignment]


class DescriptorLost(Exception):
    """The descriptor of an open connection was closed by somebody else, and has been given out again."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop to run the daemon on. asyncio's own is slower, but the same, and has Python's sockets only."""
    return Loop() if uvloop is not None else asyncio.new_event_loop()


if uvloop is not None:

    class Loop(uvloop.Loop):
        """uvloop's loop. Where it meets a :class:`DescriptorLost`, it tells the exception handler."""

        async def create_connection(self, *args: Any, **options: Any) -> Any:
            """See :meth:`asyncio.loop.create_connection`. A *sock* is the transport's, and detached on return.

            uvloop detaches it when the transport closes, but not if that was before this call's end, for which a
            peer that resets the connection now is enough. Whatever still refers to the socket, such as a traceback,
            would later close the same number once more.
            """
            sock: socket.socket | None = options.get("sock")
            try:
                with self._watched():
                    return await super().create_connection(*args, **options)
            finally:
                if sock is not None:
                    sock.detach()

        async def connect_accepted_socket(self, *args: Any, **options: Any) -> Any:
            """See :meth:`asyncio.loop.connect_accepted_socket`."""
            with self._watched():
                return await super().connect_accepted_socket(*args, **options)

        async def sock_connect(self, sock: socket.socket, address: Any) -> None:
            """See :meth:`asyncio.loop.sock_connect`."""
            with self._watched():
                await super().sock_connect(sock, address)

        def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
            """See :meth:`asyncio.loop.add_reader`."""
            with self._watched():
                super().add_reader(fd, callback, *args)

        @contextlib.contextmanager
        def _watched(self) -> Iterator[None]:
            """Report the errors of one who hands a descriptor over to a loop that believes to have it already."""
            try:
                yield
            except (OSError, RuntimeError) as error:
                if getattr(error, "errno", None) == errno.EEXIST or "is used by transport" in str(error):
                    lost = DescriptorLost(str(error))
                    self.call_exception_handler({"message": "descriptors are mixed up", "exception": lost})
                raise
