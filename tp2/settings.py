"""What the user asked for, as one frozen value, and the parsing of every value that has a form of its own.

Nothing here is discovered: what the user left out is ``None`` or empty, and the part that knows finds it out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tp2.errors import UsageError

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network


class Mode(StrEnum):
    """How a connection's destination is known: by its local port, or by asking the kernel."""

    PORTMAP = "portmap"
    ORIGDST = "origdst"


class Via(StrEnum):
    """How the endpoint that is installed in the cluster is reached: by the API server's port-forward, at its load
    balancer's address, or at that where it answers and by the port-forward otherwise."""

    AUTO = "auto"
    API = "api"
    DIRECT = "direct"


class Rules(StrEnum):
    """Which of the operating system's forwarding rules are used: what this machine has, or those that are named."""

    AUTO = "auto"
    NFTABLES = "nftables"
    PF = "pf"


class Remote(NamedTuple):
    """The SSH endpoint: ``[USER@]HOST[:PORT]``."""

    host: str
    port: int = 22
    user: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}" if self.user else f"{host}:{self.port}"


class SocketAddress(NamedTuple):
    """An IP address and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


#: Below Linux' ephemeral ports (32768) and Kubernetes' node ports (30000), above most services.
DEFAULT_PORTS: Final = range(20000, 30000)
DEFAULT_SOCKS: Final = SocketAddress("127.0.0.1", 1080)
DEFAULT_IDLE_TIMEOUT: Final = 600.0
DEFAULT_CLUSTER_DOMAIN: Final = "cluster.local"
DEFAULT_DIAL_TIMEOUT: Final = 10.0
DEFAULT_ENDPOINT_NAMESPACE: Final = "tp2-system"

#: The two words that ``--containers`` takes besides names of interfaces.
AUTO: Final = "auto"
OFF: Final = "off"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything ``tp2 up`` can be told. Times are seconds."""

    mode: Mode = Mode.PORTMAP
    kubeconfig: Path | None = None
    context: str | None = None
    namespaces: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    fallback: tuple[SocketAddress, ...] = ()
    cluster_domain: str = DEFAULT_CLUSTER_DOMAIN
    exclude: tuple[str | IPv4Network | IPv6Network, ...] = ()
    remote: Remote | None = None
    via: Via = Via.AUTO
    endpoint_namespace: str = DEFAULT_ENDPOINT_NAMESPACE
    socks_upstream: Remote | None = None
    dial_timeout: float = DEFAULT_DIAL_TIMEOUT
    identity: Path | None = None
    host_key: str | None = None
    socks: SocketAddress = DEFAULT_SOCKS
    socks_auth: Path | None = None
    idle_timeout: float = DEFAULT_IDLE_TIMEOUT
    ports: range = DEFAULT_PORTS
    containers: tuple[str, ...] = (AUTO,)
    forwarder: Rules = Rules.AUTO
    metrics: SocketAddress | None = None
    verbose: bool = False

    @property
    def excluded_names(self) -> tuple[str, ...]:
        """The names that are not the cluster's."""
        return tuple(item for item in self.exclude if isinstance(item, str))

    @property
    def excluded_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks whose addresses are not captured."""
        return tuple(item for item in self.exclude if not isinstance(item, str))


def parse_address(text: str) -> str:
    """Return the canonical form of an IPv4 or IPv6 address.

    :raises UsageError: *text* is none.
    """
    import netaddr  # 60 ms that 'tp2 mappings' need not pay

    try:
        # Without the flag, netaddr reads "1" as 0.0.0.1, as inet_aton(3) does.
        return str(netaddr.IPAddress(text.strip("[]"), flags=netaddr.INET_PTON))
    except (netaddr.AddrFormatError, ValueError) as error:
        raise UsageError(f"{text!r} is no IP address", "it is neither IPv4 nor IPv6", "write it as 10.0.0.1") from error


def parse_domain(text: str) -> str:
    """Return a domain name in lower case, without dots at its ends.

    :raises UsageError: *text* is none (RFC 1035 section 2.3.1, with the underscores that people use).
    """
    name = text.strip(".").lower()
    if len(name) > 253 or not all(
        re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", label) for label in name.split(".")
    ):
        raise UsageError(
            f"{text!r} is no domain name", "its labels are letters, digits and dashes", "write it as cluster.local"
        )
    return name


def parse_exclusion(text: str) -> str | IPv4Network | IPv6Network:
    """Return what ``--exclude`` is given: a domain name, or a network as ``ADDRESS[/LENGTH]``.

    A name stands for all names below it anyhow, so ``*.`` before it is as good as nothing.

    :raises UsageError: *text* is neither.
    """
    import ipaddress

    try:
        # The address of a machine in the network says as well which network is meant.
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        if "/" in text or ":" in text:
            raise UsageError(
                f"{text!r} is no network", "a network is an address and the length of its prefix", "as in 10.96.0.0/16"
            ) from error
    return parse_domain(text.removeprefix("*."))


def parse_interface(text: str) -> str:
    """Return the name of a network interface, or one of the words ``auto`` and ``off``.

    :raises UsageError: no interface can have this name (on Linux: 15 bytes without blanks, slashes and colons).
    """
    if not re.fullmatch(r"[A-Za-z0-9_.@+-]{1,15}", text) or text in (".", "..", "lo"):
        raise UsageError(
            f"{text!r} is no interface of containers", "no bridge can have this name", "'ip link' lists their names"
        )
    return text


def parse_target(text: str) -> tuple[str, int | None]:
    """Return what ``tp2 map`` is given: an IP address or a name, and a port or None. An address needs a port.

    :raises UsageError: *text* is not ``IP:PORT`` or ``NAME[:PORT]``.
    """
    host, colon, port = text.rpartition(":")
    if text.startswith("[") or text.count(":") > 1 or re.fullmatch(r"[\d.]+", host or text):
        return parse_socket_address(text)
    if not colon:
        return parse_domain(text), None
    return parse_domain(host), parse_port(port)


def check_target(text: str) -> str:
    """Return *text* if it is a target; see :func:`parse_target`.

    :raises UsageError: it is none.
    """
    parse_target(text)
    return text


def parse_port(text: str) -> int:
    """Return a port from 1 to 65535.

    :raises UsageError: *text* is none.
    """
    if text.isascii() and text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise UsageError(f"{text!r} is no port", "a port is a number from 1 to 65535", "write it as in 127.0.0.1:1080")


def parse_socket_address(text: str, default_port: int | None = None) -> SocketAddress:
    """Return ``IP:PORT`` or ``[IPV6]:PORT``; the port may be left out if there is a *default_port*.

    :raises UsageError: *text* is neither.
    """
    bracketed = re.fullmatch(r"\[(?P<address>[^\]]+)\](?::(?P<port>.*))?", text)
    if bracketed:
        address, port = bracketed["address"], bracketed["port"]
    elif text.count(":") == 1:
        address, port = text.split(":")
    else:
        address, port = text, None
    if port is None and default_port is None:
        raise UsageError(f"{text!r} has no port", "the form is ADDRESS:PORT", "write it as in 127.0.0.1:1080")
    return SocketAddress(
        parse_address(address), default_port if port is None and default_port else parse_port(port or "")
    )


def parse_listener(text: str) -> SocketAddress:
    """Return ``ADDR:PORT``, or ``PORT`` of 127.0.0.1.

    :raises UsageError: *text* is neither.
    """
    return SocketAddress("127.0.0.1", parse_port(text)) if text.isdecimal() else parse_socket_address(text)


def parse_remote(text: str) -> Remote:
    """Return ``[USER@]HOST[:PORT]``; an IPv6 host with a port goes in brackets.

    :raises UsageError: *text* is nothing of the kind.
    """
    match = re.fullmatch(
        r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^@:\s\[\]]+|[0-9A-Fa-f:.]+))(?::(?P<port>\d+))?",
        text,
    )
    if match is None:
        raise UsageError(
            f"{text!r} is no SSH endpoint", "the form is [USER@]HOST[:PORT]", "write it as in root@ssh.example.com:22"
        )
    return Remote(match["v6"] or match["host"], parse_port(match["port"] or "22"), match["user"])


def parse_proxy(text: str) -> Remote:
    """Return ``HOST:PORT`` of a SOCKS5 proxy; an IPv6 host goes in brackets.

    :raises UsageError: *text* is nothing of the kind.
    """
    host, colon, port = text.removeprefix("socks5://").removeprefix("socks5h://").rpartition(":")
    if not colon or not re.fullmatch(r"\[[0-9A-Fa-f:.%\w]+\]|[^@:/\s\[\]]+", host):
        raise UsageError(f"{text!r} is no SOCKS5 proxy", "the form is HOST:PORT", "write it as in 127.0.0.1:1080")
    return Remote(host.strip("[]"), parse_port(port))


def parse_ports(text: str) -> range:
    """Return ``LOW-HIGH``, both included.

    :raises UsageError: not two ports in order, or ports below 1024.
    """
    low, dash, high = text.partition("-")
    if dash:
        ports = range(parse_port(low), parse_port(high) + 1)
        if len(ports) and ports.start >= 1024:
            return ports
    raise UsageError(
        f"{text!r} is no range of local ports", "it takes two ports from 1024 up, in order", "write it as 20000-29999"
    )


def parse_namespace(text: str) -> str:
    """Return the name of a namespace.

    :raises UsageError: *text* is none (an RFC 1123 label).
    """
    if re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        return text
    raise UsageError(
        f"{text!r} is no name of a namespace",
        "it takes up to 63 lower-case letters, digits and dashes",
        "write it as tp2-system",
    )


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}


def parse_duration(text: str) -> float:
    """Return seconds from ``90``, ``90s``, ``10m``, ``1h30m`` or ``250ms``.

    :raises UsageError: *text* is no duration, or not above zero.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or not 0 < seconds < 10**9:
        raise UsageError(f"{text!r} is no duration", "a duration is above zero", "write it as 90s, 10m or 1h30m")
    return seconds


