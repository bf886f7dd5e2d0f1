"""A double of pfctl(8), since there is none on Linux: a real program with a memory, and a log of every run.

It knows what tp2 asks of pfctl and nothing else, answers with the words and exit codes of the real one, judges rules
with :mod:`tests.doubles.pfgrammar`, and loads them as the real one does: wholly, or not at all. Beyond that it knows
what must not be done to a machine (rules before pf is enabled, a reference let go before the rules, ``pfctl -d``
on macOS, another's ruleset replaced): it refuses, and remembers it among its ``violations``.

A test makes one with :class:`Double`, which puts an executable into a directory for the PATH.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

MACOS_MAIN = {
    "nat": ['nat-anchor "com.apple/*" all', 'rdr-anchor "com.apple/*" all'],
    "rules": ['scrub-anchor "com.apple/*" all fragment reassemble', 'anchor "com.apple/*" all'],
}
FREEBSD_HOOKS = {"nat": ['rdr-anchor "tp2" all'], "rules": ['anchor "tp2" all']}
ANCHORS = {"macOS": "com.apple/tp2", "FreeBSD": "tp2"}

_ROOT = Path(__file__).resolve().parents[2]


class Double:
    """A machine with pf, as it looks through pfctl.

    :param path: an empty directory of its own. ``bin`` in it is for the PATH.
    :param system: ``macOS`` or ``FreeBSD``.
    :param state: what differs from a machine that was just started.
    """

    def __init__(self, path: Path, system: str = "macOS", **state: Any) -> None:
        self.path = path
        self.bin = path / "bin"
        self.bin.mkdir(parents=True)
        self.anchor = ANCHORS[system]
        fresh: dict[str, Any] = {
            "system": system,
            "enabled": False,
            "tokens": {},
            "next_token": 4242,
            "main": MACOS_MAIN if system == "macOS" else {"nat": [], "rules": []},
            "anchors": {},
            "skip": [],
            "privileged": True,
            "module": True,
            "faults": {},
            "violations": [],
        }
        (path / "state").write_text(json.dumps(fresh | state))
        (path / "calls").touch()
        self.program("pfctl", f"from tests.doubles.pfctl import main; main({str(path)!r})")

    def program(self, name: str, python: str) -> None:
        """Put another double into ``bin``."""
        program = self.bin / name
        # -IS: nothing that is installed is needed, and to look for it would take most of the time.
        program.write_text(f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(_ROOT)!r})\n{python}\n")
        program.chmod(0o755)

    @property
    def state(self) -> dict[str, Any]:
        """The machine's state now."""
        with _locked(self.path) as state:
            return state

    def set(self, **changes: Any) -> None:
        """Change the machine behind tp2's back. ``faults={"load": HOW}`` makes the next load fail; see _load."""
        with _locked(self.path) as state:
            state |= changes

    @property
    def rules(self) -> str:
        """What tp2's anchor holds."""
        return str(self.state["anchors"].get(self.anchor, ""))

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every run so far."""
        return [json.loads(line)["arguments"] for line in (self.path / "calls").read_text().splitlines()]

    @property
    def loads(self) -> int:
        """How many runs loaded tp2's anchor, or tried to."""
        return sum("-a" in arguments and "-f" in arguments for arguments in self.calls)


@contextmanager
def _locked(path: Path) -> Iterator[dict[str, Any]]:
    with (path / "state").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read()
        state: dict[str, Any] = json.loads(before)
        try:
            yield state
        finally:
            after = json.dumps(state)
            if after != before:
                file.seek(0)
                file.write(after)
                file.truncate()


def load_module(path: str) -> None:
    """Be kldload(8) on the machine at *path*."""
    with _locked(Path(path)) as state:
        state["module"] = True


class _KilledError(Exception):
    """This run dies by SIGKILL, before it has changed anything."""


class _Failed(Exception):
    """Ends this run with exit code 1 and these words on standard error."""


