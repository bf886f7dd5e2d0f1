"""The daemon's side of the helper: :class:`HelperForwarder` turns method calls into its requests.

Requests are answered in order, so a lock around each exchange is all the bookkeeping there is. An end of file from
the helper means that every rule is gone with it; :attr:`HelperForwarder.lost` says so to whoever keeps the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from tp2.errors import ForwarderError, PrivilegeError
from tp2.forward import protocol
from tp2.forward.platforms import AUTO
from tp2.forward.privilege import start_helper
from tp2.forward.rules import Inlet
from tp2.types import Destination, Redirect

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Helper:
    """A helper that has claimed the platform's rules. ``process`` may be sudo rather than the helper itself."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    kind: str
    pid: int
    #: What its rules cannot do on this machine, in words, or None.
    lack: str | None = None


class StartingHelper:
    """A helper on its way up: started on entry, ended on leaving.

    Between :meth:`wait` and leaving, a :class:`HelperForwarder` may have it; ending it twice does no harm.

    :param kind: which rules it is to set, one of :data:`tp2.forward.platforms.KINDS`.
    """

    def __init__(self, kind: str = AUTO) -> None:
        self._kind = kind

    def __enter__(self) -> Self:
        """:raises PrivilegeError: not root, and there is no sudo."""
        self._process, self._channel = start_helper(self._kind)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def wait(self) -> Helper:
        """Return when the helper has claimed the rules. Blocks: sudo may be asking for a password.

        :raises Tp2Error: with the helper's own reason, or because sudo did not start it.
        """
        line = b""
        while not line.endswith(b"\n"):
            # The hello is short, and nothing follows it until we ask for something.
            data = self._channel.recv(4096)
            if not data:
                raise self._did_not_start()
            line += data
        try:
            hello = protocol.decode_reply(line)
        except protocol.ProtocolError as error:
            raise ForwarderError(
                "the privileged helper cannot be understood", str(error), "reinstall tp2: its parts do not fit"
            ) from error
        lack = hello.get("lack")
        return Helper(
            self._process,
            self._channel,
            str(hello.get("kind")),
            int(hello.get("pid", self._process.pid)),
            None if lack is None else str(lack),
        )

    def _did_not_start(self) -> PrivilegeError:
        code = self._process.wait()
        words = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        return PrivilegeError(
            "cannot get the privilege to set forwarding rules",
            words or f"the helper did not start (exit code {code})",
            "run 'sudo tp2 up' in a terminal; 'sudo -v' tells whether sudo lets this user",
        )


class HelperForwarder:
    """A :class:`tp2.forward.rules.Forwarder` that asks the helper. Create it inside the running event loop.

    :param helper: from :meth:`StartingHelper.wait`.
    """

    def __init__(self, helper: Helper) -> None:
        self.kind = helper.kind
        self.pid = helper.pid
        self.lack = helper.lack
        #: Set when the helper ended without being asked to: nothing is captured any more.
        self.lost = asyncio.Event()
        self._ended = asyncio.Event()
        self._helper = helper
        self._channel = helper.channel
        self._channel.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()
        self._buffer = bytearray()
        self._closed = False
        self._loop.add_reader(self._channel, self._readable)

    async def capture_dns(self, nameservers: Sequence[str], port: int) -> None:
        """See :class:`tp2.forward.rules.Rules`."""
        await self._do(protocol.CaptureDns(tuple(nameservers), port))

    async def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """See :class:`tp2.forward.rules.Rules`."""
        await self._do(protocol.Update(tuple(add), tuple(remove)))

    async def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        """See :class:`tp2.forward.rules.Rules`."""
        await self._do(protocol.Cluster(tuple(add), tuple(remove), port))

    async def containers(self, inlets: Sequence[Inlet]) -> None:
        """See :class:`tp2.forward.rules.Rules`."""
        await self._do(protocol.Containers(tuple(inlets)))

    async def steer_dns(self, domains: Sequence[str], search: Sequence[str], port: int) -> None:
        """See :class:`tp2.forward.rules.Rules`."""
        await self._do(protocol.SteerDns(tuple(domains), tuple(search), port))

    async def exempt(self, sock: socket.socket) -> None:
        """See :class:`tp2.forward.rules.Rules`."""
        await self._do(protocol.Exempt(), sock)

    async def end_orphans(self) -> None:
        """See :class:`tp2.forward.rules.Rules`."""
        await self._do(protocol.EndOrphans())

    async def refused(self) -> dict[Destination, int]:
        """See :class:`tp2.forward.rules.Rules`."""
        return await self._ask(protocol.Refused(), protocol.decode_refused)

    async def close(self) -> None:
        """Let the helper go and wait until it has ended, and with it every rule."""
        if self._closed:
            return
        self._closed = True
        if not self._ended.is_set():
            self._channel.shutdown(socket.SHUT_WR)
            # The helper removes its rules and ends; the kernel then closes its end of the pair. That is the event.
            await self._ended.wait()
        self._channel.close()
        # Reaped where it is ours; after a detach it is not, and there is nothing to wait for.
        await asyncio.to_thread(self._helper.process.wait)

    async def _do(self, request: protocol.Request, sock: socket.socket | None = None) -> None:
        await self._ask(request, protocol.decode_reply, sock)

    async def _ask(
        self, request: protocol.Request, decode: Callable[[bytes], Answer], sock: socket.socket | None = None
    ) -> Answer:
        async with self._lock:
            if self._closed or self._ended.is_set():
                raise _gone()
            exchange = asyncio.ensure_future(self._exchange(protocol.encode_request(request), sock))
            # A cancelled caller must not leave a reply behind for the next one to take as its own.
            try:
                line = await asyncio.shield(exchange)
            except asyncio.CancelledError:
                with contextlib.suppress(ForwarderError):
                    await exchange
                raise
        try:
            return decode(line)
        except protocol.ProtocolError as error:
            raise ForwarderError(
                "the privileged helper failed", str(error), "restart tp2; if it happens again, report it"
            ) from error

    async def _exchange(self, line: bytes, sock: socket.socket | None) -> bytes:
        try:
            if sock is not None:
                # The descriptor travels with the first byte; the line is short, so it fits an empty buffer.
                socket.send_fds(self._channel, [line], [sock.fileno()])
            else:
                await self._loop.sock_sendall(self._channel, line)
        except OSError as error:
            raise _gone() from error
        reply = await self._replies.get()
        if not reply:
            raise _gone()
        return reply

    def _readable(self) -> None:
        try:
            data = self._channel.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._channel)
            self._ended.set()
            if not self._closed:
                self.lost.set()
            self._replies.put_nowait(b"")
            return
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            self._replies.put_nowait(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]


def _gone() -> ForwarderError:
    return ForwarderError(
        "nothing is captured any more",
        "the privileged helper has ended",
        "run tp2 up again; the system log may say who ended the helper",
    )
