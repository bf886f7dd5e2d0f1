"""The text of tp2's pf anchor, from what is wanted: a pure function, tested to the letter.

What starts on this machine leaves by some interface, and only what comes *in* can be redirected. So there are two
rules for each destination: a filter rule sends the packet to the loopback interface instead (``route-to lo0``), and
a translation rule redirects it where it comes in there (``rdr pass on lo0``). pf.conf(5) of macOS and of FreeBSD have
the same grammar for all of this, and the text is the same for both:

======================================== ============================================================================
part of a rule                           why
======================================== ============================================================================
translation before filtering             the grammar demands this order, and a newline at the end
``quick``                                a later anchor must not undo the decision (VPN clients append theirs)
no ``on`` interface in filter rules      the way out may be a VPN's interface, and change
``flags S/SA`` on TCP, never on UDP      connections that were there before are left alone
``from ! 127.0.0.1``                     macOS applies redirects in reverse to what leaves without a state: the answer
                                         to somebody who connected to the local port itself would be rewritten
``no rdr`` and ``pass`` by source port   tp2's own queries (:data:`EXEMPT_PORTS`) go their way
======================================== ============================================================================

A nameserver on the loopback itself needs no filter rule, since its packets come in there anyway; but its clients have
a loopback address, so ``from`` is ``any``.

A connection to an address of the cluster that no redirect names is sent to :data:`REFUSING_PORT`, where nobody
listens: the reset comes from the TCP stack itself, by the way that all answers take. ``block return-rst`` would be
the other way, but macOS loses those resets on wired Ethernet.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from typing import Final

from tp2.types import Redirect

#: Source ports of tp2's own queries. Below the ephemeral ports of macOS (49152) and FreeBSD (10000), so that nobody
#: else's query has one by chance.
EXEMPT_PORTS: Final = range(6144, 8192)

#: tcpmux (RFC 1078), which nobody has offered for decades.
REFUSING_PORT: Final = 1

#: The table that holds the cluster's addresses, of both families.
CLUSTER: Final = "<tp2_cluster>"

_EXEMPT: Final = f"from any port {EXEMPT_PORTS.start}:{EXEMPT_PORTS.stop - 1}"
_STATE: Final = {"tcp": "flags S/SA keep state", "udp": "keep state"}


def anchor_text(
    redirects: Iterable[Redirect], nameservers: Iterable[str], dns_port: int, cluster: Collection[str]
) -> str:
    """Return the rules that do all of this, as pf.conf(5) text.

    :param redirects: one for each destination.
    :param nameservers: addresses whose port 53, UDP and TCP, goes to *dns_port* on the loopback.
    :param cluster: addresses at which TCP that nothing else names is refused.
    """
    exempting: list[str] = []
    translation: list[str] = []
    passing: list[str] = []
    routing: list[str] = []
    for address in dict.fromkeys(nameservers):
        is_local = ipaddress.ip_address(address).is_loopback
        for protocol in ("udp", "tcp"):
            traffic = f"{_family(address)} proto {protocol}"
            to = f"to {address} port 53"
            if is_local:
                exempting.append(f"no rdr on lo0 {traffic} {_EXEMPT} {to}")
                translation.append(f"rdr pass on lo0 {traffic} from any {to} {_arrow(address, dns_port)}")
            else:
                passing.append(f"pass out quick {traffic} {_EXEMPT} {to} {_STATE[protocol]}")
                translation.append(_redirect(traffic, address, to, dns_port))
                routing.append(_route(protocol, traffic, to))
    for (address, port), local_port, local_address in redirects:
        traffic = f"{_family(address)} proto tcp"
        to = f"to {address} port {port}"
        translation.append(_redirect(traffic, address, to, local_port, local_address))
        routing.append(_route("tcp", traffic, to))
    # One address of each family stands for all of it: the rules name the table.
    for family, address in {_family(address): address for address in cluster}.items():
        traffic = f"{family} proto tcp"
        translation.append(_redirect(traffic, address, f"to {CLUSTER}", REFUSING_PORT))
        routing.append(_route("tcp", traffic, f"to {CLUSTER}"))
    table = [f"table {CLUSTER} {{ {', '.join(cluster)} }}"] if cluster else []
    return "\n".join([*table, *exempting, *translation, *passing, *routing]) + "\n"


def _family(address: str) -> str:
    return "inet6" if ":" in address else "inet"


def _loopback(address: str) -> str:
    """Return the loopback address of the family of *address*."""
    return "::1" if ":" in address else "127.0.0.1"


def _redirect(traffic: str, address: str, to: str, local_port: int, local_address: str | None = None) -> str:
    # Another address of the loopback network is connected to from that address, or from the first.
    not_from = _loopback(address) if local_address is None else "127.0.0.0/8"
    return f"rdr pass on lo0 {traffic} from ! {not_from} {to} {_arrow(address, local_port, local_address)}"


def _arrow(address: str, local_port: int, local_address: str | None = None) -> str:
    return f"-> {local_address or _loopback(address)} port {local_port}"


def _route(protocol: str, traffic: str, to: str) -> str:
    return f"pass out quick route-to lo0 {traffic} from any {to} {_STATE[protocol]}"
