"""Look a fresh name up and connect in the very moment in which the answer is there, many times at once.

Usage: hammer.py NAMESERVER PORT NAME... Prints a line for each name that was not served by its own address.
"""

import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

NAMESERVER, PORT, *NAMES = sys.argv[1:]


def query(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def visit(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
        dns.settimeout(20)
        dns.connect((NAMESERVER, 53))
        dns.send(query(name))
        answer = dns.recv(4096)
        if answer[3] & 15 or not struct.unpack(">H", answer[6:8])[0]:
            return f"{name}: no answer, rcode {answer[3] & 15}"
        address = socket.inet_ntoa(answer[-4:])
        try:
            with socket.create_connection((address, int(PORT)), 20) as connection:
                greeting = connection.recv(100)
        except OSError as error:
            return f"{name}: {address}: {error}"
        return "" if greeting == f"220 {address}\r\n".encode() else f"{name}: {address} was answered by {greeting!r}"


with ThreadPoolExecutor(32) as pool:
    for complaint in filter(None, pool.map(visit, NAMES)):
        print(complaint)
