"""Look names up through the system's resolver, again and again, until standard input ends; print each failure.

Usage: resolve.py NAME=ADDRESS... A line on standard input is answered by the line "round" when all names have been
looked up once more since.
"""

import select
import socket
import sys

EXPECTED = [argument.split("=") for argument in sys.argv[1:]]

while True:
    asked = ""
    if select.select([sys.stdin], [], [], 0)[0]:
        asked = sys.stdin.readline()
        if not asked:
            break
    for name, address in EXPECTED:
        try:
            found = {info[4][0] for info in socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)}
        except OSError as error:
            print(f"{name}: {error}", flush=True)
        else:
            if found != {address}:
                print(f"{name}: {found}", flush=True)
    if asked:
        print("round", flush=True)
