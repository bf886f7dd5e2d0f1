"""Which interfaces have containers behind them. Pure.

``auto`` means the bridges of container and virtual machine engines, by their names, as long as nothing else is behind
them: a bridge that has a network card in it (as people make them for virtual machines that are to be on the LAN) would
let in whoever is on that network. A name that the user gives is taken as it is; they are told what it opens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tp2.settings import AUTO, OFF

#: Docker (its default bridge, those of its networks, Swarm's), Podman, CNI, nerdctl, LXC, LXD, Incus, libvirt.
_ENGINES: Final = re.compile(
    r"docker0|br-[0-9a-f]{12}|docker_gwbridge|podman\d+|cni-podman\d+|cni\d+|nerdctl\d+|lxcbr\d+|lxdbr\d+|incusbr\d+"
    r"|virbr\d+"
)

#: What a container or a virtual machine is plugged in with (IFLA_INFO_KIND); a dummy leads nowhere.
_PLUGS: Final = frozenset({"veth", "tun", "dummy"})


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface.

    ``kind`` is the kernel's word for a virtual one (``bridge``, ``veth``), ``""`` for a network card. ``master`` is the
    index of the bridge that it is in, or 0. ``ipv4`` and ``ipv6`` are its own addresses to which redirects lead (the
    first of each family, no link-local one), or None.
    """

    index: int
    name: str
    kind: str = ""
    master: int = 0
    up: bool = True
    ipv4: str | None = None
    ipv6: str | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its own addresses, one a family."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


def chosen(links: Sequence[Link], wanted: Iterable[str]) -> tuple[list[Link], list[str]]:
    """Return the interfaces that containers come in by, in the order of their names; and what to tell the user.

    :param wanted: names of interfaces, ``auto`` and ``off``. Interfaces that do not exist yet may appear later.
    """
    words = set(wanted)
    if OFF in words:
        return [], []
    found, notes = [], []
    for link in sorted(links, key=lambda link: link.name):
        if not link.up or not link.addresses:
            continue
        outside = sorted(port.name for port in links if port.master == link.index and port.kind not in _PLUGS)
        if link.name in words:
            found.append(link)
            if link.kind not in ("bridge", *_PLUGS):
                notes.append(f"whoever is on the network of {link.name} reaches the cluster: it is no bridge")
            elif outside:
                notes.append(f"whoever is on the network of {', '.join(outside)} reaches the cluster by {link.name}")
        elif AUTO in words and link.kind == "bridge" and _ENGINES.fullmatch(link.name):
            if outside:
                notes.append(
                    f"containers on {link.name} do not reach the cluster, nor does the network of"
                    f" {', '.join(outside)}, which is in it too; to let both: --containers {link.name}"
                )
            else:
                found.append(link)
    return found, notes
