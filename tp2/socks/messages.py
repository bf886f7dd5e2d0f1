"""SOCKS5 (RFC 1928, RFC 1929) from the server's side: a protocol as data, without IO.

A :class:`Server` lives for one client's handshake. Its owner feeds it whatever the socket gave, in whatever
fragments, and does what the returned events say: send these bytes, connect to this destination, close. After
:class:`Connect` the owner tries the destination and reports with :meth:`Server.reply`; from then on the bytes
of the connection are not SOCKS any more, and those that came early stand in :attr:`Server.early`.

The whole machine is :data:`TRANSITIONS`. Everything else in this file reads bytes into a happening or turns a
happening into bytes; nothing else decides what may follow what. What the machine says depends only on the
bytes it was fed, never on how they were cut. It buffers less than one message (the longest is 513 bytes),
and nothing once it is closed.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, TypeAlias

VERSION = 5
"""RFC 1928 section 3: the VER field of every message except the username/password ones."""

CREDENTIALS_VERSION = 1
"""RFC 1929 section 2: the VER field of the username/password messages."""


class Method(IntEnum):
    """Authentication methods (RFC 1928 section 3)."""

    NO_AUTHENTICATION = 0x00
    USERNAME_PASSWORD = 0x02
    NONE_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """Request commands (RFC 1928 section 4)."""

    CONNECT = 0x01
    BIND = 0x02
    UDP_ASSOCIATE = 0x03


class AddressType(IntEnum):
    """Address types (RFC 1928 section 5)."""

    IPV4 = 0x01
    DOMAIN_NAME = 0x03
    IPV6 = 0x04


class Reply(IntEnum):
    """Reply codes (RFC 1928 section 6)."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


class State(Enum):
    """What the server is waiting for."""

    METHODS = auto()
    CREDENTIALS = auto()
    REQUEST = auto()
    CONNECTING = auto()
    ESTABLISHED = auto()
    CLOSED = auto()


class Happening(Enum):
    """What a message, or the owner's report, amounts to."""

    OPEN_TO_ALL = auto()
    WANTS_CREDENTIALS = auto()
    NO_METHOD = auto()
    LOGGED_IN = auto()
    LOGIN_DENIED = auto()
    CONNECT = auto()
    REQUEST_REFUSED = auto()
    CONNECTED = auto()
    NOT_CONNECTED = auto()
    NOT_SOCKS = auto()


TRANSITIONS: Mapping[State, Mapping[Happening, State]] = {
    State.METHODS: {
        Happening.OPEN_TO_ALL: State.REQUEST,
        Happening.WANTS_CREDENTIALS: State.CREDENTIALS,
        Happening.NO_METHOD: State.CLOSED,
        Happening.NOT_SOCKS: State.CLOSED,
    },
    State.CREDENTIALS: {
        Happening.LOGGED_IN: State.REQUEST,
        Happening.LOGIN_DENIED: State.CLOSED,
        Happening.NOT_SOCKS: State.CLOSED,
    },
    State.REQUEST: {
        Happening.CONNECT: State.CONNECTING,
        Happening.REQUEST_REFUSED: State.CLOSED,
        Happening.NOT_SOCKS: State.CLOSED,
    },
    State.CONNECTING: {
        Happening.CONNECTED: State.ESTABLISHED,
        Happening.NOT_CONNECTED: State.CLOSED,
    },
    State.ESTABLISHED: {},
    State.CLOSED: {},
}
"""Which state follows which. A happening that is not listed for a state cannot occur in it."""


class Send(NamedTuple):
    """Send these bytes to the client."""

    data: bytes


class Connect(NamedTuple):
    """The client wants to be connected to *host* (an IP address or a domain name, as sent) and *port*."""

    host: str
    port: int


class Close(NamedTuple):
    """Close the connection once everything is sent; *reason* says why, for the log."""

    reason: str


Event: TypeAlias = Send | Connect | Close


