"""What the daemon and the helper say to each other: JSON, a line each way, over a Unix stream socket.

===================================================== ======================================================
request                                               meaning (see :class:`tp2.forward.rules.Rules`)
===================================================== ======================================================
``{"op":"dns","nameservers":[A...],"port":LOCAL}``    capture_dns
``{"op":"update","add":[[A,P,LOCAL,A]...],``          update; the second A is of the loopback network, or
``"remove":[[A,P]...]}``                              null
``{"op":"cluster","add":[A...],"remove":[A...],``     cluster; LOCAL is null where connections are refused
``"port":LOCAL}``
``{"op":"containers","inlets":[[I,LOCAL,LOCAL]...]}`` containers: interface, port for TCP, port for DNS
``{"op":"steer","domains":[D...],"search":[D...],``   steer_dns
``"port":LOCAL}``
``{"op":"refused"}``                                  refused; the answer has ``"refused":[[A,P,COUNT]...]``
``{"op":"end_orphans"}``                              end_orphans
``{"op":"exempt"}`` and a descriptor                  exempt that socket (it comes along by SCM_RIGHTS)
end of file                                           remove everything and end
===================================================== ======================================================

A is the text of an IP address, P a port, I the name of a network interface, D a domain, LOCAL a local port from
1024 on.

The helper speaks first: ``{"ok":true,"kind":KIND,"pid":PID,"lack":WORDS}`` once the platform's rules are claimed;
WORDS tell what they cannot do on this machine, and are null where there is nothing to tell. It answers every
request, in order, with ``{"ok":true}`` or with ``{"error":[WHAT,WHY,REMEDY],"exit_code":N}``: then nothing has
changed. After a request that is not well formed it ends: only the daemon speaks to it, and the daemon does not make
mistakes of that kind. On Linux, a request whose local ports are not listened on by the user who sent it is answered
with an error.

This module is pure: it turns lines into checked requests and back. The helper trusts nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tp2.errors import (
    AlreadyRunning,
    ExitCode,
    ForwarderError,
    PrivilegeError,
    Tp2Error,
)
from tp2.forward.resolverfiles import checked_domain
from tp2.forward.rules import (
    FIRST_UNPRIVILEGED_PORT,
    Inlet,
    checked_address,
    checked_cluster_address,
    checked_destination,
    checked_inlet,
    checked_port,
    checked_redirect,
)
from tp2.types import Destination, Redirect

#: No request is longer, in bytes: 65,535 redirects of IPv6 addresses fit.
MAX_LINE = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CaptureDns:
    """Send port 53 of exactly these nameservers to a local port."""

    nameservers: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Update:
    """Take these redirects away, then set those."""

    add: tuple[Redirect, ...]
    remove: tuple[Destination, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Change the cluster's addresses; send what no redirect names to a local port, or refuse it."""

    add: tuple[str, ...]
    remove: tuple[str, ...]
    port: int | None


@dataclass(frozen=True, slots=True)
class Containers:
    """Capture what comes in by exactly these inlets."""

    inlets: tuple[Inlet, ...]


@dataclass(frozen=True, slots=True)
class SteerDns:
    """Have the system ask a local port for names below exactly these domains."""

    domains: tuple[str, ...]
    search: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Exempt:
    """Exempt the socket that came with this message."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Tell what was refused since the last such request."""


@dataclass(frozen=True, slots=True)
class EndOrphans:
    """End captured connections whose own address is gone."""


Request = CaptureDns | Update | Cluster | Containers | SteerDns | Exempt | Refused | EndOrphans


class ProtocolError(Exception):
    """The other side said something that is not in the table above."""


def encode_request(request: Request) -> bytes:
    """Return the line for *request*."""
    match request:
        case CaptureDns(nameservers, port):
            message: dict[str, Any] = {"op": "dns", "nameservers": nameservers, "port": port}
        case Update(add, remove):
            message = {
                "op": "update",
                "add": [(r.destination.address, r.destination.port, r.local_port, r.local_address) for r in add],
                "remove": remove,
            }
        case Cluster(add=addresses, remove=gone, port=local):
            message = {"op": "cluster", "add": addresses, "remove": gone, "port": local}
        case Containers(inlets):
            message = {"op": "containers", "inlets": inlets}
        case SteerDns(domains, search, port):
            message = {"op": "steer", "domains": domains, "search": search, "port": port}
        case Exempt():
            message = {"op": "exempt"}
        case Refused():
            message = {"op": "refused"}
        case EndOrphans():
            message = {"op": "end_orphans"}
    return _line(message)


