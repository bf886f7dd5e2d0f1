"""``tp2 explain``: the way of one name, step by step as it would go now, up to where it breaks.

The running tp2 is asked what it would do (:mod:`tp2.diagnosis.way`); what a program on this machine does itself, whom
it asks, for which names, and what becomes of its connection, is found out here by doing it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from typing import Any, Final, NoReturn

from tp2.control import client
from tp2.diagnosis.machine import Machine
from tp2.diagnosis.model import Finding, Report, State, failed, ok, warning
from tp2.diagnosis.naming import NSSWITCH, RESOLV_CONF, hosts_services
from tp2.diagnosis.running import in_thread
from tp2.dns import resolvconf
from tp2.dns.resolvconf import ResolvConf
from tp2.runtime import RuntimeDirectory
from tp2.settings import parse_target
from tp2.terminal.rows import pair

#: Seconds for a lookup, for a connection, and in which one that will be reset is reset.
LOOKUP: Final = 4.0
CONNECTION: Final = 3.0
RESET: Final = 1.0


def explain(target: str, runtime: RuntimeDirectory, *, connect: bool, machine: Machine | None = None) -> Report:
    """Follow *target*, ``NAME[:PORT]`` or ``IP:PORT``.

    :param connect: whether to make a connection in the end.
    :raises NotRunning: there is no tp2 that could be asked.
    :raises Tp2Error: the running tp2 does not answer.
    """
    return asyncio.run(_Walk(target, runtime, machine or Machine(), connect=connect).go())


def expansions(name: str, conf: ResolvConf, *, absolute: bool = False) -> list[str]:
    """Return the names that a resolver asks for in the place of *name*, in its order (resolv.conf(5)). Pure.

    :param absolute: whether the name was given with a dot at its end.
    """
    expanded = [] if absolute else [f"{name}.{domain}" for domain in conf.search]
    if absolute or name.count(".") >= conf.ndots:
        return [name, *expanded]
    return [*expanded, name]


class _Broken(Exception):
    """There is no point in going on."""


class _Walk:
    def __init__(self, target: str, runtime: RuntimeDirectory, machine: Machine, *, connect: bool) -> None:
        self._target = target
        self._host, self._port = parse_target(target)
        self._runtime = runtime
        self._machine = machine
        self._connect = connect
        self._steps: list[Finding] = []
        self._addresses: list[str] = []
        self._began = time.monotonic()

    async def go(self) -> Report:
        try:
            if _is_address(self._host):
                answer = await self._ask(test=True)
                self._addresses = [self._host]
            else:
                answer = await self._follow_name()
            for there in answer["destinations"]:
                self._follow_destination(there, answer)
            if answer["destinations"]:
                self._tunnel(answer)
                for there in answer["destinations"]:
                    self._service(there)
            if self._connect:
                await self._try(answer)
        except _Broken:
            pass
        return Report(tuple(self._steps))

    async def _follow_name(self) -> dict[str, Any]:
        conf = resolvconf.parse(self._machine.read(RESOLV_CONF) or "")
        absolute = self._target.rpartition(":")[0].endswith(".") or self._target.endswith(".")
        names = expansions(self._host, conf, absolute=absolute)
        answer = await self._ask(names=names)
        self._resolver(conf, answer)
        await self._look_up(self._names(names, answer), answer)
        # The lookup has made the mappings, as that of any program would have.
        return await self._ask(names=names, test=True)

    async def _ask(self, *, names: list[str] | None = None, test: bool = False) -> dict[str, Any]:
        return await in_thread(
            lambda: client.ask(
                self._runtime,
                "explain",
                target=self._target.replace(".:", ":").rstrip("."),
                names=names or [],
                test=test,
                connect=test and self._connect,
            )
        )

    def _resolver(self, conf: ResolvConf, answer: dict[str, Any]) -> None:
        services = hosts_services(self._machine.read(NSSWITCH) or "")
        if services is not None and not {"dns", "resolve"} & set(services):
            self._break(
                "resolver",
                failed(
                    "programs that use the system's resolver ask no nameserver",
                    f"{NSSWITCH} says 'hosts: {' '.join(services)}'",
                    f"add 'dns' to the hosts line of {NSSWITCH}",
                ),
            )
        captured = answer["captured"]
        if captured and not set(conf.nameservers) & set(captured):
            self._break(
                "resolver",
                failed(
                    "programs ask a nameserver whose queries do not come to tp2",
                    f"{RESOLV_CONF} names {', '.join(conf.nameservers) or 'none'}, and tp2 captures "
                    f"{', '.join(captured)}",
                    "leave --dns out when tp2 is brought up, or name that nameserver with it",
                ),
            )
        self._step("resolver", ok(f"programs ask {', '.join(conf.nameservers)}, whose queries come to tp2"))

    def _names(self, names: list[str], answer: dict[str, Any]) -> dict[str, Any]:
        """Tell who answers each name until one has an answer; return that one, or else the first of the cluster's."""
        if len(names) > 1:
            self._step("search list", ok(f"asks for {', then '.join(names)}"))
        unanswered: dict[str, Any] | None = None
        for entry in answer["names"]:
            if entry["who"] == "upstream":
                # Whether somebody else has it is for them to say; the cluster does not know it.
                self._step(entry["name"], ok(f"asked of {', '.join(answer['upstream'])}: {entry['why']}"))
            elif entry["records"]:
                first = "the cluster, if nobody else has it" if entry["who"] == "upstream first" else "the cluster"
                self._step(entry["name"], ok(f"{first}: {entry['why']}: {', '.join(entry['records'])}"))
                return dict(entry)
            else:
                # A resolver goes on with the next name.
                unanswered = unanswered or entry
        return dict(unanswered or answer["names"][0])

    async def _look_up(self, decisive: dict[str, Any], answer: dict[str, Any]) -> None:
        began = time.monotonic()
        name = f"{self._host}." if self._target.partition(":")[0].endswith(".") else self._host
        try:
            async with asyncio.timeout(LOOKUP):
                found = await in_thread(lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
        except TimeoutError:
            self._break("lookup", _no_lookup(f"no answer within {LOOKUP:g} s", answer), began)
        except OSError as error:
            if decisive["who"] != "upstream" and not decisive["records"]:
                self._break(decisive["name"], _no_answer(decisive, self._host, answer), began)
            self._break("lookup", _no_lookup(error.strerror or str(error), answer), began)
        self._addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        expected = {record for record in decisive.get("records", ()) if not record.startswith("CNAME ")}
        words = ", ".join(self._addresses)
        if expected and not expected & set(self._addresses):
            self._break(
                "lookup",
                failed(
                    "somebody else answers first",
                    f"the system's resolver gives {words}, and the cluster has {', '.join(sorted(expected))}",
                    "look into /etc/hosts, and at the hosts line of /etc/nsswitch.conf; "
                    "a name with a dot at its end is not looked for in the search list",
                ),
                began,
            )
        self._step("lookup", ok(words), began)

    def _follow_destination(self, there: dict[str, Any], answer: dict[str, Any]) -> None:
        where, row, service = pair(there["address"], there["port"]), there["mapping"], there["service"]
        name = f"rule for {where}"
        if there["left_alone"]:
            self._break(
                name,
                failed(
                    f"connections to {there['address']} are left alone, and do not go through tp2",
                    there["left_alone"],
                    "see 'tp2 doctor' for networks that overlap; --exclude names what is to be left alone",
                ),
            )
        if service is not None and not service["has_port"] and row is None:
            has = ", ".join(map(str, service["ports"])) or "no TCP port"
            self._break(
                name,
                failed(
                    f"{service['name']}.{service['namespace']} has no port {there['port']}",
                    f"it has {has}",
                    f"connect to one of these, or map it all the same: tp2 map {where}",
                ),
            )
        if row is not None:
            lease = (
                "kept until 'tp2 unmap'"
                if row["state"] == "pinned"
                else "in use"
                if row["expires_in"] is None
                else f"kept for {row['expires_in']:.0f} s more"
            )
            self._step(name, ok(f"leads to {pair(row['local_address'], row['local_port'])}: {row['state']}, {lease}"))
        elif answer["mode"] == "origdst" and there["captured"]:
            self._step(name, ok("leads to tp2: the address is the cluster's"))
        elif there["known"]:
            self._break(
                name,
                failed(
                    f"nothing is mapped for {where}",
                    "in mode portmap a connection needs a lookup before it, and an address that was pasted has none",
                    f"use its name ({there['name'] or 'SERVICE.NAMESPACE'}), map it ('tp2 map {where}'), "
                    "or use --mode origdst",
                ),
            )
        else:
            self._step(
                name,
                warning(
                    f"{there['address']} is no address of the cluster's, and connections to it go their ordinary way",
                    "no service and no pod behind one has it",
                    f"if the endpoint should connect to it: tp2 map {where}",
                ),
            )
            if not self._connect:
                raise _Broken

    def _tunnel(self, answer: dict[str, Any]) -> None:
        tunnel, canary = answer["tunnel"], answer["canary"]
        if tunnel["state"] != "connected":
            self._break(
                "tunnel",
                failed(
                    f"the tunnel to {tunnel['remote']} is {tunnel['state']}",
                    tunnel["last_error"] or "it has not come up yet",
                    "tp2 keeps trying; 'tp2 doctor' looks at the way to it",
                ),
            )
        if canary and not canary["ok"] and canary["step"] in ("tunnel", "endpoint"):
            what, _, why = str(canary["why"]).partition(": ")
            self._break("tunnel", failed(what, why, canary["remedy"]))
        if canary and not canary["fresh"]:
            self._break(
                "tunnel",
                failed(
                    f"the tunnel to {tunnel['remote']} is up, and nothing comes back through it",
                    "a connection was opened through it as a test, and got no answer for seconds",
                    "wait: a dead tunnel is noticed within 20 s, and opened anew; 'tp2 doctor' looks at the way to it",
                ),
            )
        through = f" through {tunnel['through']}" if tunnel["through"] else ""
        took = f"; a test came back in {canary['took'] * 1000:.0f} ms" if canary and "took" in canary else ""
        self._step("tunnel", ok(f"to {tunnel['remote']}{through}{took}"))

    def _service(self, there: dict[str, Any]) -> None:
        service, where = there["service"], pair(there["address"], there["port"])
        if service is None:
            return
        title = f"{service['name']}.{service['namespace']}"
        look = f"kubectl -n {service['namespace']} get endpointslices -l kubernetes.io/service-name={service['name']}"
        if not service["ready"]:
            there_are = f"{service['endpoints']} endpoints, none ready" if service["endpoints"] else "no endpoint"
            self._break(
                f"service {title}",
                failed(
                    f"the Service {title} has nobody behind it",
                    f"it has {there_are}",
                    "see whether its selector matches pods, and whether those are ready: "
                    f"kubectl -n {service['namespace']} describe service {service['name']}",
                ),
            )
        if not service["serving"]:
            self._break(
                f"service {title}",
                failed(
                    f"none of the pods behind {title} has the port that {where} leads to",
                    f"{service['ready']} are ready, without it: the targetPort names one that they do not have",
                    look,
                ),
            )
        pods = ", ".join(service["pods"])
        self._step(f"service {title}", ok(f"port {there['port']}: {service['serving']} ready: {pods}"))

    async def _try(self, answer: dict[str, Any]) -> None:
        channel = answer["channel"]
        there = answer["destinations"][0] if answer["destinations"] else None
        where = pair(there["address"], there["port"]) if there else ""
        if channel is not None and there is not None and there["mapping"] is not None and not channel["ok"]:
            self._break(
                "endpoint",
                failed(
                    f"the endpoint cannot connect to {where}",
                    channel["why"],
                    "see whether the pods listen on the Service's targetPort, and whether a NetworkPolicy keeps "
                    "the endpoint out",
                ),
            )
        if channel is not None and channel["ok"]:
            took = f"{channel['took'] * 1000:.1f}"
            self._step("endpoint", ok(f"connects to {where} in {took} ms"))
        port = there["port"] if there else self._port
        if port is None:
            self._step("connection", warning("not tried", "no port is known", f"name it: {self._host}:PORT"))
            return
        address, began = there["address"] if there else self._addresses[0], time.monotonic()
        outcome = await _connect(address, port)
        if outcome is not None:
            self._break(
                "connection",
                failed(
                    f"a connection to {pair(address, port)} fails",
                    outcome,
                    "'tp2 doctor' looks at everything on the way; 'tp2 up --verbose' says what becomes of each",
                ),
                began,
            )
        self._step("connection", ok(f"to {pair(address, port)}: it is open"), began)

    def _step(self, name: str, finding: Finding, began: float | None = None) -> None:
        now = time.monotonic()
        self._steps.append(replace(finding, check=name, took=now - (self._began if began is None else began)))
        self._began = now

    def _break(self, name: str, finding: Finding, began: float | None = None) -> NoReturn:
        self._step(name, finding, began)
        raise _Broken


async def _connect(address: str, port: int) -> str | None:
    """Return why a connection fails, or None: it stays open, or its other end has something to say."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECTION):
                await loop.sock_connect(sock, (address, port))
        except TimeoutError:
            return f"no answer within {CONNECTION:g} s"
        except OSError as error:
            return error.strerror or str(error)
        try:
            async with asyncio.timeout(RESET):
                await loop.sock_recv(sock, 1)
        except TimeoutError:
            return None
        except OSError as error:
            return f"it is open for a moment, and then: {error.strerror or error}"
    return None


def _no_answer(entry: dict[str, Any], host: str, answer: dict[str, Any]) -> Finding:
    near = f"; there is {answer['near']}" if answer["near"] else ""
    cluster = answer["cluster"]
    stale = "" if cluster["synced"] else f"; and tp2 is not in touch with the cluster: {cluster['last_error']}"
    return failed(f"the cluster answers {entry['rcode']}", f"{entry['why']}{near}{stale}", _remedy_for(entry, host))


def _no_lookup(why: str, answer: dict[str, Any]) -> Finding:
    if answer["names"] and all(entry["who"] == "upstream" for entry in answer["names"]):
        near = f"; the cluster has {answer['near']}" if answer["near"] else ""
        return failed(
            "nobody knows the name",
            f"it is not the cluster's, and {', '.join(answer['upstream'])} said: {why}{near}",
            "write it as SERVICE.NAMESPACE; 'kubectl get services --all-namespaces' lists what there is",
        )
    return failed(
        "the system's resolver gives no address",
        why,
        "'tp2 doctor' looks at whom it asks; 'dig NAME' shows what tp2 answers, an extended error included",
    )


def _remedy_for(entry: dict[str, Any], host: str) -> str:
    if entry["rcode"] == "SERVFAIL":
        return "ask for the right to list services there, or leave the namespace out"
    if "no ready endpoint" in entry["why"]:
        return "see whether its pods are ready: kubectl get endpointslices --all-namespaces"
    if entry["rcode"] == "NOERROR":
        return f"{host} has no address: use the name of a service"
    return "see 'kubectl get services --all-namespaces' for what there is, and whether this is the right context"


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def as_json(target: str, report: Report) -> dict[str, Any]:
    """Return the object of ``tp2 explain --json``."""
    steps = [
        {key: value for key, value in finding.as_json().items() if key not in ("place", "check")}
        | {"step": finding.check}
        for finding in report.findings
    ]
    breaks = next((step for step in steps if step["state"] == State.FAILED), None)
    return {"target": target, "works": report.well, "breaks_at": breaks, "steps": steps}


def conclusion(target: str, report: Report) -> str:
    """Say where it breaks, or that it works."""
    broken = next((finding for finding in report.findings if finding.state is State.FAILED), None)
    if broken is None:
        return f"{target}: nothing is in its way."
    return f"{target}: it breaks at {broken.check}: {broken.what} ({broken.why}). Try: {broken.remedy}."