def read_host_key(text: str) -> str:
    """Return the public key line of ``--host-key``: a file's path, or the key itself.

    :raises UsageError: the file cannot be read, or there is no public key in it.
    """
    if not _PUBLIC_KEY.match(text):
        try:
            content = Path(text).expanduser().read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError, RuntimeError) as error:
            # A path with a null byte in it is a ValueError, and the home of a user who does not exist a RuntimeError.
            raise UsageError(
                f"cannot read the host key {text}",
                getattr(error, "strerror", None) or str(error),
                "give the endpoint's public key file (ssh_host_ed25519_key.pub) or the key itself",
            ) from error
        text = next((line for line in content.splitlines() if line.strip() and not line.startswith("#")), "")
    # A line of known_hosts (as ssh-keyscan prints it) names the host first; the key is what follows.
    match = _PUBLIC_KEY.search(text)
    if match is None:
        raise UsageError(
            "the host key is no public key",
            f"{text[:40]!r} does not hold a key such as 'ssh-ed25519 AAAA...'",
            "copy the line from the endpoint's /etc/ssh/ssh_host_ed25519_key.pub",
        )
    return match.group(0)


_PUBLIC_KEY: Final = re.compile(r"(?:ssh-[a-z0-9]+|ecdsa-sha2-[a-z0-9]+|sk-[a-z0-9@.-]+) AAAA[A-Za-z0-9+/=]+")
