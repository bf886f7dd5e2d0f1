"""Everything that is not the cluster's: the client's query goes to a nameserver, and its reply comes back.

The query is passed on as it is, but for a fresh random ID (RFC 5452 section 9), and the reply is taken only from the
server asked, with that ID and the question asked. Servers are asked in order; one that does not answer in time, or
refuses, hands over to the next.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from tp2.dns.exempt import Exempt, ExemptSockets, Server
from tp2.dns.message import HEADER_SIZE, Ede
from tp2.errors import Tp2Error

# Seconds for one server to answer. Most resolvers ask again after 5 s, so two servers have their turn before that.
_PATIENCE = 2.0
_LARGEST_DATAGRAM = 65535


class UpstreamError(Exception):
    """No server gave an answer. ``words`` say why, for the client's extended error; ``code`` is its code."""

    def __init__(self, code: Ede, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply, under the ID and with the question of the client."""

    message: bytes
    server: Server


class Upstream:
    """The nameservers that take what is not the cluster's.

    :param servers: numeric addresses (an IPv6 scope included) and ports, in the order of preference.
    :param exempt: awaited once for each socket before its first use; it makes the socket's traffic pass tp2's rules.
    """

    def __init__(self, servers: Sequence[Server], *, exempt: Exempt) -> None:
        self._servers = tuple(servers)
        self._sockets = ExemptSockets(exempt)

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers in use."""
        return self._servers

    def set_servers(self, servers: Sequence[Server]) -> None:
        """Use these servers from now on. Queries under way stay with those they were sent to."""
        self._servers = tuple(servers)

    def close(self) -> None:
        """Give the sockets up. Queries under way must have been cancelled before."""
        self._sockets.close()

    async def exchange(self, query: bytes, *, tcp: bool) -> Reply:
        """Ask for the reply to *query*, which holds one question.

        :param tcp: whether to ask over TCP, as the client did.
        :raises UpstreamError: no server answered.
        """
        question = _question(query)
        failures: list[str] = []
        for server in self._servers:
            ident = secrets.token_bytes(2)
            try:
                async with asyncio.timeout(_PATIENCE):
                    ask = self._ask_tcp if tcp else self._ask_udp
                    reply = await ask(server, ident + query[2:], question)
            except TimeoutError:
                failures.append(f"{server_text(server)} gave no answer in {_PATIENCE:g} s")
            except (OSError, EOFError) as error:
                failures.append(f"{server_text(server)}: {error_text(error)}")
            except Tp2Error as error:
                raise UpstreamError(Ede.OTHER, str(error)) from error
            else:
                return Reply(_restore(reply, query, question), server)
        if not failures:
            raise UpstreamError(Ede.NO_REACHABLE_AUTHORITY, "there is no upstream nameserver")
        raise UpstreamError(Ede.NO_REACHABLE_AUTHORITY, "; ".join(failures))

    async def _ask_udp(self, server: Server, message: bytes, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._sockets.udp(server) as sock:
            await loop.sock_sendall(sock, message)
            while True:
                reply = await loop.sock_recv(sock, _LARGEST_DATAGRAM)
                if is_reply(reply, message[:2], question):
                    return reply

    async def _ask_tcp(self, server: Server, message: bytes, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        sock = await self._sockets.tcp(server)
        with sock:
            # RFC 7766 section 8: length and message in one segment.
            await loop.sock_sendall(sock, len(message).to_bytes(2) + message)
            while True:
                length = int.from_bytes(await _receive(sock, 2))
                reply = await _receive(sock, length)
                if is_reply(reply, message[:2], question):
                    return reply


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
    echoed = reply[HEADER_SIZE : HEADER_SIZE + len(question)]
    if reply[4:6] == b"\0\1":
        return echoed[-4:] == question[-4:] and echoed[:-4].lower() == question[:-4].lower()
    # A server that could not read the question cannot repeat it, and then has nothing to say but that. Nor need it
    # repeat what was no question (opcode UPDATE: RFC 2136 section 3.8).
    failed_or_no_query = reply[3] & 15 or reply[2] & 0x78
    return reply[4:6] == b"\0\0" and len(reply) == HEADER_SIZE and bool(failed_or_no_query)


def server_text(server: Server) -> str:
    """A server as people write it: the port only where it is not the usual one."""
    address, port = server
    if port == 53:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def error_text(error: OSError | EOFError) -> str:
    """The system's words for *error*."""
    if isinstance(error, EOFError):
        return "closed the connection without an answer"
    # asyncio puts words of its own, with the address in them, in the place of strerror.
    known = error.errno is not None and error.errno > 0
    return (os.strerror(error.errno or 0) if known else error.strerror or str(error)).lower()


def _question(query: bytes) -> bytes:
    end = HEADER_SIZE
    while query[end]:
        end += 1 + query[end]
    return query[HEADER_SIZE : end + 5]


def _restore(reply: bytes, query: bytes, question: bytes) -> bytes:
    if len(reply) == HEADER_SIZE:
        return query[:2] + reply[2:]
    # The question as the client wrote it: it may check the case (draft-vixie-dnsext-dns0x20).
    return query[:2] + reply[2:HEADER_SIZE] + question + reply[HEADER_SIZE + len(question) :]
