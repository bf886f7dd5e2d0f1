"""Noticing that the machine woke up, or that its network changed: the moments at which connections are dead unnoticed.

Waking is seen by the clock: a timer that should have fired a second after the last one fired much later by the wall
clock, because the machine slept, or this process was stopped. A changed network is told by the kernel where it tells
(rtnetlink(7) on Linux): addresses, routes and links, in bunches, of which one event is made.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tp2.types import ROUTE_PROTOCOL

logger = logging.getLogger(__name__)

#: Seconds between two looks at the clock, and by how many more the wall clock must have moved to call it sleep.
TICK: Final = 1.0
SLEPT: Final = 2.0

#: Seconds of quiet that end a bunch of changes: taking a network down and bringing another up is dozens of messages.
QUIET: Final = 0.2

# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE (linux/rtnetlink.h)
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400

# RTM_NEWROUTE, RTM_DELROUTE
_ROUTE_KINDS: Final = (24, 25)


async def watch(changed: Callable[[str], None]) -> None:
    """Call *changed*, with words for the log, after each wake-up and each change of the network, until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch_clock(changed))
        if sys.platform == "linux":
            group.create_task(_watch_network(changed))


async def _watch_clock(changed: Callable[[str], None], clock: Callable[[], float] = time.time) -> None:
    last = clock()
    while True:
        await asyncio.sleep(TICK)
        now = clock()
        if now - last > TICK + SLEPT:
            changed(f"this machine, or tp2, slept for {now - last:.0f} s")
        last = now


async def _watch_network(changed: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.setblocking(False)
        sock.bind((0, _GROUPS))
        loop.add_reader(sock, _drain, sock, told)
        try:
            while True:
                await told.wait()
                # Wait for the end of the bunch.
                while told.is_set():
                    told.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(QUIET):
                            await told.wait()
                changed("the network changed")
        finally:
            loop.remove_reader(sock)


def _drain(sock: socket.socket, told: asyncio.Event) -> None:
    """Read what the kernel tells; what exactly hardly matters, so neither does a message that was lost (ENOBUFS)."""
    while True:
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            logger.debug("rtnetlink: %s", error)
        else:
            if _is_our_own(data):
                continue
        told.set()


def has_address(address: str) -> bool:
    """Whether *address* still is one of this machine's: a connection from one that it lost is dead for certain."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as own:
        try:
            own.bind((address, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _is_our_own(data: bytes) -> bool:
    """Whether a notification is of a route that tp2's helper set: that changes nothing for anybody else.

    Each comes by itself: a header of 16 bytes with its kind, then rtmsg with the protocol in byte 5 (rtnetlink(7)).
    """
    return len(data) >= 28 and int.from_bytes(data[4:6], sys.byteorder) in _ROUTE_KINDS and data[21] == ROUTE_PROTOCOL
