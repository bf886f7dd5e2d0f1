"""Which proxy leads to a server, by the rules that kubectl has: Go's, where Python's own are others.

Pure. A kubeconfig's ``proxy-url`` always holds. Otherwise it is ``HTTPS_PROXY`` (``HTTP_PROXY`` for a plain server; in
lower case, too, which comes second), unless ``NO_PROXY`` has the server:

================ =================================================================
entry            servers
================ =================================================================
``*``            all
``10.0.0.0/8``   addresses in that network
``10.1.2.3``     that address
``example.com``  that name, and every name below it
``.example.com`` every name below it (``*.example.com`` is the same)
================ =================================================================

An address or name may be followed by a port, and then means that port only. This machine's own addresses are never
reached through a proxy from the environment. Python would know neither networks nor ports.

https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config;
https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/#Cluster
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

from tp2.errors import ClusterError

SCHEMES: Final = ("http", "https", "socks5", "socks5h")
"""What a proxy may speak. Names are resolved by it, with ``socks5`` as well: that is what Go does."""

SOCKS: Final = ("socks5", "socks5h")


def proxy_for(server: str, configured: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the URL of the proxy to *server*, or None if it is reached directly.

    :param server: the URL of the Kubernetes API, or of another server that credentials come from.
    :param configured: the kubeconfig's ``proxy-url``.
    :raises ClusterError: the environment names one that cannot be used.
    """
    if configured:
        return configured
    target = urlsplit(server)
    variable = "HTTPS_PROXY" if target.scheme == "https" else "HTTP_PROXY"
    proxy = environment.get(variable) or environment.get(variable.lower())
    if not proxy or _excluded(target, environment.get("NO_PROXY") or environment.get("no_proxy") or ""):
        return None
    url = proxy if "://" in proxy else f"http://{proxy}"
    if not is_usable(url):
        raise ClusterError(
            f"the proxy that {variable} names cannot be used",
            f"{without_password(proxy)!r} is no URL of a proxy",
            f"set {variable} to http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT, or have NO_PROXY name "
            f"{target.hostname}",
        )
    return url


def is_usable(url: str) -> bool:
    """Whether *url* is that of a proxy that tp2 can speak to."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in SCHEMES and bool(parts.hostname) and url.isprintable() and " " not in url


def without_password(url: str) -> str:
    """*url* for people to read."""
    before, at, place = url.rpartition("@")
    scheme, slashes, login = before.rpartition("://")
    return f"{scheme}{slashes}{login.partition(':')[0]}:...@{place}" if at and ":" in login else url


def _excluded(target: SplitResult, no_proxy: str) -> bool:
    host = (target.hostname or "").rstrip(".")
    port = target.port or (443 if target.scheme == "https" else 80)
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_matches(entry.strip().lower(), host, address, port) for entry in no_proxy.split(","))


def _matches(entry: str, host: str, address: _Address | None, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        network = _network(entry)
        return address is not None and network is not None and address in network
    name, wanted = _with_port(entry)
    if not name or wanted not in (None, port):
        return False
    if (excluded := _address(name)) is not None:
        return excluded == address
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _with_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        port = port.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, port = entry.partition(":")
    else:
        return entry, None
    return (name, int(port)) if port.isascii() and port.isdecimal() else (name, None if not port else -1)


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> _Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
