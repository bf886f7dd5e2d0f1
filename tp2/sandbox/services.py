"""The programs in the sandbox's cluster: real servers on the addresses of its services and pods.

Run as ``python -m tp2.sandbox.services KIND:NAME:ADDRESS:PORT...``; prints ``ready`` once all of them listen. An IPv6
address stands as it is, colons and all.

====== ================================================================================================
kind   what it does
====== ================================================================================================
http   ``GET /`` says who answers; ``GET /bytes/N`` sends N bytes; ``PUT /hash`` says the body's SHA-256
greet  the server speaks first, then returns each line
where  the server says at which address and port it was reached, then returns each line
digest reads to the end of file, then says the SHA-256 of what came: half-close or nothing
farewell sends a greeting and ends its sending side at once, reads on, and logs what came as a line on stdout
====== ================================================================================================
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from functools import partial
from typing import Final

from aiohttp import web

from tp2.sandbox.contents import program

#: What ``GET /bytes/N`` sends, over and over. Its length is prime, so a lost or doubled block shows in a hash.
PATTERN: Final = bytes(index * 7 % 256 for index in range(65521))


def pattern(size: int) -> bytes:
    """Return what ``GET /bytes/SIZE`` sends."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


async def main(specifications: list[str]) -> None:
    """Serve until cancelled."""
    for specification in specifications:
        kind, name, address, port = program(specification)
        if kind == "http":
            await _http(name, address, int(port))
        else:
            await asyncio.start_server(partial(_TALKS[kind], name), address, int(port), backlog=512)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def _http(name: str, address: str, port: int) -> None:
    async def who(request: web.Request) -> web.Response:
        return web.Response(text=f"this is {name}, port {port}\n")

    async def download(request: web.Request) -> web.StreamResponse:
        left = int(request.match_info["size"])
        response = web.StreamResponse(headers={"Content-Length": str(left)})
        await response.prepare(request)
        while left > 0:
            await response.write(PATTERN[:left])
            left -= len(PATTERN)
        return response

    async def upload(request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        async for chunk in request.content.iter_any():
            digest.update(chunk)
        return web.Response(text=digest.hexdigest())

    application = web.Application(client_max_size=0)
    application.add_routes([web.get("/", who), web.get("/bytes/{size:\\d+}", download), web.put("/hash", upload)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, port, backlog=512).start()


async def _greet(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"220 {name}\r\n".encode())
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def _where(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    address, port = writer.get_extra_info("sockname")[:2]
    await _greet(f"{address} {port}", reader, writer)


async def _digest(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    digest = hashlib.sha256()
    while data := await reader.read(1 << 16):
        digest.update(data)
    writer.write(digest.hexdigest().encode())
    writer.close()


async def _farewell(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"goodbye from {name}\n".encode())
    writer.write_eof()
    received = await reader.read()
    print(f"{name} received {received!r}", flush=True)
    writer.close()


_TALKS: Final = {"greet": _greet, "where": _where, "digest": _digest, "farewell": _farewell}

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