def decode_request(line: bytes) -> Request:
    """Return the request in *line*, every field checked.

    :raises ProtocolError: anything is missing, left over or out of range.
    """
    message = _object(line)
    try:
        match message:
            case {"op": "dns", "nameservers": list(nameservers), "port": port, **rest} if not rest:
                return CaptureDns(
                    tuple(checked_address(a) for a in nameservers), checked_port(port, FIRST_UNPRIVILEGED_PORT)
                )
            case {"op": "update", "add": list(add), "remove": list(remove), **rest} if not rest:
                return Update(
                    tuple(checked_redirect(*_fields(item, 4)) for item in add),
                    tuple(checked_destination(*_fields(item, 2)) for item in remove),
                )
            case {"op": "cluster", "add": list(add), "remove": list(remove), "port": port, **rest} if not rest:
                return Cluster(
                    tuple(checked_cluster_address(a) for a in add),
                    tuple(checked_cluster_address(a) for a in remove),
                    None if port is None else checked_port(port, FIRST_UNPRIVILEGED_PORT),
                )
            case {"op": "containers", "inlets": list(inlets), **rest} if not rest:
                return Containers(tuple(checked_inlet(*_fields(item, 3)) for item in inlets))
            case {"op": "steer", "domains": list(domains), "search": list(search), "port": port, **rest} if not rest:
                return SteerDns(
                    tuple(checked_domain(domain) for domain in domains),
                    tuple(checked_domain(domain) for domain in search),
                    checked_port(port, FIRST_UNPRIVILEGED_PORT),
                )
            case {"op": "exempt", **rest} if not rest:
                return Exempt()
            case {"op": "refused", **rest} if not rest:
                return Refused()
            case {"op": "end_orphans", **rest} if not rest:
                return EndOrphans()
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    raise ProtocolError(f"not a request: {str(message)[:80]}")


def encode_hello(kind: str, pid: int, lack: str | None = None) -> bytes:
    """Return the helper's first line; *lack* is what cannot be done on this machine, in words."""
    return _line({"ok": True, "kind": kind, "pid": pid, "lack": lack})


def encode_reply(error: Tp2Error | None = None, refused: Mapping[Destination, int] | None = None) -> bytes:
    """Return the line that answers a request; *refused* answers :class:`Refused`."""
    if refused is not None:
        return _line({"ok": True, "refused": [(*destination, count) for destination, count in refused.items()]})
    if error is None:
        return _line({"ok": True})
    return _line({"error": [error.what, error.why, error.remedy], "exit_code": int(error.exit_code)})


def decode_reply(line: bytes) -> dict[str, Any]:
    """Return the fields of a reply that says ok.

    :raises Tp2Error: the reply carries an error: the same one, on this side.
    :raises ProtocolError: it is no reply.
    """
    message = _object(line)
    match message:
        case {"ok": True}:
            return message
        case {"error": [str(what), str(why), str(remedy)], "exit_code": int(code)}:
            raise _ERRORS.get(code, ForwarderError)(what, why, remedy)
    raise ProtocolError(f"not a reply: {str(message)[:80]}")


def decode_refused(line: bytes) -> dict[Destination, int]:
    """Return what the answer to :class:`Refused` tells.

    :raises Tp2Error: as :func:`decode_reply`.
    :raises ProtocolError: it is no such answer.
    """
    told = decode_reply(line).get("refused")
    try:
        if isinstance(told, list):
            rows = [_fields(item, 3) for item in told]
            return {checked_destination(address, port): _count(count) for address, port, count in rows}
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    raise ProtocolError(f"not a list of refused connections: {line[:80]!r}")


_ERRORS: dict[int, type[Tp2Error]] = {
    ExitCode.PRIVILEGE: PrivilegeError,
    ExitCode.ALREADY_RUNNING: AlreadyRunning,
    ExitCode.FORWARDER: ForwarderError,
}


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"not an object: {line[:80]!r}")
    return message


def _fields(item: object, count: int) -> Sequence[object]:
    if not isinstance(item, list) or len(item) != count:
        raise ValueError(f"not {count} fields: {str(item)[:80]}")
    return item


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"not a number of connections: {value!r}")
    return value
