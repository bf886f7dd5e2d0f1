"""A helper in a network namespace, and sockets of that namespace in the hands of the test."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from tp2.forward import protocol
from tp2.forward.protocol import Request
from tp2.sandbox.namespaces import Host
from tp2.types import Destination

PATIENCE = 20.0

#: SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST (linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h).
ORIGINAL_DST = 80


class Helper:
    """A helper in a namespace, spoken to as the daemon does, but without an event loop."""

    def __init__(self, host: Host, *prefix: str, program: Sequence[str] = ("-m", "tp2.forward.helper")) -> None:
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(PATIENCE)
        with theirs:
            command = [*host.command(), *prefix, sys.executable, "-I", *program]
            self.process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno())
        self.lines = self.channel.makefile("rb")
        self.hello = self.lines.readline()

    @property
    def pid(self) -> int:
        return int(protocol.decode_reply(self.hello)["pid"])

    def ask(self, request: Request, *descriptors: int) -> bytes:
        line = protocol.encode_request(request)
        if descriptors:
            socket.send_fds(self.channel, [line], list(descriptors))
        else:
            self.channel.sendall(line)
        reply = self.lines.readline()
        protocol.decode_reply(reply)
        return reply

    def refused(self) -> dict[Destination, int]:
        return protocol.decode_refused(self.ask(protocol.Refused()))

    def close(self) -> None:
        self.lines.close()
        self.channel.close()
        self.process.wait(PATIENCE)


@contextmanager
def running(host: Host) -> Iterator[Helper]:
    helper = Helper(host)
    try:
        yield helper
    finally:
        helper.close()


# Makes sockets, as another user if told to, and hands them to its parent over descriptor 0.
_MAKER = """
import os, socket
channel = socket.socket(fileno=0)
while request := channel.recv(100):
    family, kind, user = map(int, request.split())
    os.seteuid(user)
    made = socket.socket(family, kind)
    os.seteuid(0)
    socket.send_fds(channel, [b"!"], [made.fileno()])
    made.close()
"""


class Sockets:
    """Makes sockets of a host: a socket belongs to the network namespace of the process that made it."""

    def __init__(self, host: Host) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*host.command(), sys.executable, "-I", "-c", _MAKER]
            self._process = subprocess.Popen(command, stdin=theirs.fileno())
        self._channel.settimeout(PATIENCE)
        self._made: list[socket.socket] = []

    def make(self, kind: int, *, is_ipv6: bool = False, user: int = 0) -> socket.socket:
        """Return a new socket of *kind* (SOCK_STREAM) that belongs to *user*, with a timeout."""
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        self._channel.send(f"{int(family)} {int(kind)} {user}".encode())
        _, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        made = socket.socket(fileno=descriptors[0])
        made.settimeout(PATIENCE)
        self._made.append(made)
        return made

    def listen(self, address: str, port: int, *, user: int = 0, interface: str = "") -> socket.socket:
        """Return a listening TCP socket, bound to an interface too if one is named."""
        made = self._bound(socket.SOCK_STREAM, address, port, user, interface)
        made.listen()
        return made

    def udp(self, address: str, port: int, *, user: int = 0, interface: str = "") -> socket.socket:
        """Return a UDP socket with an address."""
        return self._bound(socket.SOCK_DGRAM, address, port, user, interface)

    def connect(self, destination: Destination, timeout: float = PATIENCE) -> socket.socket:
        """Return a TCP connection to *destination*.

        :raises OSError: as connect(2) does.
        """
        made = self.make(socket.SOCK_STREAM, is_ipv6=destination.is_ipv6)
        made.settimeout(timeout)
        made.connect(tuple(destination))
        return made

    def _bound(self, kind: int, address: str, port: int, user: int, interface: str) -> socket.socket:
        made = self.make(kind, is_ipv6=":" in address, user=user)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if interface:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        made.bind((address, port))
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for made in self._made:
            made.close()
        self._channel.close()
        self._process.wait(PATIENCE)


def arrives(connection: socket.socket, listener: socket.socket) -> socket.socket:
    """Return the other end of *connection*, which has to come in at *listener*."""
    accepted, peer = listener.accept()
    accepted.settimeout(PATIENCE)
    assert peer[:2] == connection.getsockname()[:2]
    return accepted


def original_destination(accepted: socket.socket) -> Destination:
    """Return where a redirected connection was meant to go."""
    if accepted.family == socket.AF_INET6:
        raw = accepted.getsockopt(socket.IPPROTO_IPV6, ORIGINAL_DST, 28)
        return Destination(socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big"))
    raw = accepted.getsockopt(socket.SOL_IP, ORIGINAL_DST, 16)
    return Destination(socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big"))


def ruleset(host: Host) -> str:
    return host.run("nft", "list", "ruleset")


def network(host: Host) -> dict[str, str]:
    """Return all of a host's network that tp2 might touch.

    Without what the kernel itself changes for a while after an interface came up: its state, and link-local addresses.
    """

    def routes(*family: str) -> str:
        lines = host.run("ip", *family, "route", "show", "table", "all").replace(" linkdown", "").splitlines()
        return "\n".join(line for line in lines if "fe80:" not in line and "ff00:" not in line)

    return {
        "rules": ruleset(host),
        "links": "".join(line.split()[0] + "\n" for line in host.run("ip", "-brief", "link").splitlines()),
        "addresses": host.run("ip", "-oneline", "addr", "show", "scope", "global"),
        "routes": routes(),
        "routes6": routes("-6"),
        "policy": host.run("ip", "rule") + host.run("ip", "-6", "rule"),
    }
