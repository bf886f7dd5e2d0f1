"""A small client whose every visit is timed. Run on a sandbox's laptop: ``python -m bench.visitor WHAT ARGUMENT...``.

======================================== ==================================================================
first ADDRESS PORT COUNT                 seconds from the start of each of COUNT connections, one after the
                                         other, to the first byte of its answer
kept ADDRESS PORT SECONDS                seconds that each request on one kept connection took, with pauses
hold ADDRESS PORT COUNT                  opens COUNT connections, asks once on each, prints COUNT, and asks
                                         once more on each when standard input ends
lookups SERVER NAME ADDRESS SECONDS      seconds that each lookup of NAME took, with pauses; each has to
                                         give ADDRESS, and nothing else
arrival SERVER NAME                      when the first request by NAME was answered, on the monotonic clock:
                                         prints "asking", then tries until one has succeeded
departure                                when no nftables rule was left, on the monotonic clock: prints
                                         "looking", then looks until that is so
======================================== ==================================================================

The outcome goes to standard output as JSON.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from typing import Final

from dnslib import A, DNSRecord

#: Seconds between two visits of the same: a busy person, not a flood.
PAUSE: Final = 0.005

#: Connections that are opened at a time, where there are many.
SOME: Final = 50

#: Seconds after which something that should happen has not.
PATIENCE: Final = 30.0


def first(address: str, port: int, count: int) -> list[float]:
    """Time to the first byte of *count* new connections."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        with socket.create_connection((address, port), PATIENCE) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(_request(address, close=True))
            received = sock.recv(1)
            times.append(time.perf_counter() - began)
            while data := sock.recv(65536):
                received += data
        _check(received)
        time.sleep(PAUSE)
    return times


def kept(address: str, port: int, seconds: float) -> list[float]:
    """Time requests on one connection."""
    times = []
    end = time.monotonic() + seconds
    with socket.create_connection((address, port), PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < end:
            began = time.perf_counter()
            _ask(sock, address)
            times.append(time.perf_counter() - began)
            time.sleep(PAUSE)
    return times


def hold(address: str, port: int, count: int) -> None:
    """Hold connections open."""
    connections: list[socket.socket] = []
    while len(connections) < count:
        some = [socket.create_connection((address, port), PATIENCE) for _ in range(min(SOME, count - len(connections)))]
        _ask_all(some, address)
        connections += some
    _say(str(len(connections)))
    sys.stdin.read()
    for start in range(0, count, SOME):
        _ask_all(connections[start : start + SOME], address)


def lookups(server: str, name: str, address: str, seconds: float) -> list[float]:
    """Time lookups of *name*."""
    query = DNSRecord.question(name).pack()
    times = []
    end = time.monotonic() + seconds
    with _resolver(server) as sock:
        while time.monotonic() < end:
            began = time.perf_counter()
            sock.send(query)
            reply = sock.recv(4096)
            times.append(time.perf_counter() - began)
            if _addresses(reply) != [address]:
                raise SystemExit(f"{name} is {_addresses(reply)}, not {address}")
            time.sleep(PAUSE)
    return times


def arrival(server: str, name: str) -> float:
    """Return when the first request by *name* was answered."""
    query = DNSRecord.question(name).pack()
    _say("asking")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            with _resolver(server) as sock:
                # Soon lost, if whoever answers is being started: asked again rather than waited for.
                sock.settimeout(0.1)
                sock.send(query)
                (address,) = _addresses(sock.recv(4096))
            with socket.create_connection((address, 80), 1) as sock:
                _ask(sock, name)
                return time.monotonic()
        except (OSError, ValueError):
            time.sleep(PAUSE)
    raise SystemExit(f"{name} was not answered within {PATIENCE} s")


def departure() -> float:
    """Return when no nftables rule was left."""
    _say("looking")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not subprocess.run(("nft", "list", "tables"), check=True, stdout=subprocess.PIPE).stdout:
            return time.monotonic()
        time.sleep(PAUSE)
    raise SystemExit(f"there are rules left after {PATIENCE} s")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _request(host: str, *, close: bool = False) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {host}\r\n{'Connection: close' if close else 'Accept: */*'}\r\n\r\n".encode()


def _ask(sock: socket.socket, host: str) -> None:
    """One request, and all of its answer."""
    sock.sendall(_request(host))
    _receive(sock)


def _ask_all(connections: list[socket.socket], host: str) -> None:
    for sock in connections:
        sock.sendall(_request(host))
    for sock in connections:
        _receive(sock)


def _receive(sock: socket.socket) -> None:
    received = b""
    while True:
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("the connection ended within an answer")
        received += data
        head, found, body = received.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split()[0]):
            break
    _check(received)


def _check(received: bytes) -> None:
    if not received.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(f"this is no page: {received[:100]!r}")


def _resolver(server: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((server, 53))
    sock.settimeout(PATIENCE)
    return sock


def _addresses(reply: bytes) -> list[str]:
    return [str(record.rdata) for record in DNSRecord.parse(reply).rr if isinstance(record.rdata, A)]


def main(arguments: list[str]) -> None:
    """Run what *arguments* say, and print the outcome."""
    outcome: object
    match arguments:
        case ["first", address, port, count]:
            outcome = first(address, int(port), int(count))
        case ["kept", address, port, seconds]:
            outcome = kept(address, int(port), float(seconds))
        case ["hold", address, port, count]:
            return hold(address, int(port), int(count))
        case ["lookups", server, name, address, seconds]:
            outcome = lookups(server, name, address, float(seconds))
        case ["arrival", server, name]:
            outcome = arrival(server, name)
        case ["departure"]:
            outcome = departure()
        case _:
            raise SystemExit(__doc__)
    return json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"visitor: {error}")
