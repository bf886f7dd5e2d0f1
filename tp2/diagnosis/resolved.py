"""What ``resolvectl status`` says: how systemd-resolved asks, for the whole machine and for each link. Pure.

The words are those of resolvectl(1) from systemd 247 on (``Protocols: +LLMNR -mDNS DNSOverTLS=opportunistic
DNSSEC=no/unsupported``) and of those before it (``DNSOverTLS setting: yes``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

Setting = Literal["yes", "no", "opportunistic"]


@dataclass(frozen=True, slots=True)
class Scope:
    """The machine (``link`` is "") or one of its links.

    :param over_tls: whether DNS goes over TLS (RFC 7858), to a port that nobody captures.
    :param validates: whether answers that have no DNSSEC signature are refused where there should be one.
    :param domains: the names that are asked here; ``~.`` is for all.
    """

    link: str = ""
    over_tls: Setting = "no"
    validates: Literal["yes", "no", "allow-downgrade"] = "no"
    servers: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """What it is."""
        return f"the link {self.link}" if self.link else "the whole machine"


_HEADING = re.compile(r"^(?:Global|Link \d+ \((?P<link>[^)]+)\))\s*$")
_FIELD = re.compile(r"^\s+(?P<name>[A-Z][\w.\- ]*):\s?(?P<value>.*)$")


def parse(text: str) -> list[Scope]:
    """Return what *text* says of each scope. Never fails: what is not understood is passed over."""
    scopes: list[Scope] = []
    name = ""
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            scopes.append(Scope(heading["link"] or ""))
            name = ""
        elif scopes and (match := _FIELD.match(line)):
            name = match["name"].strip()
            scopes[-1] = _with(scopes[-1], name, match["value"].split())
        elif scopes and line.strip():
            scopes[-1] = _with(scopes[-1], name, line.split())
    return scopes


def _with(scope: Scope, name: str, words: list[str]) -> Scope:
    match name:
        case "Protocols":
            for word in words:
                key, _, value = word.partition("=")
                if key.endswith("DNSOverTLS"):
                    value = value or ("yes" if key.startswith("+") else "no")
                    scope = _over_tls(scope, value)
                elif key == "DNSSEC":
                    scope = _validates(scope, value.partition("/")[0])
        case "DNSOverTLS setting" if words:
            scope = _over_tls(scope, words[0])
        case "DNSSEC setting" if words:
            scope = _validates(scope, words[0])
        case "DNS Servers":
            return replace(scope, servers=(*scope.servers, *words))
        case "DNS Domain":
            return replace(scope, domains=(*scope.domains, *words))
    return scope


def _over_tls(scope: Scope, value: str) -> Scope:
    if value in ("yes", "no", "opportunistic"):
        return replace(scope, over_tls=value)  # type: ignore[arg-type]
    return scope


def _validates(scope: Scope, value: str) -> Scope:
    if value in ("yes", "no", "allow-downgrade"):
        return replace(scope, validates=value)  # type: ignore[arg-type]
    return scope
