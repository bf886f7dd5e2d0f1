"""Nameservers as the rest of the room speaks of them, and the words for what is wrong with one. Pure."""

from __future__ import annotations

import os

# A numeric address, an IPv6 scope included, and a port.
Server = tuple[str, int]


def server_text(server: Server) -> str:
    """A server as people write it: the port only where it is not the usual one."""
    address, port = server
    if port == 53:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def error_text(error: OSError | EOFError) -> str:
    """The system's words for *error*."""
    if isinstance(error, EOFError):
        return "closed the connection without an answer"
    # asyncio puts words of its own, with the address in them, in the place of strerror.
    known = error.errno is not None and error.errno > 0
    return (os.strerror(error.errno or 0) if known else error.strerror or str(error)).lower()