class Credentials(NamedTuple):
    """What a client must present (RFC 1929); both 1 to 255 bytes of UTF-8."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class _Read:
    """One message read off the buffer: how long it was, what it amounts to, what to tell the owner."""

    length: int
    happening: Happening
    events: tuple[Event, ...]


def encode_reply(code: Reply) -> bytes:
    """Return the reply to a request (RFC 1928 section 6), with 0.0.0.0:0 as the bound address.

    The address from which the cluster side connects is not known to an SSH client, and clients of CONNECT
    have no use for it.
    """
    return bytes((VERSION, code, 0, AddressType.IPV4)) + bytes(6)


class Server:
    """The state of one client's handshake.

    :param credentials: what the client must present, or ``None`` to serve everybody who can reach the port.
    """

    def __init__(self, credentials: Credentials | None = None) -> None:
        self.state = State.METHODS
        self._credentials = credentials
        self._buffer = b""

    @property
    def early(self) -> bytes:
        """The bytes that followed the request: they belong to the destination."""
        return self._buffer

    def receive(self, data: bytes) -> list[Event]:
        """Feed what the socket gave and return what to do, in order.

        Once a :class:`Connect` was returned all further bytes are kept in :attr:`early`, so the owner stops
        feeding then; once a :class:`Close` was returned they are dropped.
        """
        if self.state is State.CLOSED:
            return []
        self._buffer += data
        events: list[Event] = []
        while (reader := _READERS.get(self.state)) and (read := reader(self._buffer, self._credentials)):
            self._buffer = self._buffer[read.length :]
            events += read.events
            self._move(read.happening)
        return events

    def reply(self, code: Reply) -> bytes:
        """Note how the attempt to connect ended and return the bytes that say so to the client."""
        self._move(Happening.CONNECTED if code is Reply.SUCCEEDED else Happening.NOT_CONNECTED)
        return encode_reply(code)

    def _move(self, happening: Happening) -> None:
        self.state = TRANSITIONS[self.state][happening]
        if self.state is State.CLOSED:
            self._buffer = b""


def _read_methods(buffer: bytes, credentials: Credentials | None) -> _Read | None:
    """VER, NMETHODS, METHODS (RFC 1928 section 3)."""
    if buffer and buffer[0] != VERSION:
        return _not_socks(buffer[0], "SOCKS version", VERSION)
    if len(buffer) < 2 or len(buffer) < (length := 2 + buffer[1]):
        return None
    offered = buffer[2:length]
    wanted = Method.USERNAME_PASSWORD if credentials else Method.NO_AUTHENTICATION
    if wanted not in offered:
        refusal = Send(bytes((VERSION, Method.NONE_ACCEPTABLE)))
        return _Read(
            length,
            Happening.NO_METHOD,
            (refusal, Close(f"the client does not offer the method {wanted.name}")),
        )
    happening = Happening.WANTS_CREDENTIALS if credentials else Happening.OPEN_TO_ALL
    return _Read(length, happening, (Send(bytes((VERSION, wanted))),))


def _read_credentials(buffer: bytes, credentials: Credentials | None) -> _Read | None:
    """VER, ULEN, UNAME, PLEN, PASSWD (RFC 1929 section 2)."""
    if buffer and buffer[0] != CREDENTIALS_VERSION:
        return _not_socks(buffer[0], "username/password version", CREDENTIALS_VERSION)
    if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
        return None
    password_at = 3 + buffer[1]
    length = password_at + buffer[password_at - 1]
    if len(buffer) < length:
        return None
    username, password = buffer[2 : password_at - 1], buffer[password_at:length]
    assert credentials is not None
    # Both are compared, and in constant time: how long it takes says nothing about what was right.
    right_username = hmac.compare_digest(username, credentials.username.encode())
    right_password = hmac.compare_digest(password, credentials.password.encode())
    if right_username and right_password:
        return _Read(length, Happening.LOGGED_IN, (Send(bytes((CREDENTIALS_VERSION, 0))),))
    denial = Send(bytes((CREDENTIALS_VERSION, 1)))
    return _Read(length, Happening.LOGIN_DENIED, (denial, Close("wrong username or password")))


def _read_request(buffer: bytes, _credentials: Credentials | None) -> _Read | None:
    """VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT (RFC 1928 section 4)."""
    if buffer and buffer[0] != VERSION:
        return _not_socks(buffer[0], "SOCKS version", VERSION)
    if len(buffer) < 5:
        return None
    address_type = buffer[3]
    if address_type == AddressType.DOMAIN_NAME:
        start, end = 5, 5 + buffer[4]
    elif address_type in (AddressType.IPV4, AddressType.IPV6):
        start, end = 4, 4 + (4 if address_type == AddressType.IPV4 else 16)
    else:
        # The length of an unknown address type is unknown, so nothing after it can be read.
        return _refuse(len(buffer), Reply.ADDRESS_TYPE_NOT_SUPPORTED, f"address type {address_type}")
    length = end + 2
    if len(buffer) < length:
        return None
    if buffer[1] != Command.CONNECT:
        return _refuse(length, Reply.COMMAND_NOT_SUPPORTED, f"command {buffer[1]}")
    host = _host(address_type, buffer[start:end])
    port = int.from_bytes(buffer[end:length], "big")
    if host is None or port == 0:
        return _refuse(length, Reply.GENERAL_FAILURE, f"destination {buffer[start:end]!r} port {port}")
    return _Read(length, Happening.CONNECT, (Connect(host, port),))


def _host(address_type: int, address: bytes) -> str | None:
    if address_type == AddressType.IPV4:
        return str(IPv4Address(address))
    if address_type == AddressType.IPV6:
        return str(IPv6Address(address))
    # Printable ASCII without blanks: the name travels on in an SSH message and into a log line.
    return address.decode("ascii") if address and all(0x21 <= byte <= 0x7E for byte in address) else None


def _refuse(length: int, code: Reply, what: str) -> _Read:
    return _Read(
        length, Happening.REQUEST_REFUSED, (Send(encode_reply(code)), Close(f"cannot serve {what}: {code.name}"))
    )


def _not_socks(got: int, field: str, expected: int) -> _Read:
    return _Read(1, Happening.NOT_SOCKS, (Close(f"not SOCKS5: {field} {got} instead of {expected}"),))


_READERS: Mapping[State, Callable[[bytes, Credentials | None], _Read | None]] = {
    State.METHODS: _read_methods,
    State.CREDENTIALS: _read_credentials,
    State.REQUEST: _read_request,
}
