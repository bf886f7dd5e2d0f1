"""From end to end while tp2 runs: its own test, asked for; and the same from outside, as any program would do it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tp2.canary import DESTINATION, SUFFIX
from tp2.control import client
from tp2.diagnosis.model import Finding, failed, not_applicable, ok
from tp2.diagnosis.running import in_thread
from tp2.errors import NotRunning, Tp2Error
from tp2.runtime import RuntimeDirectory
from tp2.settings import Settings

#: Seconds for a lookup, and for a connection.
LOOKUP: Final = 4.0
CONNECTION: Final = 2.0


class EndToEnd:
    """The checks.

    :param status: what a running tp2 says of itself; None if none runs.
    :param nameservers: gives those that this machine's programs ask.
    """

    def __init__(
        self,
        settings: Settings,
        runtime: RuntimeDirectory,
        status: dict[str, Any] | None,
        nameservers: Callable[[], Sequence[str]],
    ) -> None:
        self._nameservers = nameservers
        self._runtime = runtime
        self._status = status

    async def daemon(self) -> Finding:
        """Whether tp2 is in touch with its cluster."""
        if self._status is None:
            return not_applicable("not tried", "tp2 does not run")
        cluster, tunnel = self._status["cluster"], self._status["tunnel"]
        if self._status["state"] == "starting":
            return not_applicable("not tried", "tp2 has not come up yet")
        if not cluster["synced"]:
            return failed(
                "the running tp2 is not in touch with the Kubernetes API",
                cluster["last_error"] or "it has not come back yet",
                "it keeps trying, and answers from what it knew; see the checks above",
            )
        if tunnel["state"] != "connected":
            return failed(
                f"the running tp2's tunnel is {tunnel['state']}",
                tunnel["last_error"] or f"{tunnel['remote']} has not answered yet",
                "it keeps trying; see the checks above",
            )
        return ok(f"process {self._status['pid']}: {cluster['services']} services, tunnel to {tunnel['remote']}")

    async def resolver(self) -> Finding:
        """Whether a name that only tp2 knows is found by this machine's resolver."""
        asked = self._nameservers()
        captured = self._status["dns"]["captured"] if self._status is not None else []
        if captured and asked and not set(asked) & set(captured):
            return not_applicable("lookups", "tp2 captures another nameserver than this machine's programs ask")
        name = f"x{secrets.token_hex(5)}{SUFFIX}."
        began = time.monotonic()
        try:
            async with asyncio.timeout(LOOKUP):
                found = await in_thread(lambda: socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM))
            address = str(found[0][4][0])
        except TimeoutError:
            address = f"no answer within {LOOKUP:g} s"
        except OSError as error:
            address = error.strerror or str(error)
        if address == DESTINATION.address:
            return ok(f"a name that only tp2 knows was found in {(time.monotonic() - began) * 1000:.0f} ms")
        return failed(
            "this machine's programs do not get tp2's answers",
            f"a name that only tp2 knows was looked up through the system's resolver, which gave: {address}",
            "see whom it asks: /etc/resolv.conf, the hosts line of /etc/nsswitch.conf, 'resolvectl status'",
        )

    async def rule(self) -> Finding:
        """Whether a connection to where only a rule leads arrives."""
        error: OSError | None = None
        with socket.socket() as sock:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(CONNECTION):
                    await asyncio.get_running_loop().sock_connect(sock, DESTINATION)
            except OSError as failure:
                error = failure
        if error is None:
            return ok(f"a connection to {DESTINATION} came to tp2")
        return failed(
            "captured connections do not arrive at tp2",
            f"a connection to {DESTINATION}, which a rule should lead to tp2, failed: "
            f"{error.strerror or 'it does not arrive'}",
            "look for other rules that take it first (`nft list ruleset`), or that drop packets on the loopback device",
        )

    async def canary(self) -> Finding:
        """Whether tp2's own test comes through, tunnel and endpoint included."""
        answer = await in_thread(lambda: client.ask(self._runtime, "canary"))
        canary, fresh = answer["canary"], answer["fresh"]
        if canary is not None and not canary["ok"]:
            return failed(canary["why"].partition(": ")[0], canary["why"].partition(": ")[2], canary["remedy"])
        if not fresh:
            return failed(
                "tp2's own test does not come back",
                "it looks up a name and connects through the tunnel to the endpoint, and has not ended for seconds: "
                "the tunnel takes packets and gives none",
                "wait: a dead tunnel is noticed within 20 s, and opened anew; then see the way to the endpoint",
            )
        return ok(f"there and back through the tunnel in {canary['took'] * 1000:.0f} ms")


async def status_of(runtime: RuntimeDirectory) -> tuple[dict[str, Any] | None, Tp2Error | None]:
    """Return what a running tp2 says of itself, or why it does not; neither if none runs."""
    try:
        async with asyncio.timeout(3):
            return await in_thread(lambda: client.ask(runtime, "status")), None
    except NotRunning:
        return None, None
    except Tp2Error as error:
        return None, error
    except TimeoutError:
        holder = None
        with contextlib.suppress(OSError):
            holder = runtime.holder()
        return None, Tp2Error(
            "the running tp2 does not answer",
            f"process {holder or '(unknown)'} said nothing for 3 s",
            "see its output; end it with 'kill PID' if it hangs: the kernel removes its rules",
        )
