"""Telling the service manager how far tp2 is: systemd's notification protocol, sd_notify(3).

The manager names a Unix datagram socket in ``NOTIFY_SOCKET``, and takes lines of ``NAME=value``. Without that variable
nobody waits for a word, and nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

logger = logging.getLogger(__name__)

#: A manager that does not read must not hold tp2 up; in seconds.
_PATIENCE: Final = 1.0


def ready() -> bool:
    """Say that the start is complete: what is ordered after this service may start now. Whether anybody was told."""
    return _send("READY=1")


def stopping() -> bool:
    """Say that tp2 has begun to stop. Whether anybody was told."""
    return _send("STOPPING=1")


def status(words: str) -> bool:
    """Say in a line how it is; ``systemctl status`` shows it. Whether anybody was told."""
    return _send(f"STATUS={' '.join(words.split())}")


def _send(state: str) -> bool:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        # Nobody asked, or over a transport that only virtual machines have.
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_PATIENCE)
            # "@" stands for the null byte of an abstract address (unix(7)).
            sock.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError as error:
        logger.debug("the service manager cannot be told %r: %s", state, error)
        return False
    return True