def main(path: str) -> NoReturn:
    """Be pfctl on the machine at *path*."""
    arguments = sys.argv[1:]
    with (Path(path) / "calls").open("a") as calls:
        calls.write(json.dumps({"arguments": arguments}) + "\n")
    code = 0
    with _locked(Path(path)) as state:
        # Told to be slow with one of its options: this run stops short of its work, or else of its word.
        slow = _is_told(state, "slow before", arguments)
        mute = _is_told(state, "slow after", arguments)
    if slow:
        sys.stdin = io.StringIO(sys.stdin.read())
        _outlive_parent(path)
    with _locked(Path(path)) as state:
        try:
            _run(state, arguments)
        except _Failed as failed:
            sys.stderr.write(f"{failed}\n")
            code = 1
        except _KilledError:
            code = -signal.SIGKILL
    if mute:
        _outlive_parent(path)
    if code < 0:
        os.kill(os.getpid(), -code)
    raise SystemExit(code)


def _is_told(state: dict[str, Any], fault: str, arguments: list[str]) -> bool:
    told = state["faults"].get(fault) in arguments
    if told:
        del state["faults"][fault]
    return told


def _outlive_parent(path: str) -> None:
    """Go on when whoever started this run is gone, and after whoever does not wait for this run to end."""
    parent, calls = os.getppid(), Path(path) / "calls"
    before = calls.stat().st_size
    (Path(path) / "waiting").touch()
    while os.getppid() == parent:
        time.sleep(0.01)
    deadline = time.monotonic() + 1.5
    while calls.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    # Nobody reads what it has to say any more, and it does not care.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _run(state: dict[str, Any], arguments: list[str]) -> None:
    if not state["module"]:
        raise _Failed("pfctl: /dev/pf: No such file or directory")
    if not state["privileged"]:
        raise _Failed("pfctl: /dev/pf: Permission denied")
    if state["system"] == "macOS":
        sys.stderr.write("No ALTQ support in kernel\nALTQ related functions disabled\n")
    match state["system"], arguments:
        case "macOS", ["-E"]:
            _enable(state)
        case "macOS", ["-X", token]:
            _release(state, token)
        case "FreeBSD", ["-e"]:
            if state["enabled"]:
                raise _Failed("pfctl: pf already enabled")
            state["enabled"] = True
            sys.stderr.write("pf enabled\n")
        case _, ["-d"]:
            _disable(state)
        case "macOS", ["-s", "References"]:
            print("TOKENS:\nPID      Process Name                 TOKEN                    TIMESTAMP")
            for token, pid in state["tokens"].items():
                print(f"{pid:<8} {'pfctl':<28} {token:<24} 0 days 00:00:07")
        case _, ["-s", "info"]:
            status = "Enabled for 0 days 00:00:07" if state["enabled"] else "Disabled"
            print(f"Status: {status:<45}Debug: Urgent\n")
        case _, ["-s", ("nat" | "rules") as which]:
            print("\n".join(state["main"][which]))
        case _, ["-v", "-s", "Interfaces"]:
            for name in ("all", "en0", "lo0"):
                print(name + (" (skip)" if name in state["skip"] else ""))
                print("\tCleared:     Tue Nov 25 18:32:41 2025\n\tReferences:  [ States:  0   Rules: 0 ]")
        case _, ["-a", anchor, "-s", ("nat" | "rules") as which]:
            wanted = ("rdr", "no") if which == "nat" else ("pass",)
            lines = state["anchors"].get(anchor, "").splitlines()
            print("\n".join(line for line in lines if line.startswith(wanted)))
        case _, ["-a", anchor, "-F", "all"]:
            if state["faults"].pop("flush", None):
                raise _Failed("pfctl: DIOCXBEGIN: Device busy")
            state["anchors"].pop(anchor, None)
            sys.stderr.write("rules cleared\nnat cleared\n0 tables deleted.\n")
        case "FreeBSD", ["-F", ("nat" | "rules") as which]:
            state["main"] = state["main"] | {which: []}
        case _, ["-a", anchor, "-o", "none", "-f", "-"]:
            _load(state, anchor, sys.stdin.read())
        case "FreeBSD", ["-f", "-"]:
            _load_main(state, sys.stdin.read())
        case _, [*_, "-f", _] | ["-F", "all"]:
            raise _violation(state, "what others have loaded would go")
        case _:
            raise _Failed("usage: pfctl [-AdeghmNnOqRrvz] [-a anchor] ...")


