"""Visit all ports of many services, in rounds, each as soon as it is looked up, while other connections stay open.

Usage: churn.py NAMESERVER FIRST-PORT PORTS NAME=ADDRESS...

Reads a line of standard input before each round, and prints a line of JSON after it: how many connections there were,
and what was wrong with any. Ends with its input; the connections that stayed have been used in each round.
"""

import json
import random
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor

NAMESERVER, FIRST, COUNT, *NAMED = sys.argv[1:]
PORTS = range(int(FIRST), int(FIRST) + int(COUNT))
SERVICES = [tuple(item.split("=")) for item in NAMED]

#: Seconds: less than the TTL of tp2's answers, by what a connection may take on a busy machine.
LOOK_AGAIN = 2.0

STAYING = SERVICES[:: max(1, len(SERVICES) // 20)]


def query(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", random.getrandbits(16), 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def look_up(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
        dns.settimeout(20)
        dns.connect((NAMESERVER, 53))
        dns.send(query(name))
        answer = dns.recv(4096)
    return f"rcode {answer[3] & 15}" if answer[3] & 15 else socket.inet_ntoa(answer[-4:])


def greeted(address: str, port: int) -> socket.socket | str:
    connection = socket.create_connection((address, port), 20)
    greeting = connection.makefile("rb").readline()
    if greeting == f"220 {address} {port}\r\n".encode():
        return connection
    connection.close()
    return f"{address} port {port} was answered by {greeting!r}"


def visit(service: tuple[str, ...]) -> list[str]:
    name, address = service
    wrong: list[str] = []
    asked = -LOOK_AGAIN
    for port in PORTS:
        # As a resolver does: an answer is good for as long as it says, and not for longer.
        if time.monotonic() - asked >= LOOK_AGAIN:
            asked = time.monotonic()
            found = look_up(name)
            if found != address:
                return [*wrong, f"{name}: {found}"]
        try:
            connection = greeted(address, port)
        except OSError as error:
            wrong.append(f"{name} port {port}: {error}, {time.monotonic() - asked:.1f} s after the lookup")
        else:
            if isinstance(connection, str):
                wrong.append(f"{name}: {connection}")
            else:
                connection.close()
    return wrong


def stay(service: tuple[str, ...]) -> tuple[str, socket.socket]:
    name, address = service
    assert look_up(name) == address
    connection = greeted(address, PORTS[0])
    assert not isinstance(connection, str), connection
    return name, connection


def use(staying: tuple[str, socket.socket]) -> list[str]:
    name, connection = staying
    words = f"{name} {random.random()}\n".encode()
    try:
        connection.sendall(words)
        heard = connection.makefile("rb").readline()
    except OSError as error:
        return [f"the connection to {name} that stayed: {error}"]
    return [] if heard == words else [f"{name} repeated {heard!r}"]


connections = [stay(service) for service in STAYING]
with ThreadPoolExecutor(16) as pool:
    for _ in sys.stdin:
        random.shuffle(SERVICES)
        wrong = [word for words in pool.map(visit, SERVICES) for word in words]
        wrong += [word for words in pool.map(use, connections) for word in words]
        print(json.dumps({"visits": len(SERVICES) * len(PORTS), "wrong": wrong[:10]}), flush=True)
