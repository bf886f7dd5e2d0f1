"""One query to one nameserver, and what may count as its reply.

Each query has a random ID and a source port of its own, and the reply is taken only from the server asked, with that
ID and the question asked (RFC 5452 section 9): everything else that arrives is passed over.
"""

from __future__ import annotations

import asyncio
import secrets
import socket

from tp2.dns.exempt import ExemptSockets
from tp2.dns.message import HEADER_SIZE
from tp2.dns.servers import Server

_LARGEST_DATAGRAM = 65535


async def ask_udp(sockets: ExemptSockets, server: Server, query: bytes, question: bytes) -> bytes:
    """The reply of *server* to *query*, whose question section is *question*, under the ID and in the case of *query*.

    :raises OSError: the server cannot be reached.
    """
    loop = asyncio.get_running_loop()
    message = secrets.token_bytes(2) + query[2:]
    async with sockets.udp(server) as sock:
        await loop.sock_sendall(sock, message)
        while True:
            reply = await loop.sock_recv(sock, _LARGEST_DATAGRAM)
            if is_reply(reply, message[:2], question):
                return _restore(reply, query, question)


async def ask_tcp(sockets: ExemptSockets, server: Server, query: bytes, question: bytes) -> bytes:
    """Likewise over TCP.

    :raises EOFError: the server closed the connection without a reply.
    """
    loop = asyncio.get_running_loop()
    message = secrets.token_bytes(2) + query[2:]
    async with sockets.tcp(server) as sock:
        # RFC 7766 section 8: length and message in one segment.
        await loop.sock_sendall(sock, len(message).to_bytes(2) + message)
        while True:
            length = int.from_bytes(await _receive(sock, 2))
            reply = await _receive(sock, length)
            if is_reply(reply, message[:2], question):
                return _restore(reply, query, question)


async def tell(sockets: ExemptSockets, server: Server, message: bytes) -> None:
    """Send *message* to *server* and do not wait for a reply.

    :raises OSError: the server cannot be reached.
    """
    async with sockets.udp(server) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, message)


async def _receive(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < size:
        chunk = await loop.sock_recv(sock, size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def is_reply(reply: bytes, ident: bytes, question: bytes) -> bool:
    """Whether *reply* is a response to the message with this ID and question (RFC 5452 section 9.1)."""
    if len(reply) < HEADER_SIZE or reply[:2] != ident or not reply[2] & 0x80:
        return False
    if reply[4:6] == b"\0\1":
        echoed = reply[HEADER_SIZE : HEADER_SIZE + len(question)]
        return echoed[-4:] == question[-4:] and echoed[:-4].lower() == question[:-4].lower()
    # A server that could not read the question cannot repeat it, and then has nothing to say but that. Nor need it
    # repeat what was no question (opcode UPDATE: RFC 2136 section 3.8).
    failed_or_no_query = reply[3] & 15 or reply[2] & 0x78
    return reply[4:6] == b"\0\0" and len(reply) == HEADER_SIZE and bool(failed_or_no_query)


def _restore(reply: bytes, query: bytes, question: bytes) -> bytes:
    if len(reply) == HEADER_SIZE:
        return query[:2] + reply[2:]
    # The question as the client wrote it: it may check the case (draft-vixie-dnsext-dns0x20).
    return query[:2] + reply[2:HEADER_SIZE] + question + reply[HEADER_SIZE + len(question) :]
