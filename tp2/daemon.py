"""The composition root: builds the parts from the settings, starts them in order, stops them in reverse.

Order matters in two places. Port 53 is captured last, when everything behind it answers; and it is let go first, with
every other rule, so that at no time a packet is sent to something that is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from tp2 import following, resolvers
from tp2.attachment import Attachment, first_cause
from tp2.canary import Canary
from tp2.capture.capture import Capture
from tp2.cluster import kubeconfig
from tp2.cluster.kubeconfig import Access
from tp2.control.server import ControlServer
from tp2.dns.server import DnsServer
from tp2.dns.upstream import Upstream
from tp2.errors import ExitCode, ForwarderError, Tp2Error
from tp2.forward.client import Helper, HelperForwarder
from tp2.forward.platforms import this_platform
from tp2.parts import Parts, zone_config
from tp2.resolvers import Resolvers
from tp2.runtime import RuntimeDirectory
from tp2.settings import Settings
from tp2.socks.auth import read_credentials
from tp2.socks.connector import Connector
from tp2.socks.server import SocksServer
from tp2.steering import Steering, is_steered
from tp2.system import environment, notify
from tp2.system.eventloop import DescriptorLost, new_event_loop

logger = logging.getLogger(__name__)


#: Says what a stage has come to: the stage's name, then its outcome in words.
Report = Callable[[str, str], None]


class Daemon:
    """One running tp2; the parameters are those of :func:`main`."""

    def __init__(
        self, settings: Settings, found: Resolvers, runtime: RuntimeDirectory, report: Report, began: float
    ) -> None:
        self._settings = settings
        self._resolvers = found
        self._runtime = runtime
        self._report = report
        self._began = began
        self._ready = False
        self._stopping = False
        self._disturbance = asyncio.Event()
        self._task: asyncio.Task[object] | None = None

    async def run(self, helper: Helper) -> ExitCode:
        """Come up, report ``ready``, and serve until :meth:`stop`; return the exit code.

        :raises Tp2Error: a part could not come up, or the helper was lost. Everything is undone by then.
        """
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(name, self._interrupted)
        loop.set_exception_handler(self._stray)
        try:
            async with contextlib.AsyncExitStack() as stack:
                forwarder = HelperForwarder(helper)
                stack.push_async_callback(forwarder.close)
                self._report("helper", f"{forwarder.kind} rules, held by process {forwarder.pid}")
                if forwarder.lack is not None:
                    logger.warning("captured addresses that have no route cannot be reached: %s", forwarder.lack)
                parts = self._build(forwarder)
                await self._come_up(parts, stack)
                self._ready = True
                self._report("ready", f"in {time.monotonic() - self._began:.2f} s")
                await loop.create_future()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except BaseExceptionGroup as group:
            raise first_cause(group) from group
        return ExitCode.OK if self._ready else ExitCode.INTERRUPTED

    def stop(self) -> None:
        """Begin to stop; :meth:`run` returns when everything is undone."""
        if not self._stopping:
            self._stopping = True
            notify.stopping()
            assert self._task is not None
            self._task.cancel()

    def _interrupted(self) -> None:
        # Whoever insists need not wait: the helper, or else the kernel, undoes the rules all the same.
        if self._stopping:
            os._exit(ExitCode.INTERRUPTED)
        self.stop()

    def _stray(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Nobody waited for this: a handshake that was broken off with the connection, or else a mistake of ours.
        error = context.get("exception")
        if isinstance(error, DescriptorLost):
            # Not one byte more, an orderly farewell included: it might go to somebody else. As after SIGKILL, the
            # helper, or else the kernel, undoes the rules.
            logger.critical("tp2 ends here, since its connections cannot be told apart any more: %s", error)
            logger.critical("this is a bug: please report it, and run tp2 up again")
            os._exit(ExitCode.FAILURE)
        level = logging.WARNING if self._ready and not self._stopping else logging.DEBUG
        logger.log(level, "%s: %s", context.get("message"), error)
        logger.debug("the same in full", exc_info=error)

    def _build(self, forwarder: HelperForwarder) -> Parts:
        """Build the parts and tie them together; nothing is started yet."""
        settings, found = self._settings, self._resolvers
        attachment = Attachment(settings, kubeconfig.load(settings.kubeconfig, settings.context))
        connector = Connector(attachment.tunnel)
        capture = Capture(settings, forwarder, connector, attachment)
        upstream = Upstream(found.fallback, exempt=forwarder.exempt)
        dns = DnsServer(
            catalog=lambda: parts.attachment.cluster.catalog,
            synced=lambda: parts.attachment.cluster.catalog.generation > 0,
            capture=capture.way,
            upstream=upstream,
            config=zone_config(settings, found, attachment.access.namespace),
            why_unsynced=lambda: parts.attachment.status()["cluster"]["last_error"] or "tp2 is not connected to it yet",
            hear=lambda name: parts.canary.hear(name),
        )
        socks = SocksServer(
            connector,
            *settings.socks,
            credentials=read_credentials(settings.socks_auth) if settings.socks_auth else None,
            resolve=lambda name: parts.address_of(name),
        )
        canary = Canary(
            forwarder,
            connector,
            lambda: parts.behind_the_endpoint(),
            lambda: None if parts.resolvers.systems else parts.resolvers.captured[0],
        )
        parts = Parts(settings, found, attachment, forwarder, connector, socks, capture, upstream, dns, canary)
        if is_steered(settings, forwarder.kind, this_platform()):
            parts.steering = Steering(forwarder, parts.zone_config, lambda: parts.attachment.cluster.catalog.namespaces)
            capture.on_catalog = parts.steering.look
        return parts

    async def _come_up(self, parts: Parts, stack: contextlib.AsyncExitStack) -> None:
        """Start the parts in order; *stack* stops them in reverse."""
        stack.push_async_callback(lambda: parts.attachment.close())
        stack.push_async_callback(parts.connector.close)
        await _start(
            stack, ControlServer(self._runtime, parts.operations(lambda: self._ready, self.stop), parts.requests())
        )
        group = await stack.enter_async_context(asyncio.TaskGroup())

        def in_background(work: Coroutine[Any, Any, None]) -> None:
            stack.callback(group.create_task(work).cancel)

        in_background(parts.capture.way.run())
        in_background(_helper_lost(parts.forwarder))
        if self._settings.metrics is not None:
            from tp2.metrics import PATH, MetricsServer

            await _start(stack, MetricsServer(self._settings.metrics, lambda: parts.status_now(self._ready)))
            self._report("metrics", f"http://{self._settings.metrics}{PATH}")
        await _start(stack, parts.socks)
        self._report("socks", str(self._settings.socks))
        await parts.attachment.start(self._report)
        stack.callback(parts.upstream.close)
        await parts.dns.start(parts.capture.loopback)
        stack.push_async_callback(parts.dns.close)
        self._report("dns", parts.describe_dns())
        stack.push_async_callback(lambda: resolvers.flush_system_cache(parts.resolvers))
        stack.push_async_callback(parts.capture.close)
        stack.callback(parts.canary.close)
        # Pushed again, so that on the way out the rules go before anything that they lead to.
        stack.push_async_callback(parts.forwarder.close)
        await parts.capture.start(parts.dns)
        if parts.steering is not None:
            await parts.steering.start(parts.dns.port)
            self._report("capture", f"names below {', '.join(parts.steering.domains)}")
        else:
            await parts.forwarder.capture_dns(self._resolvers.captured, parts.dns.port)
            await resolvers.flush_system_cache(self._resolvers)
            self._report("capture", f"port 53 of {', '.join(self._resolvers.captured)}")
        await parts.canary.start()
        if (failure := (await parts.canary.fly()).failure) is not None:
            raise failure
        in_background(parts.canary.keep_flying())
        in_background(parts.capture.follow())
        if parts.steering is not None:
            in_background(parts.steering.follow())
        in_background(self._follow_resolvers(parts))
        in_background(self._follow_kubeconfig(parts))
        in_background(environment.watch(lambda why: self._disturbed(parts, why)))
        in_background(self._end_orphans(parts))

    def _disturbed(self, parts: Parts, why: str) -> None:
        logger.debug("%s: looking whether all is well", why)
        parts.capture.disturbed()
        parts.attachment.nudge()
        parts.canary.want()
        self._disturbance.set()

    async def _end_orphans(self, parts: Parts) -> None:
        while True:
            await self._disturbance.wait()
            self._disturbance.clear()
            try:
                await parts.forwarder.end_orphans()
            except ForwarderError as error:
                # If the helper is gone, its watcher says so.
                logger.debug("%s", error)

    async def _follow_resolvers(self, parts: Parts) -> None:
        async def apply(found: Resolvers) -> None:
            logger.info("the nameservers are now %s", ", ".join(found.captured))
            parts.resolvers = found
            parts.upstream.set_servers(found.fallback)
            parts.dns.set_config(parts.zone_config())
            try:
                if parts.steering is None:
                    await parts.forwarder.capture_dns(found.captured, parts.dns.port)
            except ForwarderError as error:
                # What was captured still is; if the helper is gone, its watcher says so.
                logger.warning("%s. %s", error, error.remedy)
            # A VPN may have come, and with it a name for the API server.
            self._disturbed(parts, "the nameservers changed")

        await resolvers.follow(self._settings, self._resolvers, apply)

    async def _follow_kubeconfig(self, parts: Parts) -> None:
        settings = self._settings

        def turn_to(access: Access, trouble: str | None = None) -> None:
            parts.attachment = Attachment(settings, access, trouble)
            parts.connector.use(parts.attachment.tunnel)
            parts.capture.attach(parts.attachment)
            parts.dns.set_config(parts.zone_config())

        async def leave(access: Access) -> None:
            former = parts.attachment
            parts.dns.turn(former.cluster.catalog)
            turn_to(access)
            await parts.capture.clear()
            await former.close()

        async def attach(access: Access) -> None:
            try:
                await parts.attachment.start()
            except Tp2Error as error:
                turn_to(access, str(error))
                raise
            parts.dns.turned()

        def rename(access: Access) -> None:
            parts.attachment.access = access
            parts.dns.set_config(parts.zone_config())

        await following.follow(
            kubeconfig.files(settings.kubeconfig),
            lambda: kubeconfig.load(settings.kubeconfig, settings.context),
            parts.attachment.access,
            leave=leave,
            attach=attach,
            renew=lambda: parts.attachment.cluster.renew(),
            rename=rename,
        )


def main(
    settings: Settings,
    found: Resolvers,
    runtime: RuntimeDirectory,
    helper: Helper,
    report: Report,
    began: float,
) -> ExitCode:
    """Run a daemon in this process until it is told to stop; return the exit code.

    :param found: the nameservers to capture and to ask, to begin with.
    :param began: when the user asked for it, on the monotonic clock: what ``ready`` counts from.

    :raises Tp2Error: it could not come up, or not go on. Everything is undone by then.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(Daemon(settings, found, runtime, report, began).run(helper))


class _Part(Protocol):
    async def start(self) -> None: ...
    async def close(self) -> None: ...


async def _start(stack: contextlib.AsyncExitStack, part: _Part) -> None:
    await part.start()
    stack.push_async_callback(part.close)


async def _helper_lost(forwarder: HelperForwarder) -> None:
    await forwarder.lost.wait()
    remover = "its guardian takes away" if forwarder.kind == "pf" else "the kernel removed"
    raise ForwarderError(
        "nothing is captured any more",
        f"the privileged helper (process {forwarder.pid}) ended, and {remover} its rules",
        "run tp2 up again; the system log may say who ended the helper",
    )
