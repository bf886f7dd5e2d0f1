"""Say nonsense at every door of a running tp2. Usage: babble.py NAMESERVER SOCKS_PORT CONTROL_SOCKET SEED."""

import random
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

NAMESERVER, SOCKS_PORT, CONTROL, SEED = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])

chance = random.Random(SEED)

QUERY = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\3web\4shop\0" + struct.pack(">2H", 1, 1)
REQUEST = b"\5\1\0\5\1\0\3\x08web.shop\0P"
QUESTION = b'{"op": "status"}\n'


def mangled(sane: bytes) -> bytes:
    """Something sane with a few changes, or nothing sane at all."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(1500))
    data = bytearray(sane[: chance.choice([len(sane), chance.randrange(len(sane) + 1)])])
    for _ in range(chance.randrange(4)):
        if data:
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data) + chance.randbytes(chance.choice([0, 0, 5, 600]))


def converse(connect: Callable[[], socket.socket], said: Sequence[bytes]) -> None:
    # What comes back, and how it ends, is of no interest here.
    with suppress(OSError), connect() as connection:
        connection.settimeout(0.05)
        for part in said:
            connection.sendall(part)
        if chance.random() < 0.5:
            connection.shutdown(socket.SHUT_WR)
        if chance.random() < 0.8:
            connection.recv(4096)


def control() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(CONTROL)
    return connection


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
    dns.connect((NAMESERVER, 53))
    for _ in range(300):
        dns.send(mangled(QUERY))
for _ in range(60):
    framed = [struct.pack(">H", chance.choice([len(q), chance.randrange(65536)])) + q for q in [mangled(QUERY)] * 2]
    converse(lambda: socket.create_connection((NAMESERVER, 53), 5), framed)
    converse(lambda: socket.create_connection(("127.0.0.1", SOCKS_PORT), 5), [mangled(REQUEST)])
    converse(control, [mangled(QUESTION)])
