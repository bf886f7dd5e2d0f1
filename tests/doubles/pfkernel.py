"""What pf's own kernel would do with the rules that the double of pfctl holds, done by nftables in a namespace.

It reads the lines that tp2 writes into its anchor, and no others, and knows nothing of the code that writes them:
translations, in their order, and which source ports pass by them. So a connection goes where a Mac's would go, as far
as Linux can tell: that pf itself takes the rules so is for ``tests/live`` to show.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.doubles.pfctl import ANCHORS

TABLE = "inet pf_double"

_CLUSTER = re.compile(r"table <(?P<name>\w+)> \{ (?P<addresses>[^}]*) \}")
_REDIRECT = re.compile(
    r"rdr pass on lo0 inet6? proto (?P<protocol>tcp|udp) from ! \S+ to (?P<to>\S+)(?: port (?P<port>\d+))?"
    r" -> \S+ port (?P<local>\d+)"
)
_EXEMPT = re.compile(
    r"pass out quick inet6? proto (?P<protocol>tcp|udp)"
    r" from any port (?P<low>\d+):(?P<high>\d+) to (?P<to>\S+) port 53\b"
)


def translated(text: str) -> str:
    """Return nft(8)'s commands for the rules *text* of tp2's anchor."""
    tables = {found["name"]: found["addresses"].split(", ") for found in _CLUSTER.finditer(text)}
    rules = []
    for found in _EXEMPT.finditer(text):
        protocol = found["protocol"]
        ports = f"{protocol} sport {found['low']}-{found['high']} {protocol} dport 53"
        rules.append(f"{_to(found['to'])} {ports} return")
    for found in _REDIRECT.finditer(text):
        there = tables.get(found["to"].strip("<>"), [found["to"]])
        port = f"{found['protocol']} dport {found['port']}" if found["port"] else f"meta l4proto {found['protocol']}"
        family = "inet6" if " inet6 " in found[0] else "inet"
        rules += [
            f"{_to(address)} {port} redirect to :{found['local']}"
            for address in there
            if (":" in address) == (family == "inet6")
        ]
    body = "\n".join(rules)
    chain = f"chain output {{\ntype nat hook output priority -110;\n{body}\n}}"
    return f"add table {TABLE}\ndelete table {TABLE}\n" + (f"table {TABLE} {{\n{chain}\n}}\n" if rules else "")


def follow(path: str) -> None:
    """Do what the double at *path* has been told, in this network namespace."""
    state = json.loads((Path(path) / "state").read_text())
    text = str(state["anchors"].get(ANCHORS[state["system"]], ""))
    subprocess.run(["nft", "-f", "-"], input=translated(text), text=True, check=True)


def _to(address: str) -> str:
    return f"{'ip6' if ':' in address else 'ip'} daddr {address}"
