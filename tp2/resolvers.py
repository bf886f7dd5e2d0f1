"""Which nameservers are captured, and where the queries go that are not the cluster's; as of now, and ever after.

Options come first; what they leave open is taken from resolv.conf, and followed. When a nameserver is replaced, both
are captured for a while: programs read resolv.conf when they like, and those that still ask the former one are
answered too. Upstream moves at once.

systemd-resolved names itself in resolv.conf (127.0.0.53). It has a cache of its own, and getaddrinfo(3) may reach it
without sending it a packet, so the servers that it asks are captured as well; and tp2 asks those servers, not the
stub, whose queries would come back to tp2.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tp2.dns import resolvconf
from tp2.dns.resolvconf import ResolvConf
from tp2.errors import Tp2Error
from tp2.settings import Settings, SocketAddress
from tp2.system.filewatch import watching
from tp2.types import DNS_PORT

logger = logging.getLogger(__name__)

RESOLV_CONF: Final = Path("/etc/resolv.conf")

#: Where systemd-resolved says whom it asks, resolv.conf(5)'s way (systemd-resolved.service(8)).
UPLINKS: Final = Path("/run/systemd/resolve/resolv.conf")

#: The addresses at which systemd-resolved answers.
STUBS: Final = frozenset({"127.0.0.53", "127.0.0.54"})


#: Seconds for which a nameserver that is not in resolv.conf any more stays captured.
GRACE: Final = 30.0

#: Seconds that systemd-resolved may take to flush its cache.
FLUSH_TIMEOUT: Final = 2.0


@dataclass(frozen=True, slots=True)
class Resolvers:
    """``captured``: addresses whose port 53 comes to tp2. ``fallback``: where it sends what is not the cluster's.

    ``search``: what this machine's resolver appends to short names. ``systems``: whether this machine's programs ask
    one of the captured ones, rather than only whoever was told to.
    """

    captured: tuple[str, ...]
    fallback: tuple[SocketAddress, ...]
    search: tuple[str, ...] = ()
    systems: bool = True


def discover(settings: Settings, path: Path = RESOLV_CONF, uplinks: Path = UPLINKS) -> Resolvers:
    """Return the resolvers that *settings* ask for, the rest taken from resolv.conf(5) at *path*.

    :param uplinks: systemd-resolved's own list of servers, if its stub is among the nameservers.
    :raises Tp2Error: there is no nameserver to capture, or resolv.conf cannot be read.
    """
    try:
        conf = resolvconf.read(path)
    except Tp2Error:
        if not settings.dns:
            raise
        conf = ResolvConf()
    nameservers = settings.dns or conf.nameservers
    if not nameservers:
        raise Tp2Error(
            "cannot capture DNS",
            f"{path} names no nameserver",
            "name the nameserver that programs on this machine ask: --dns IP",
        )
    asked = nameservers
    if STUBS & set(nameservers) and uplinks.exists():
        behind = resolvconf.read(uplinks).nameservers
        asked = tuple(dict.fromkeys([*(address for address in nameservers if address not in STUBS), *behind])) or asked
        nameservers = (*nameservers, *behind)
    # A scope (fe80::1%eth0) says which link to use; rules match the address alone.
    captured = _unscoped(nameservers)
    fallback = settings.fallback or tuple(SocketAddress(address, DNS_PORT) for address in asked)
    return Resolvers(captured, fallback, conf.search, not set(captured).isdisjoint(_unscoped(conf.nameservers)))


def _unscoped(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(address.partition("%")[0] for address in addresses))


async def follow(
    settings: Settings,
    current: Resolvers,
    apply: Callable[[Resolvers], Awaitable[None]],
    *,
    path: Path = RESOLV_CONF,
    uplinks: Path = UPLINKS,
    grace: float = GRACE,
) -> None:
    """Call *apply* with the resolvers whenever they change from *current*, until cancelled.

    A file that is missing, empty or unreadable changes nothing: it is being written, or the machine is offline.
    """
    applied = current
    former: dict[str, float] = {}
    clock = asyncio.get_running_loop().time
    async with watching([path, uplinks]) as changed:
        while True:
            await _wait(changed, min(former.values()) - clock() if former else None)
            try:
                found = discover(settings, path, uplinks)
            except Tp2Error as error:
                logger.debug("keeping the nameservers: %s", error)
                found = current
            former |= {address: clock() + grace for address in current.captured if address not in found.captured}
            former = {a: until for a, until in former.items() if until > clock() and a not in found.captured}
            current, wanted = found, replace(found, captured=(*found.captured, *former))
            if wanted != applied:
                await apply(wanted)
                applied = wanted


async def flush_system_cache(resolvers: Resolvers) -> None:
    """Let systemd-resolved forget what it knows, if it is in use: names mean something else from now on."""
    program = shutil.which("resolvectl")
    if program is None or not STUBS & set(resolvers.captured):
        return
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(program, "flush-caches", stdin=null, stdout=null, stderr=null)
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT):
            code = await process.wait()
    except TimeoutError:
        process.kill()
        code = await process.wait()
    if code:
        logger.debug("resolvectl flush-caches ended with %d; old answers go when their time is up", code)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()
