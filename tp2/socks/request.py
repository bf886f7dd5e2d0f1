"""SOCKS5 (RFC 1928) from the client's side, as data, without IO: what is said to a proxy that leads into the cluster.

A :class:`Client` asks for one connection. Its owner sends what it returns, feeds it what comes back, in whatever
fragments, and is told how it ended. Nothing is sent ahead of the answer that it waits for: OpenSSH's ``ssh -D`` does
not look at a request that came together with the greeting.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from tp2.socks.messages import VERSION, AddressType, Command, Method, Reply

GREETING: Final = bytes((VERSION, 1, Method.NO_AUTHENTICATION))


class NotSocks(Exception):
    """The proxy does not speak SOCKS5 as it should, or wants a login; the text says which."""


class Client:
    """Asks for a connection to *host* (an IP address or a name that the proxy resolves) and *port*.

    ``early`` holds, in the end, the bytes that followed the proxy's answer: they are the destination's.
    """

    def __init__(self, host: str, port: int) -> None:
        self.early = b""
        self._request = _request(host, port)
        self._asked = False

    def start(self) -> bytes:
        """Return what is sent first."""
        return GREETING

    def receive(self, data: bytes) -> bytes | Reply | None:
        """Take what came from the proxy.

        :returns: what to send next, how it ended, or None if more has to come first.
        :raises NotSocks: there will be no connection.
        """
        self.early += data
        if self.early and self.early[0] != VERSION:
            raise NotSocks(f"it is no SOCKS5 proxy: it says {self.early[:20]!r}")
        return self._answer() if self._asked else self._method()

    def _method(self) -> bytes | None:
        """VER, METHOD (RFC 1928 section 3)."""
        if len(self.early) < 2:
            return None
        if self.early[1] != Method.NO_AUTHENTICATION:
            raise NotSocks("it wants a login, which is not supported")
        self.early = self.early[2:]
        self._asked = True
        return self._request

    def _answer(self) -> Reply | None:
        """VER, REP, RSV, ATYP, BND.ADDR, BND.PORT (RFC 1928 section 6)."""
        if len(self.early) < 5:
            return None
        match self.early[3]:
            case AddressType.IPV4:
                length = 10
            case AddressType.IPV6:
                length = 22
            case AddressType.DOMAIN_NAME:
                length = 7 + self.early[4]
            case kind:
                raise NotSocks(f"its answer has an address of type {kind}")
        if len(self.early) < length:
            return None
        code, self.early = self.early[1], self.early[length:]
        # Codes above those of the RFC are unassigned.
        return Reply(code) if code in set(Reply) else Reply.GENERAL_FAILURE


def _request(host: str, port: int) -> bytes:
    """VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT (RFC 1928 section 4)."""
    try:
        address: IPv4Address | IPv6Address = ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        kind, destination = AddressType.DOMAIN_NAME, bytes((len(name),)) + name
    else:
        kind = AddressType.IPV4 if address.version == 4 else AddressType.IPV6
        destination = address.packed
    return bytes((VERSION, Command.CONNECT, 0, kind)) + destination + port.to_bytes(2, "big")
