"""resolv.conf: which nameservers, search list and options this machine uses.

:func:`parse` is pure and reads what glibc reads (resolv.conf(5)): unknown and broken lines are passed over, as every
resolver does, because a file that works for the user's programs must not stop tp2.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from tp2.errors import Tp2Error


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """The file's meaning.

    :param nameservers: addresses in canonical text form, an IPv6 scope (``fe80::1%eth0``) included, in the order
        of the file, each once.
    :param search: the search list, lower case, without trailing dots.
    :param options: each option with its value, ``""`` for those without one.
    """

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()

    @property
    def ndots(self) -> int:
        """Names with at least this many dots are tried as they are first; 1 unless the file says otherwise."""
        values = [value for name, value in self.options if name == "ndots" and value.isdecimal()]
        # glibc's RES_MAXNDOTS.
        return min(int(values[-1][:4]), 15) if values else 1


def parse(text: str) -> ResolvConf:
    """What a resolver makes of *text*. Never fails."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    options: dict[str, str] = {}
    for line in text.splitlines():
        # glibc knows comments only at the start of a line, but people and generators put them after values too.
        keyword, *values = _before_comment(line).split() or [""]
        if keyword == "nameserver" and values:
            address = _address(values[0])
            if address and address not in nameservers:
                nameservers.append(address)
        elif keyword == "search" and values:
            # The last of the lines "search" and "domain" wins.
            search = tuple(_domain(value) for value in values)
        elif keyword == "domain" and values:
            search = (_domain(values[0]),)
        elif keyword == "options":
            for value in values:
                name, _, argument = value.partition(":")
                options[name] = argument
    return ResolvConf(tuple(nameservers), tuple(name for name in search if name), tuple(options.items()))


def read(path: Path) -> ResolvConf:
    """Read the file at *path*, through symlinks.

    :raises Tp2Error: it cannot be read.
    """
    try:
        return parse(path.read_bytes().decode(errors="replace"))
    except OSError as error:
        raise Tp2Error(
            f"cannot read {path}",
            error.strerror or str(error),
            "name the nameservers with --dns and --fallback, or make the file readable",
        ) from error


def _before_comment(line: str) -> str:
    for sign in "#;":
        line = line.partition(sign)[0]
    return line


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _domain(name: str) -> str:
    return name.rstrip(".").lower()
