"""What a rule costs that a process sets. Run in a namespace of its own: ``python -m bench.rules WHAT LIVE COUNT``.

WHAT is ``nft`` (an element of a map like tp2's) or ``iptables`` (a rule of a chain). LIVE of them are there before, set
all at once; then each of COUNT processes adds one more, and the seconds that each took go to standard output as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

_TABLE: Final = "inet bench"
_MAP: Final = f"""\
add table {_TABLE}
add map {_TABLE} redirects {{ type ipv4_addr . inet_service : inet_service; }}
add chain {_TABLE} output {{ type nat hook output priority -105; policy accept; }}
add rule {_TABLE} output meta l4proto tcp redirect to :ip daddr . tcp dport map @redirects
"""


def nft(live: int, count: int) -> list[float]:
    """Time processes of ``nft add element``."""
    elements = ", ".join(_element(number) for number in range(live))
    script = _MAP + (f"add element {_TABLE} redirects {{ {elements} }}\n" if live else "")
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
    try:
        return _timed(lambda n: ["nft", f"add element {_TABLE} redirects {{ {_element(n)} }}"], live, count)
    finally:
        subprocess.run(["nft", "delete", "table", *_TABLE.split()], check=True)


def iptables(live: int, count: int) -> list[float]:
    """Time processes of ``iptables --append``."""
    rules = "".join(f"-A OUTPUT {' '.join(_rule(number))}\n" for number in range(live))
    subprocess.run(["iptables-restore"], input=f"*nat\n{rules}COMMIT\n", text=True, check=True)
    try:
        return _timed(lambda n: ["iptables", "-t", "nat", "-A", "OUTPUT", *_rule(n)], live, count)
    finally:
        subprocess.run(["iptables", "-t", "nat", "-F", "OUTPUT"], check=True)


def _timed(command: Callable[[int], list[str]], live: int, count: int) -> list[float]:
    times = []
    for number in range(live, live + count):
        arguments = command(number)
        program = shutil.which(arguments[0]) or arguments[0]
        began = time.perf_counter()
        # As cheap as a process can be started: what is measured is its own cost and not Python's.
        process = os.posix_spawn(program, arguments, os.environ)
        if os.waitpid(process, 0)[1] != 0:
            raise SystemExit(f"{arguments[0]} failed")
        times.append(time.perf_counter() - began)
    return times


def _address(number: int) -> str:
    return f"10.97.{number // 250}.{1 + number % 250}"


def _element(number: int) -> str:
    return f"{_address(number)} . 80 : {20000 + number % 40000}"


def _rule(number: int) -> list[str]:
    where = ["-p", "tcp", "-d", _address(number), "--dport", "80"]
    return [*where, "-j", "REDIRECT", "--to-ports", str(20000 + number % 40000)]


if __name__ == "__main__":
    what, present, more = sys.argv[1:]
    json.dump({"nft": nft, "iptables": iptables}[what](int(present), int(more)), sys.stdout)