def _enable(state: dict[str, Any]) -> None:
    token = str(state["next_token"])
    state["next_token"] += 1
    state["tokens"][token] = os.getpid()
    state["enabled"] = True
    sys.stderr.write(f"pf enabled\nToken : {token}\n")


def _release(state: dict[str, Any], token: str) -> None:
    if state["anchors"].get(ANCHORS["macOS"]):
        raise _violation(state, "the reference goes before the rules")
    if token not in state["tokens"]:
        raise _Failed("pfctl: pf not enabled with this token")
    del state["tokens"][token]
    left = len(state["tokens"])
    state["enabled"] = left > 0
    how = f"{left} more pf enable reference(s) remaining, pf still enabled" if left else "pf disabled"
    sys.stderr.write(f"disable request successful. {how}.\n")


def _disable(state: dict[str, Any]) -> None:
    if state["system"] == "macOS":
        raise _violation(state, "pfctl -d takes everybody's references away")
    if not state["enabled"]:
        raise _Failed("pfctl: pf not enabled")
    state["enabled"] = False
    sys.stderr.write("pf disabled\n")


def _load(state: dict[str, Any], anchor: str, text: str) -> None:
    """Load, or fail as told: ``commit``: the kernel does not take it; ``killed``: the process dies half-way;
    ``hangs``: it does not end.
    """
    _warn_of_f(state)
    fault = state["faults"].pop("load", None)
    if fault == "killed":
        raise _KilledError
    if fault == "hangs":
        signal.pause()
    from tests.doubles.pfgrammar import TABLE, GrammarError, parse  # slow to import: most runs load nothing

    try:
        ruleset = parse(text)
    except GrammarError as error:
        raise _Failed(
            f"stdin:{error.line}: {error.reason}\npfctl: Syntax error in config file: pf rules not loaded"
        ) from error
    if fault == "commit":
        raise _Failed("pfctl: DIOCXCOMMIT: Device busy")
    if any(rule.to == TABLE for rule in ruleset.rules) and not ruleset.table:
        raise _Failed(f"pfctl: table {TABLE} is not there")
    if anchor != ANCHORS[state["system"]]:
        raise _violation(state, f"{anchor} is not tp2's anchor")
    if ruleset.rules and not state["enabled"]:
        raise _violation(state, "rules before pf is enabled")
    state["anchors"][anchor] = text if ruleset.rules else ""


def _load_main(state: dict[str, Any], text: str) -> None:
    if any(state["main"].values()):
        raise _violation(state, "what others have loaded would go")
    # Cleared before anything is parsed, and so even by a text that is refused.
    state["skip"] = []
    if not re.fullmatch(r'(rdr-anchor "tp2"\n)?(anchor "tp2"\n)?', text):
        raise _Failed("stdin:1: syntax error\npfctl: Syntax error in config file: pf rules not loaded")
    lines = [f"{line} all" for line in text.splitlines()]
    state["main"] = {
        "nat": [line for line in lines if line.startswith("rdr-anchor")],
        "rules": [line for line in lines if line.startswith("anchor")],
    }


def _warn_of_f(state: dict[str, Any]) -> None:
    if state["system"] == "macOS":
        sys.stderr.write(
            "pfctl: Use of -f option, could result in flushing of rules\n"
            "present in the main ruleset added by the system at startup.\nSee /etc/pf.conf for further details.\n\n"
        )


def _violation(state: dict[str, Any], what: str) -> _Failed:
    state["violations"].append(what)
    return _Failed(f"pfctl double: refused: {what}")
