"""pfctl(8) as a program that is asked: its questions, its answers, and its errors in words that help.

Every run is a process, started through ``sh``. macOS' pfctl writes to standard error even when all is well (that the
kernel has no ALTQ, that ``-f`` may flush rules), so the exit code alone says whether it worked.

======== ================= ==================================== ======================
system   anchor            who has to call it                   enabled by
======== ================= ==================================== ======================
macOS    ``com.apple/tp2`` ``com.apple/*``: the system's own    ``-E``, a reference;
                           ruleset does                         ``-X`` lets it go
FreeBSD  ``tp2``           ``tp2``: the administrator's pf.conf ``-e``; ``-d``
======== ================= ==================================== ======================
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sh

from tp2.errors import ForwarderError, PrivilegeError, Tp2Error
from tp2.forward.platforms import Platform

#: Where both systems have it. The PATH comes second: root should not run what a user's directory offers.
PROGRAM: Final = Path("/sbin/pfctl")

#: Seconds that one run may take. Twenty thousand rules load in well under a second.
TIMEOUT: Final = 30.0

_TOKEN: Final = re.compile(r"Token\s*:\s*(\d+)")

# What macOS says at every run, and of every -f.
_NOISE: Final = (
    "ALTQ",
    "Use of -f option",
    "present in the main ruleset",
    "See /etc/pf.conf",
    "pfctl: Syntax error in",
)


class Pfctl:
    """Runs pfctl. Every method raises :class:`tp2.errors.PrivilegeError` when the kernel refuses this user, and
    :class:`tp2.errors.ForwarderError` when pfctl is missing or fails.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        #: A descriptor that every run keeps open to its end, longer than we may live; it has to be inheritable.
        self.inherited: int | None = None

    def check_present(self) -> None:
        """See that there is a pfctl, and run nothing."""
        _program()

    def load(self, text: str) -> None:
        """Replace the anchor's rules by *text*. A transaction: if this fails, the former rules stand."""
        # The optimizer compares every rule with every other one, and would make tables of its own.
        self._run("-a", self.platform.anchor, "-o", "none", "-f", "-", text=text)

    def flush(self) -> None:
        """Remove the anchor's rules and tables. States stay: open connections end in their own time."""
        self._run("-a", self.platform.anchor, "-F", "all")

    def acquire(self, before: Callable[[], None]) -> str:
        """Enable pf and return the token of our reference (macOS).

        :param before: called in the process that is about to become pfctl. The reference is under that process' id.
        """
        _, words = self._run("-E", before=before)
        token = _TOKEN.search(words)
        if token is None:
            raise ForwarderError("cannot enable pf", f"pfctl -E gave no token: {_first_line(words)}", _REMEDY)
        return token[1]

    def token_of(self, pid: int) -> str | None:
        """Return the token of the reference that the pfctl process *pid* took (macOS); None if there is none."""
        listing, _ = self._run("-s", "References")
        row = re.search(rf"^\s*{pid}\s+pfctl\s+(\d+)\b", listing, re.MULTILINE)
        return None if row is None else row[1]

    def release(self, token: str) -> None:
        """Let our reference go (macOS); pf stops with the last one."""
        self._run("-X", token)

    def enable(self) -> None:
        """Enable pf (FreeBSD)."""
        self._run("-e")

    def disable(self) -> None:
        """Disable pf (FreeBSD). On macOS this would take everybody's references away: never there."""
        assert not self.platform.counts_references
        self._run("-d")

    def is_enabled(self) -> bool:
        """Whether pf is enabled."""
        return "Status: Enabled" in self._run("-s", "info")[0]

    def main_ruleset(self) -> str:
        """Return the main ruleset as pfctl lists it: translation, then filter rules."""
        return self._run("-s", "nat")[0] + self._run("-s", "rules")[0]

    def load_main(self, text: str) -> None:
        """Replace the main ruleset (FreeBSD). This clears the skip flags of all interfaces."""
        assert not self.platform.counts_references
        self._run("-f", "-", text=text)

    def flush_main(self) -> None:
        """Empty the main ruleset (FreeBSD), and touch nothing else."""
        assert not self.platform.counts_references
        self._run("-F", "nat")
        self._run("-F", "rules")

    def skipped_interfaces(self) -> frozenset[str]:
        """Return the interfaces on which pf passes everything unseen (``set skip on``)."""
        listing, _ = self._run("-v", "-s", "Interfaces")
        return frozenset(re.findall(r"^(\S+)\s+\(skip\)", listing, re.MULTILINE))

    def _run(
        self, *arguments: str, text: str | None = None, before: Callable[[], None] | None = None
    ) -> tuple[str, str]:
        """Run pfctl; return what it wrote to standard output and to standard error."""
        done = run(_program(), *arguments, text=text, before=before, inherited=self.inherited)
        if done.exit_code != 0:
            raise _explained(" ".join(["pfctl", *arguments]), done)
        return done.stdout, done.stderr


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended. A negative ``exit_code`` is the signal that killed it."""

    exit_code: int
    stdout: str
    stderr: str


def run(
    program: str,
    *arguments: str,
    text: str | None = None,
    before: Callable[[], None] | None = None,
    inherited: int | None = None,
) -> Done:
    """Run *program* with *text* as its standard input, to its end.

    *before* is called in its process first, which keeps the descriptor *inherited*.

    :raises ForwarderError: it took longer than :data:`TIMEOUT`.
    """
    # The input in large pieces, since sh would hand it over line by line. Not sh's own timeout: with one, it looks for
    # the end of the process ten times a second, where it would otherwise wait for it.
    options: dict[str, Any] = {"_in": text or "", "_in_bufsize": 1 << 16, "_tty_out": False, "_preexec_fn": before}
    if inherited is not None:
        options["_pass_fds"] = {inherited}
    done = sh.Command(program)(*arguments, _bg=True, _bg_exc=False, **options)
    overdue = threading.Timer(TIMEOUT, done.kill)
    overdue.start()
    try:
        done.wait()
    except sh.ErrorReturnCode as error:
        if overdue.finished.is_set():
            name = Path(program).name
            raise ForwarderError(
                "cannot change the forwarding rules",
                f"{name} {' '.join(arguments)} did not end within {TIMEOUT:.0f} s",
                f"see whether another {name} is running",
            ) from error
        return Done(error.exit_code, _text(error.stdout), _text(error.stderr))
    finally:
        overdue.cancel()
    return Done(0, _text(done.stdout), _text(done.stderr))


def is_called(ruleset: str, hook: str) -> tuple[bool, bool]:
    """Whether a main *ruleset* calls the anchor *hook* for translation, and for filtering."""
    quoted = re.escape(f'"{hook}"')
    return tuple(  # type: ignore[return-value]
        re.search(rf"^{keyword} {quoted}(?:\s|$)", ruleset, re.MULTILINE) is not None
        for keyword in ("rdr-anchor", "anchor")
    )


_REMEDY: Final = "try 'sudo pfctl -s info'; restart tp2, and report it if it happens again"


def _program() -> str:
    program = str(PROGRAM) if PROGRAM.exists() else shutil.which("pfctl")
    if program is None:
        raise no_pfctl()
    return program


def no_pfctl() -> ForwarderError:
    """Return what it means that there is no pfctl."""
    return ForwarderError(
        "cannot capture traffic with pf",
        f"there is no {PROGRAM}, nor pfctl anywhere else",
        "pf is a part of macOS and FreeBSD; on Linux use --forwarder nftables",
    )


def _explained(command: str, done: Done) -> Tp2Error:
    stderr = done.stderr
    if "Permission denied" in stderr or "Operation not permitted" in stderr:
        return PrivilegeError(
            "cannot capture traffic",
            f"pf refused: {_first_line(stderr)}",
            "run tp2 up as root or through sudo",
        )
    if "/dev/pf: No such file" in stderr:
        return ForwarderError(
            "cannot capture traffic with pf", "the kernel has no /dev/pf", "load pf: sudo kldload pf (FreeBSD)"
        )
    reason = _first_line(stderr) if done.exit_code > 0 else f"ended by signal {-done.exit_code}"
    return ForwarderError("pf refused a change", f"{command}: {reason}", _REMEDY)


def _first_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip() and not any(noise in line for noise in _NOISE)]
    return lines[0].strip() if lines else "no reason given"


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace")
