"""UDP on Linux, many datagrams per system call: recvmmsg(2) and sendmmsg(2) on buffers that are laid out once.

A DNS answer from the cache costs less than the two system calls that carry it, and less than the event loop's work
for one datagram. Taking what has arrived in one call, and sending all answers to it in another, makes tp2 as fast as
a server written in C. Under light load a batch is one datagram, and nothing waits for a batch to fill.

Only this module knows the layout of these structures, and only on Linux is it used; see :mod:`tp2.dns.datagrams`.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from tp2.dns.message import OUR_UDP_SIZE
from tp2.dns.responder import Deferred

logger = logging.getLogger(__name__)

# Datagrams per call: enough to spread the cost of the call, few enough to let others have the loop in between.
BATCH = 64
# Octets of one request or reply in a batch. Larger replies are sent by themselves; nobody has a larger question.
SLOT = OUR_UDP_SIZE + 1
# Room for one sockaddr: a sockaddr_in6 has 28 octets.
_ADDRESS_SLOT = 32
_ADDRESS_SIZE = {socket.AF_INET: 16, socket.AF_INET6: 28}

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", _Msghdr), ("len", ctypes.c_uint32))


_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_libc.sendto.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint32,
)


class _Buffers:
    """BATCH messages with a slot each, as one system call takes them, and views of what changes from call to call."""

    def __init__(self, addresses: int, address_size: int) -> None:
        self.data = bytearray(BATCH * SLOT)
        self.slots = memoryview(self.data)
        self.messages = (_Mmsghdr * BATCH)()
        self._iovecs = (_Iovec * BATCH)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        for index in range(BATCH):
            self._iovecs[index].base = start + index * SLOT
            self._iovecs[index].len = SLOT
            header = self.messages[index].hdr
            header.name = addresses + index * _ADDRESS_SLOT
            header.namelen = address_size
            header.iov = ctypes.addressof(self._iovecs[index])
            header.iovlen = 1
        stride = ctypes.sizeof(_Mmsghdr)
        octets = memoryview(self.messages).cast("B")
        lengths = octets.cast("I")
        self.received = lengths[_Mmsghdr.len.offset // 4 :: stride // 4]
        self.names = octets.cast("L")[:: stride // ctypes.sizeof(ctypes.c_size_t)]
        self.lengths = memoryview(self._iovecs).cast("B").cast("L")[1::2]


class BatchedDatagrams:
    """One bound UDP socket, which it owns from now on.

    :param respond: see :meth:`tp2.dns.responder.Responder.respond`.
    :param spawn: runs what has to be waited for.
    """

    def __init__(
        self,
        sock: socket.socket,
        respond: Callable[..., bytes | Deferred],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._sock = sock
        self._respond = respond
        self._spawn = spawn
        self._address_size = _ADDRESS_SIZE[sock.family]
        self._addresses = bytearray(BATCH * _ADDRESS_SLOT)
        self._address_start = ctypes.addressof(ctypes.c_char.from_buffer(self._addresses))
        self._in = _Buffers(self._address_start, self._address_size)
        self._out = _Buffers(self._address_start, self._address_size)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    async def close(self) -> None:
        """Close the socket. What :class:`BatchedDatagrams` spawned must be over."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _readable(self) -> None:
        count = _libc.recvmmsg(self._sock.fileno(), self._in.messages, BATCH, socket.MSG_DONTWAIT, None)
        requests, received = self._in.slots, self._in.received
        replies, lengths, names = self._out.slots, self._out.lengths, self._out.names
        ready = 0
        for index in range(count):
            length = received[index]
            if length >= SLOT:
                continue  # Longer than anybody's question, and perhaps cut off.
            start = index * SLOT
            reply = self._respond(requests[start : start + length].tobytes(), tcp=False)
            if not isinstance(reply, bytes):
                self._spawn(self._reply_later(reply, self._address(index)))
            elif 0 < len(reply) <= SLOT:
                start = ready * SLOT
                replies[start : start + len(reply)] = reply
                lengths[ready] = len(reply)
                names[ready] = self._address_start + index * _ADDRESS_SLOT
                ready += 1
            elif reply:
                self._send(reply, self._address(index))
        if ready:
            self._flush(ready)

    def _flush(self, count: int) -> None:
        """Send the first *count* replies. One that the system refuses is lost, as datagrams may be."""
        messages = self._out.messages
        first = 0
        while first < count:
            address = ctypes.byref(messages, first * ctypes.sizeof(_Mmsghdr))
            sent = _libc.sendmmsg(self._sock.fileno(), address, count - first, socket.MSG_DONTWAIT)
            first += max(sent, 1)

    def _address(self, index: int) -> bytes:
        start = index * _ADDRESS_SLOT
        return bytes(self._addresses[start : start + self._address_size])

    async def _reply_later(self, waiting: Deferred, address: bytes) -> None:
        reply = await waiting()
        if reply:
            self._send(reply, address)

    def _send(self, reply: bytes, address: bytes) -> None:
        _libc.sendto(self._sock.fileno(), reply, len(reply), socket.MSG_DONTWAIT, address, len(address))
