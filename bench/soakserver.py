"""The soak's server, in the cluster. Run as ``python -m bench.soakserver PORT... [--spoil NUMBER]``.

It listens at every address, prints ``ready``, and says on each line of standard input what it has served, as JSON.
``--spoil`` flips a bit of what the connection of that number gets: for the test that this does not go unnoticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from dataclasses import asdict, dataclass

import uvloop

from bench.exchange import REQUEST_SIZE, Receipt, Request, payload


@dataclass
class Served:
    """What came to their end, and what broke off; bytes are those of whole exchanges."""

    whole: int = 0
    broken: int = 0
    up: int = 0
    down: int = 0


class Server:
    """See the module. ``served`` counts."""

    def __init__(self, spoil: int | None) -> None:
        self.served = Served()
        self._spoil = spoil

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError):
            self.served.broken += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = Request.unpack(await reader.readexactly(REQUEST_SIZE))
        sent, (received, count) = await asyncio.gather(self._send(request, writer), _receive(reader))
        address, port = writer.get_extra_info("sockname")[:2]
        writer.write(Receipt(received, count, sent, address, port).pack())
        await writer.drain()
        if not request.whole:
            self.served.broken += 1
            return
        self.served.whole += 1
        self.served.up += count
        self.served.down += request.down

    async def _send(self, request: Request, writer: asyncio.StreamWriter) -> bytes:
        digest = hashlib.sha256()
        for piece in payload(request.number, request.down):
            digest.update(piece)
            data = bytes(piece)
            writer.write(bytes([data[0] ^ 1]) + data[1:] if request.number == self._spoil else data)
            await writer.drain()
        return digest.digest()


async def _receive(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    digest, count = hashlib.sha256(), 0
    while data := await reader.read(262144):
        digest.update(data)
        count += len(data)
    return digest.digest(), count


async def main(ports: list[int], spoil: int | None) -> None:
    """Serve until standard input ends."""
    server = Server(spoil)
    for port in ports:
        await asyncio.start_server(server.serve, "0.0.0.0", port, backlog=512)  # noqa: S104 - in a namespace
    _say("ready")
    while await asyncio.to_thread(sys.stdin.readline):
        _say(json.dumps(asdict(server.served)))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    words, _, number = " ".join(sys.argv[1:]).partition("--spoil")
    uvloop.run(main([int(word) for word in words.split()], int(number) if number else None))
