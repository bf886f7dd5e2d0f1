"""Which nameservers are captured, and where the queries go that are not the cluster's.

Options come first; what they leave open is taken from resolv.conf.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tp2.dns import resolvconf
from tp2.errors import Tp2Error
from tp2.settings import Settings, SocketAddress

RESOLV_CONF: Final = Path("/etc/resolv.conf")

DNS_PORT: Final = 53


@dataclass(frozen=True, slots=True)
class Resolvers:
    """``captured``: addresses whose port 53 comes to tp2. ``fallback``: where it sends what is not the cluster's."""

    captured: tuple[str, ...]
    fallback: tuple[SocketAddress, ...]


def discover(settings: Settings, path: Path = RESOLV_CONF) -> Resolvers:
    """Return the resolvers that *settings* ask for, the rest taken from resolv.conf(5) at *path*.

    :raises Tp2Error: there is no nameserver to capture, or resolv.conf cannot be read.
    """
    nameservers = settings.dns
    if not nameservers:
        nameservers = tuple(resolvconf.read(path).nameservers)
        if not nameservers:
            raise Tp2Error(
                "cannot capture DNS",
                f"{path} names no nameserver",
                "name the nameserver that programs on this machine ask: --dns IP",
            )
    # A scope (fe80::1%eth0) says which link to use; rules match the address alone.
    captured = tuple(dict.fromkeys(address.partition("%")[0] for address in nameservers))
    fallback = settings.fallback or tuple(SocketAddress(address, DNS_PORT) for address in nameservers)
    return Resolvers(captured, fallback)
