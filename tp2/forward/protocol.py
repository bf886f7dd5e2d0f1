"""What the daemon and the helper say to each other: JSON, a line each way, over a Unix stream socket.

================================================ =======================================================
request                                          meaning (see :class:`tp2.forward.rules.Rules`)
================================================ =======================================================
``{"op":"dns","nameservers":[A...],"port":P}``   capture_dns
``{"op":"update","add":[[A,P,LOCAL]...],``       update
``"remove":[[A,P]...]}``
``{"op":"exempt"}`` and a descriptor             exempt that socket (it comes along by SCM_RIGHTS)
end of file                                      remove everything and end
================================================ =======================================================

The helper speaks first: ``{"ok":true,"kind":KIND,"pid":PID}`` once the platform's rules are claimed. It answers
every request, in order, with ``{"ok":true}`` or ``{"error":[WHAT,WHY,REMEDY],"exit_code":N}``. After a request that
is not well formed it ends: only the daemon speaks to it, and the daemon does not make mistakes of that kind.

This module is pure: it turns lines into checked requests and back. The helper trusts nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tp2.errors import (
    AlreadyRunning,
    ExitCode,
    ForwarderError,
    PrivilegeError,
    Tp2Error,
)
from tp2.forward.rules import (
    FIRST_UNPRIVILEGED_PORT,
    checked_address,
    checked_destination,
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
class Exempt:
    """Exempt the socket that came with this message."""


Request = CaptureDns | Update | Exempt


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
                "add": [(r.destination.address, r.destination.port, r.local_port) for r in add],
                "remove": remove,
            }
        case Exempt():
            message = {"op": "exempt"}
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
                    tuple(checked_redirect(*_fields(item, 3)) for item in add),
                    tuple(checked_destination(*_fields(item, 2)) for item in remove),
                )
            case {"op": "exempt", **rest} if not rest:
                return Exempt()
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    raise ProtocolError(f"not a request: {str(message)[:80]}")


def encode_hello(kind: str, pid: int) -> bytes:
    """Return the helper's first line."""
    return _line({"ok": True, "kind": kind, "pid": pid})


def encode_reply(error: Tp2Error | None = None) -> bytes:
    """Return the line that answers a request."""
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
