"""``tp2 doctor``: every check there is, in the order of a packet's way."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from tp2.cluster import lean
from tp2.control import client
from tp2.diagnosis import likewise
from tp2.diagnosis.endtoend import EndToEnd, status_of
from tp2.diagnosis.forwarding import Forwarding
from tp2.diagnosis.kubernetes import LOGIN, Kubernetes
from tp2.diagnosis.machine import Machine
from tp2.diagnosis.model import Finding, Place, Report, failed_by, not_applicable, ok, placed
from tp2.diagnosis.naming import Naming
from tp2.diagnosis.remote import HANDSHAKE, OPENING, Remote
from tp2.diagnosis.running import Check, in_thread, run
from tp2.diagnosis.surroundings import Surroundings
from tp2.errors import Tp2Error
from tp2.forward.privilege import become, calling_user
from tp2.runtime import RuntimeDirectory
from tp2.settings import Settings

#: What would be imported on the way: by then it may be a user's process, who cannot read root's installation of tp2.
_NEEDED_LATER: Final = ("concurrent.futures.thread", "encodings.idna", "tp2.diagnosis.show")

#: Seconds that a check has beyond those that it gives whoever it asks.
_ROOM: Final = 2.0


def examine(
    settings: Settings,
    runtime: RuntimeDirectory,
    given: Collection[str] = (),
    machine: Machine | None = None,
    now: Callable[[], float] = time.time,
) -> Report:
    """Look at everything, and report it.

    :param settings: as ``tp2 up`` would be given them.
    :param given: the names of those that somebody has really given: all others are a running tp2's, if one runs.
    :param machine: what to look at in this one's place.
    :param now: this machine's clock.
    """
    lean.prepare()
    for module in _NEEDED_LATER:
        importlib.import_module(module)
    return asyncio.run(_look(settings, runtime, given, machine or Machine(), now))


async def _look(
    settings: Settings,
    runtime: RuntimeDirectory,
    given: Collection[str],
    machine: Machine,
    now: Callable[[], float],
) -> Report:
    status, trouble = await status_of(runtime)
    if status is not None:
        settings = await _as_running(settings, runtime, given)
    kubernetes = Kubernetes(settings, now)
    remote = Remote(settings, kubernetes)
    naming = Naming(machine, settings)
    around = Surroundings(machine, settings, status, lambda: kubernetes.services)
    forwarding = Forwarding(machine, settings, runtime, status)
    as_called = await run(_of_root(forwarding, around))
    # Under sudo: kubeconfig, credential plugins and keys are those of whoever called it, and what a plugin writes too.
    become(calling_user())
    async with kubernetes.closing(), remote.closing():
        report = await run(
            [
                *_of_the_user(forwarding, around),
                *_naming(naming),
                *kubernetes_checks(kubernetes),
                Check("networks", Place.MACHINE, around.networks, ("services",)),
                Check("stopgap", Place.MACHINE, forwarding.stopgap),
                *_remote(settings, remote),
                *_end_to_end(EndToEnd(settings, runtime, status, lambda: naming.conf.nameservers), status),
            ]
        )
    first = placed([_tp2(status, trouble)], "tp2", Place.MACHINE, 0.0)
    findings = (*first, *as_called.findings, *report.findings)
    # Routes are this machine's, and can be judged only when the cluster's addresses are known.
    return Report(tuple(sorted(findings, key=lambda finding: list(Place).index(finding.place))))


async def _as_running(settings: Settings, runtime: RuntimeDirectory, given: Collection[str]) -> Settings:
    # A tp2 of another version may not tell, or tell something else.
    with contextlib.suppress(Tp2Error, TimeoutError, KeyError, TypeError, ValueError):
        async with asyncio.timeout(_ROOM):
            words = await in_thread(lambda: client.ask(runtime, "settings"))
        return likewise.adopted(settings, words, given)
    return settings


def _tp2(status: dict[str, Any] | None, trouble: Tp2Error | None) -> Finding:
    if trouble is not None:
        return failed_by(trouble)
    if status is None:
        return not_applicable("it does not run", "what needs a running tp2 is left out")
    return ok(f"runs as process {status['pid']}: {status['state']}")


def _of_root(forwarding: Forwarding, around: Surroundings) -> Sequence[Check]:
    """Return the checks that see more if they are root's."""
    here = Place.MACHINE
    return (
        Check("forwarder", here, forwarding.forwarder),
        Check("privilege", here, forwarding.privilege),
        Check("open files", here, forwarding.open_files),
        # Before what another tp2 has taken.
        Check("leftovers", here, around.leftovers),
    )


def _of_the_user(forwarding: Forwarding, around: Surroundings) -> Sequence[Check]:
    here = Place.MACHINE
    return (
        Check("directory", here, forwarding.directory),
        Check("other tools", here, around.tools),
        Check("ports", here, forwarding.ports),
    )


def _naming(naming: Naming) -> Sequence[Check]:
    here = Place.MACHINE
    return (
        Check("resolv.conf", here, naming.resolv_conf),
        Check("nsswitch.conf", here, naming.nsswitch),
        Check("hosts file", here, naming.hosts),
        Check("systemd-resolved", here, naming.resolved, ("resolv.conf",)),
        Check("nameservers", here, naming.nameservers, ("resolv.conf",), within=8.0),
    )


def kubernetes_checks(kubernetes: Kubernetes) -> Sequence[Check]:
    """Return the checks of the Kubernetes side."""
    there = Place.KUBERNETES
    return (
        Check("kubeconfig", there, kubernetes.kubeconfig),
        Check("plugin", there, kubernetes.plugin, ("kubeconfig",)),
        Check("login", there, kubernetes.login, ("kubeconfig", "plugin"), within=LOGIN + _ROOM),
        Check("clock", there, kubernetes.clock, ("kubeconfig",)),
        Check("API", there, kubernetes.api, ("login",)),
        Check("rights", there, kubernetes.rights, ("API",)),
        Check("services", there, kubernetes.services_there, ("API",)),
    )


def _remote(settings: Settings, remote: Remote) -> Sequence[Check]:
    there = Place.ENDPOINT
    if settings.socks_upstream is not None:
        return (Check("proxy", there, remote.proxy, within=HANDSHAKE + _ROOM),)
    last = Check("forwarding", there, remote.forwarding, ("handshake",), within=2 * OPENING + _ROOM)
    if settings.remote is not None:
        return (Check("handshake", there, remote.handshake, within=HANDSHAKE + _ROOM), last)
    return (
        Check("installed", there, remote.installed, ("API",)),
        Check("ready", there, remote.ready, ("installed",)),
        Check("handshake", there, remote.handshake, ("ready",), within=HANDSHAKE + _ROOM),
        last,
    )


def _end_to_end(end: EndToEnd, status: dict[str, Any] | None) -> Sequence[Check]:
    there = Place.END_TO_END
    first = Check("connections", there, end.daemon)
    if status is None or status["state"] == "starting":
        return (first,)
    return (
        first,
        Check("resolver", there, end.resolver, within=8.0),
        Check("rule", there, end.rule),
        Check("way there and back", there, end.canary, ("resolver", "rule"), within=8.0),
    )
