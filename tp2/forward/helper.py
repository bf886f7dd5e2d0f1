"""The privileged helper: the only part of tp2 that keeps root. Readable in one sitting, on purpose.

It is started by the daemon with one end of a socket pair as its standard input (through sudo where the user is not
root), claims the platform's rules, and then does what :mod:`tp2.forward.protocol` lists and nothing else. It reads
no files, opens no network connection, and takes one word of :data:`tp2.forward.platforms.KINDS`. Any end of the socket
(the daemon stopped, crashed or was killed) removes every rule; if the helper itself is killed, the kernel does so, or
a guardian (:mod:`tp2.forward.pfguard`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
from typing import NoReturn

from tp2.errors import ForwarderError, Tp2Error
from tp2.forward import protocol
from tp2.forward.platforms import AUTO, KINDS, choose
from tp2.forward.rules import Rules


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
            rules = choose(kind)
        except Tp2Error as error:
            channel.sendall(protocol.encode_reply(error))
            raise SystemExit(1) from error
        raise SystemExit(serve(channel, rules))


def serve(channel: socket.socket, rules: Rules) -> int:
    """Answer requests on *channel* with *rules* until it ends; return the exit code. Rules are gone afterwards."""
    descriptors: list[int] = []
    try:
        try:
            rules.open()
        except Tp2Error as error:
            channel.sendall(protocol.encode_reply(error))
            return 1
        channel.sendall(protocol.encode_hello(rules.kind, os.getpid()))
        buffer = bytearray()
        while True:
            data, received, _, _ = socket.recv_fds(channel, 65536, 16)
            descriptors += received
            if not data:
                return 0
            buffer += data
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                channel.sendall(_answer(protocol.decode_request(line), rules, descriptors))
            if len(buffer) > protocol.MAX_LINE:
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


def _answer(request: protocol.Request, rules: Rules, descriptors: list[int]) -> bytes:
    try:
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
