"""The privileged helper: the only part of tp2 that keeps a privilege. Readable in one sitting, on purpose.

It is started by the daemon with one end of a socket pair as its standard input (through sudo where the user is not
root), claims the platform's rules, and then does what :mod:`tp2.forward.protocol` lists and nothing else. It reads
no files, opens no network connection, and takes one word of :data:`tp2.forward.platforms.KINDS`. On Linux it gives up
everything that root may do but CAP_NET_ADMIN before it reads the first request (:mod:`tp2.forward.capabilities`), and
redirects only to sockets of the user who sends the requests (:mod:`tp2.forward.listeners`). Any end of the socket (the
daemon stopped, crashed or was killed) removes every rule; if the helper itself is killed, so does the kernel, or, for
pf, a guardian (:mod:`tp2.forward.pfguard`).
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from tp2.errors import ForwarderError, Tp2Error
from tp2.forward import protocol
from tp2.forward.platforms import AUTO, KINDS, choose
from tp2.forward.rules import Rules

#: struct ucred of unix(7): process, user, group.
_CREDENTIALS: Final = struct.Struct("=iII")

#: Descriptors that may come with one message, or wait for a request that takes them.
_MOST_DESCRIPTORS: Final = 16


class Received(NamedTuple):
    """What one read of the channel brought: bytes, descriptors, and the user who sent them (None: not told)."""

    data: bytes
    descriptors: list[int]
    user: int | None


def main() -> NoReturn:
    """Serve the socket on standard input until it ends.

    Exits 0 after an end of file, 1 when the rules could not be claimed (the reason went to the daemon) and 2 when
    standard input is no socket or says something outside the protocol.
    """
    # A Ctrl-C or a closed terminal reaches the whole foreground group; the daemon decides what it means.
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(name, signal.SIG_IGN)
    kind, *rest = sys.argv[1:] or [AUTO]
    if not stat.S_ISSOCK(os.fstat(0).st_mode) or kind not in KINDS or rest:
        sys.stderr.write("tp2: the helper is started by 'tp2 up', not by hand\n")
        raise SystemExit(2)
    # What libraries print about failures goes to the daemon as an error; the terminal is the daemon's.
    null = os.open(os.devnull, os.O_RDWR)
    with socket.socket(fileno=os.dup(0)) as channel:
        channel.setblocking(True)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        try:
            start = {"nftables": _with_nftables, "pf": _with_pf}[choose(kind)]
        except Tp2Error as error:
            channel.sendall(protocol.encode_reply(error))
            raise SystemExit(1) from error
        raise SystemExit(start(channel))


def _with_pf(channel: socket.socket) -> int:
    from tp2.forward.pf import Pf

    return serve(channel, Pf())


def _with_nftables(channel: socket.socket) -> int:
    # Imported here: what they need of the system is only on Linux.
    from tp2.forward.capabilities import keep_only_net_admin
    from tp2.forward.listeners import Listeners
    from tp2.forward.nftables import Nftables
    from tp2.forward.stopgap import Stopgap

    # The driver of TUN devices is root's to open; all that follows is for CAP_NET_ADMIN.
    stopgap = Stopgap()
    try:
        keep_only_net_admin()
        listeners = Listeners()
    except Tp2Error as error:
        channel.sendall(protocol.encode_reply(error))
        return 1
    # From here on the kernel tells of each message who sent it: sudo's own user is not the daemon's.
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return serve(
        channel,
        Nftables(stopgap),
        check=listeners.check,
        lack=stopgap.lack,
        watch=(stopgap.fileno(), stopgap.changed),
    )


def serve(
    channel: socket.socket,
    rules: Rules,
    *,
    check: Callable[[protocol.Request, int], None] | None = None,
    lack: str | None = None,
    watch: tuple[int, Callable[[], None]] | None = None,
) -> int:
    """Answer requests on *channel* with *rules* until it ends; return the exit code. Rules are gone afterwards.

    :param check: is asked about each request, and the user who sent it, before it is done; raises Tp2Error to refuse.
    :param lack: what these rules cannot do on this machine, in words, for the daemon.
    :param watch: a descriptor, and what to call when it is readable.
    """
    descriptors: list[int] = []
    try:
        try:
            rules.open()
        except Tp2Error as error:
            channel.sendall(protocol.encode_reply(error))
            return 1
        channel.sendall(protocol.encode_hello(rules.kind, os.getpid(), lack))
        buffer = bytearray()
        while True:
            _wait(channel, watch)
            received = _receive(channel)
            descriptors += received.descriptors
            if not received.data:
                return 0
            buffer += received.data
            while (end := buffer.find(b"\n")) >= 0:
                request = protocol.decode_request(bytes(buffer[:end]))
                del buffer[: end + 1]
                channel.sendall(_answer(request, received.user, rules, check, descriptors))
            if len(buffer) > protocol.MAX_LINE or len(descriptors) > _MOST_DESCRIPTORS:
                return 2
    except protocol.ProtocolError:
        return 2
    except OSError:
        # The daemon went away while we were answering: the same as an end of file.
        return 0
    finally:
        rules.close()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _wait(channel: socket.socket, watch: tuple[int, Callable[[], None]] | None) -> None:
    """Return when *channel* has something to say, and meanwhile see to what is watched."""
    if watch is None:
        return
    descriptor, changed = watch
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(descriptor, select.POLLIN)
    while True:
        readable = {ready for ready, _ in poll.poll()}
        if descriptor in readable:
            changed()
        if channel.fileno() in readable:
            return


def _receive(channel: socket.socket) -> Received:
    """Read what has come; the kernel never joins the words of two users."""
    room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize) + socket.CMSG_SPACE(_CREDENTIALS.size)
    data, ancillary, _, _ = channel.recvmsg(65536, room)
    descriptors = array.array("i")
    user = None
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        elif level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
            _, user, _ = _CREDENTIALS.unpack(content)
    return Received(data, list(descriptors), user)


def _answer(
    request: protocol.Request,
    user: int | None,
    rules: Rules,
    check: Callable[[protocol.Request, int], None] | None,
    descriptors: list[int],
) -> bytes:
    try:
        if check is not None:
            if user is None:
                raise protocol.ProtocolError("a request of nobody")
            check(request, user)
        match request:
            case protocol.CaptureDns(nameservers, port):
                rules.capture_dns(nameservers, port)
            case protocol.Update(add, remove):
                rules.update(add, remove)
            case protocol.Cluster(addresses, gone, local_port):
                rules.cluster(addresses, gone, local_port)
            case protocol.Containers(inlets):
                rules.containers(inlets)
            case protocol.SteerDns(domains, search, port):
                rules.steer_dns(domains, search, port)
            case protocol.Exempt():
                _exempt(rules, descriptors)
            case protocol.EndOrphans():
                rules.end_orphans()
            case protocol.Refused():
                return protocol.encode_reply(refused=rules.refused())
    except Tp2Error as error:
        return protocol.encode_reply(error)
    return protocol.encode_reply()


def _exempt(rules: Rules, descriptors: list[int]) -> None:
    if not descriptors:
        raise protocol.ProtocolError("no socket came with the request")
    descriptor = descriptors.pop(0)
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        os.close(descriptor)
        raise ForwarderError(
            "cannot exempt a socket", str(error), "restart tp2; if it happens again, report it"
        ) from error
    with sock:
        rules.exempt(sock)


if __name__ == "__main__":
    main()
