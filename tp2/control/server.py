"""The answering side: a Unix socket on the daemon's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from tp2.control import MAX_QUESTION
from tp2.control.client import peer_uid
from tp2.errors import Tp2Error
from tp2.runtime import RuntimeDirectory

logger = logging.getLogger(__name__)

#: Seconds that a client may take over its question or over reading the answer.
PATIENCE: Final = 5.0


#: An answer, now or later; Tp2Error is told as it is.
Answer = dict[str, Any] | Awaitable[dict[str, Any]]


class ControlServer:
    """Answers questions on a Unix socket.

    :param runtime: whose socket is made, 0600; a stale one must be gone.
    :param operations: the answer to each question, as a JSON object.
    :param requests: the same for questions that say more than their name: given the whole question.
    """

    def __init__(
        self,
        runtime: RuntimeDirectory,
        operations: Mapping[str, Callable[[], Answer]],
        requests: Mapping[str, Callable[[dict[str, Any]], Answer]] | None = None,
    ) -> None:
        self._runtime = runtime
        self._operations = operations
        self._requests = requests or {}
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises OSError if the path cannot be a socket."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The socket is made with the right mode, rather than changed to it a moment later.
        mask = os.umask(0o177)
        try:
            with self._runtime.socket_address() as address:
                listener.bind(address)
        except BaseException:
            listener.close()
            raise
        finally:
            os.umask(mask)
        self._server = await asyncio.start_unix_server(self._converse, sock=listener, limit=MAX_QUESTION)

    async def close(self) -> None:
        """Stop listening; answers that are on their way are finished."""
        if self._server is None:
            return
        self._server.close()
        if self._conversations:
            await asyncio.wait(self._conversations, timeout=PATIENCE)
        for task in self._conversations:
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        self._server = None

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            if peer_uid(writer.get_extra_info("socket")) in (None, 0, os.geteuid()):
                async with asyncio.timeout(PATIENCE):
                    writer.write(json.dumps(await self._answer(await reader.readline())).encode() + b"\n")
                    await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:
            # ValueError: more than MAX_QUESTION bytes without an end of line.
            logger.debug("control: %s", error)
        finally:
            self._conversations.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, question: bytes) -> dict[str, Any]:
        try:
            message = json.loads(question)
        except (ValueError, RecursionError):
            return {"error": "the question is not JSON"}
        name = str(message.get("op")) if isinstance(message, dict) else ""
        try:
            if name in self._operations:
                answer = self._operations[name]()
            elif name in self._requests:
                answer = self._requests[name](message)
            else:
                known = sorted([*self._operations, *self._requests])
                return {"error": f"unknown question; known are {', '.join(known)}"}
            return answer if isinstance(answer, dict) else await answer
        except Tp2Error as error:
            return {"error": [error.what, error.why, error.remedy], "exit_code": int(error.exit_code)}
