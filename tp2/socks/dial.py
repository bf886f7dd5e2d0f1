"""A plain TCP connection to the SSH endpoint: resolve the name, try its addresses one after the other.

The daemon may pass its own function of the same shape to the tunnel, for instance one that marks the socket so
that the connection to the cluster does not pass through tp2's own rules.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

ADDRESS_TIMEOUT = 5.0
"""Seconds for one address: a dead first address must leave time for the next within the tunnel's bound."""


async def dial(host: str, port: int) -> socket.socket:
    """Connect to *host* (name or address) and return the connected, non-blocking socket.

    :raises OSError: of the last address tried, or of the name resolution (:class:`socket.gaierror`).
    """
    loop = asyncio.get_running_loop()
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            return await _dial_address(socket.socket(family, kind, protocol), address)
        except OSError as error:
            failure = error
    raise failure


async def _dial_address(sock: socket.socket, address: tuple[Any, ...]) -> socket.socket:
    try:
        sock.setblocking(False)
        async with asyncio.timeout(ADDRESS_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def has_address(address: str) -> bool:
    """Whether *address* still is one of this machine's: a connection from one that it lost is dead for certain."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True
