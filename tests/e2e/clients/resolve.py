"""Look names up through the system's resolver, again and again, until standard input ends; print each failure.

Usage: resolve.py NAME=ADDRESS... The first line says that it has begun, the last one how many lookups there were.
"""

import select
import socket
import sys

EXPECTED = [argument.split("=") for argument in sys.argv[1:]]

count = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for name, address in EXPECTED:
        try:
            found = {info[4][0] for info in socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)}
        except OSError as error:
            print(f"{name}: {error}", flush=True)
        else:
            if found != {address}:
                print(f"{name}: {found}", flush=True)
        count += 1
    if count == len(EXPECTED):
        print("begun", flush=True)
print(f"{count} lookups")
