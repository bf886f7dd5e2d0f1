"""The soak's client, on the laptop. Run as ``python -m bench.soaker NAMESERVER HELD NAME=ADDRESS:PORT...``.

It opens HELD connections that stay, prints ``holding``, and then does a round for each line ``SECONDS WORKERS PARTS``
of standard input: so many workers look names up, connect, exchange bytes (:mod:`bench.exchange`), and begin again, each
with a connection of another number; the rounds take turns with so many parts of the targets. A line of JSON says what
came of it. When standard input ends, the connections that stayed are finished, and a last line says what came of those.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import socket
import sys
from collections.abc import Coroutine, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

import uvloop
from dnslib import A, DNSRecord

from bench.exchange import RECEIPT_SIZE, Plan, Receipt, Request, payload, plan

#: Seconds after which something that should happen has not.
PATIENCE: Final = 60.0

#: Bytes that a connection that stays sends in each round, and gets in the end.
TRICKLE: Final = 10_000


class Target(NamedTuple):
    """A port of a service, as a person would call it, and the address that it should lead to."""

    name: str
    address: str
    port: int


@dataclass
class Outcome:
    """What came of a round; bytes are those of whole exchanges. ``wrong`` says what should not be, the first few."""

    whole: int = 0
    broken: int = 0
    up: int = 0
    down: int = 0
    failures: int = 0
    wrong: list[str] = field(default_factory=list)

    def complain(self, words: str) -> None:
        """Count something that should not be."""
        self.failures += 1
        if len(self.wrong) < 5:
            self.wrong.append(words)


class Wrong(Exception):
    """What came is not what was sent."""


class Exchange:
    """One connection, from its name to its receipt."""

    def __init__(self, number: int, target: Target, nameserver: str) -> None:
        self.number = number
        self.target = target
        self.up = 0
        self.down = 0
        self._nameserver = nameserver
        self._sent = hashlib.sha256()
        self._writer: asyncio.StreamWriter | None = None

    async def open(self, down: int, *, whole: bool = True) -> None:
        """Look the name up, connect, and ask for *down* bytes."""
        address = await _lookup(self._nameserver, self.target.name)
        if address != self.target.address:
            raise Wrong(f"{self.target.name} is {address}, not {self.target.address}")
        self.down = down
        self._reader, self._writer = await asyncio.open_connection(address, self.target.port)
        self._writer.write(Request(self.number, down, whole).pack())

    async def send(self, size: int) -> None:
        """Send so many bytes more."""
        assert self._writer is not None
        for piece in payload(self.number, size, self.up):
            self._sent.update(piece)
            self._writer.write(bytes(piece))
            await self._writer.drain()
        self.up += size

    async def finish(self, up: int = 0) -> None:
        """Send so many bytes and end sending, and meanwhile take what was asked for; then the receipt."""
        received, _ = await asyncio.gather(self._receive(self.down), self._send_last(up))
        receipt = Receipt.unpack(await self._reader.readexactly(RECEIPT_SIZE))
        if await self._reader.read(1):
            raise Wrong("there are bytes after the end")
        wanted = Receipt(self._sent.digest(), self.up, received, self.target.address, self.target.port)
        if receipt != wanted:
            fields = [name for name in Receipt._fields if getattr(receipt, name) != getattr(wanted, name)]
            raise Wrong(f"the two ends differ about: {', '.join(fields)}")

    async def take(self, size: int) -> None:
        """Take some of what was asked for."""
        await self._receive(size)

    async def close(self, *, broken: bool = False) -> None:
        """Let it go; *broken* resets it."""
        if self._writer is None:
            return
        if broken:
            self._writer.transport.abort()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _send_last(self, size: int) -> None:
        await self.send(size)
        assert self._writer is not None
        self._writer.write_eof()

    async def _receive(self, size: int) -> bytes:
        digest = hashlib.sha256()
        while size:
            data = await self._reader.read(min(size, 262144))
            if not data:
                raise Wrong(f"{size} bytes are missing")
            digest.update(data)
            size -= len(data)
        return digest.digest()


class Soaker:
    """Workers who never stop asking; ``held`` are the connections that stay."""

    def __init__(self, nameserver: str, targets: list[Target]) -> None:
        self._nameserver = nameserver
        self._targets = targets
        self._numbers = itertools.count(1)
        self.held: list[Exchange] = []

    async def hold(self, count: int) -> None:
        """Open connections that stay."""
        for _ in range(count):
            exchange = self._next(self._targets)
            await exchange.open(TRICKLE)
            await exchange.send(TRICKLE)
            self.held.append(exchange)

    async def round(self, seconds: float, workers: int, targets: list[Target]) -> Outcome:
        """Work for *seconds*; return when what was begun has ended."""
        outcome = Outcome()
        for exchange in self.held:
            await exchange.send(TRICKLE)
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._work(end, targets, outcome) for _ in range(workers)))
        return outcome

    async def finish(self) -> Outcome:
        """Finish the connections that stayed."""
        outcome = Outcome()
        for exchange in self.held:
            await self._one(exchange, outcome, exchange.finish())
        return outcome

    def _next(self, targets: list[Target]) -> Exchange:
        number = next(self._numbers)
        return Exchange(number, targets[number % len(targets)], self._nameserver)

    async def _work(self, end: float, targets: list[Target], outcome: Outcome) -> None:
        while asyncio.get_running_loop().time() < end and outcome.failures < 100:
            exchange = self._next(targets)
            todo = plan(exchange.number)
            await self._one(exchange, outcome, _carry_out(todo, exchange), broken=todo.broken)

    async def _one(
        self, exchange: Exchange, outcome: Outcome, doing: Coroutine[Any, Any, None], *, broken: bool = False
    ) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await doing
        except (OSError, EOFError, Wrong) as error:
            target = f"{exchange.target.name}:{exchange.target.port}"
            outcome.complain(f"connection {exchange.number} to {target}: {error or type(error).__name__}")
        else:
            outcome.broken += broken
            outcome.whole += not broken
            outcome.up += 0 if broken else exchange.up
            outcome.down += 0 if broken else exchange.down
        finally:
            await exchange.close(broken=broken)


async def _carry_out(todo: Plan, exchange: Exchange) -> None:
    await exchange.open(todo.down, whole=not todo.broken)
    if todo.broken:
        await exchange.take(todo.down // 2)
    else:
        await exchange.finish(todo.up)


async def _lookup(server: str, name: str) -> str:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((server, 53))
        sock.send(DNSRecord.question(name).pack())
        async with asyncio.timeout(PATIENCE):
            reply = await loop.sock_recv(sock, 4096)
    return ", ".join(str(record.rdata) for record in DNSRecord.parse(reply).rr if isinstance(record.rdata, A))


async def main(nameserver: str, held: int, targets: list[Target]) -> None:
    """See the module."""
    soaker = Soaker(nameserver, targets)
    await soaker.hold(held)
    _say("holding")
    turns = itertools.count()
    while line := await asyncio.to_thread(sys.stdin.readline):
        seconds, workers, parts = line.split()
        part = targets[next(turns) % int(parts) :: int(parts)]
        outcome = await soaker.round(float(seconds), int(workers), part)
        _say(json.dumps(asdict(outcome)))
    _say(json.dumps(asdict(await soaker.finish())))


def _targets(words: Iterable[str]) -> list[Target]:
    found = []
    for word in words:
        name, _, where = word.partition("=")
        address, _, port = where.partition(":")
        found.append(Target(name, address, int(port)))
    return found


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        uvloop.run(main(sys.argv[1], int(sys.argv[2]), _targets(sys.argv[3:])))
    except (OSError, EOFError, Wrong) as error:
        sys.exit(f"soaker: {error or type(error).__name__}")
