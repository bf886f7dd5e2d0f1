"""A link that takes its time: the packets that pass through one host of a sandbox are held for half a round trip.

netem does this in the kernel, where it is compiled in; this does it with a TUN device, for TCP as it is: real packets,
real windows, real congestion control. All packets that come in by the host's cables are routed into the device, read,
held, and written back, after which they are routed as they would have been. The kernel hands over segments of up to
64 KiB and takes them back (TUN offloads), so that a Gbit/s is a few thousand packets a second.

Run inside the host, by path, with nothing but the standard library: ``delay.py INTERFACE...``. Each line of standard
input is a round trip in milliseconds, answered by the same line when it is in force; 0 takes the device out of the
way. What was held goes out first.
"""

from __future__ import annotations

import collections
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

DEVICE = "delay"
TABLE = "100"

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
VNET_HEADER = 10
# A segment of the largest size with its headers and the device's own.
LARGEST = 65536 + 64 + VNET_HEADER


class Delay:
    """The device. ``seconds`` is how long each packet is held."""

    def __init__(self, interfaces: list[str]) -> None:
        self.seconds = 0.0
        self._interfaces = interfaces
        self._held: collections.deque[tuple[float, bytes]] = collections.deque()
        self._device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(
            self._device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
        )
        fcntl.ioctl(self._device, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        fcntl.ioctl(self._device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
        # Nothing may be lost here, however late this program is: a lost packet is another experiment.
        _ip("link", "set", DEVICE, "mtu", "1500", "txqueuelen", "100000", "up")
        _ip("route", "replace", "default", "dev", DEVICE, "table", TABLE)

    def set(self, seconds: float) -> None:
        """Hold packets for *seconds* from now on; 0 leads them past the device."""
        if seconds and not self.seconds:
            for interface in self._interfaces:
                _ip("rule", "add", "iif", interface, "lookup", TABLE)
        if self.seconds and not seconds:
            for interface in self._interfaces:
                _ip("rule", "del", "iif", interface, "lookup", TABLE)
            while self._held or self._take(time.monotonic() + self.seconds):
                time.sleep(0.001)
                self._let_go()
        self.seconds = seconds

    def run(self, commands: int) -> None:
        """Hold and let go, and do what *commands* (a descriptor) says, until it ends."""
        while True:
            wait = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
            ready, _, _ = select.select([self._device, commands], [], [], wait)
            if self._device in ready:
                self._take(time.monotonic() + self.seconds)
            self._let_go()
            if commands in ready:
                line = os.read(commands, 100)
                if not line:
                    return
                self.set(float(line) / 2000)
                os.write(1, line)

    def _take(self, due: float) -> int:
        """Read what there is, in turns that leave time for what is due; return how many packets."""
        for count in range(64):
            try:
                self._held.append((due, os.read(self._device, LARGEST)))
            except BlockingIOError:
                return count
        return 64

    def _let_go(self) -> None:
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            os.write(self._device, self._held.popleft()[1])


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    delay = Delay(sys.argv[1:])
    delay.run(0)
