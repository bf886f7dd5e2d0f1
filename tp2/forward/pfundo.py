"""What tp2 has done to a machine with pf, on record, and the way back.

pf rules have no owner: they stay when the process that loaded them is gone. So everything is put on record before it
is done, in a directory that the system empties when it starts, and three can undo it from there: the helper at its
end; the guardian, a process that does nothing but wait for the helper's end (:mod:`tp2.forward.pfguard`); and the
next helper, should both have been killed.

Locks (flock(2)) say who is there; the kernel lets them go however their holder ends:

============ ========================================= ================================================================
lock         held by                                   because
============ ========================================= ================================================================
``helper``   the helper                                a second tp2 is refused
``guardian`` the guardian, until it has undone all     the next helper waits for that
``pfctl``    the helper and every pfctl that it runs   who undoes waits: a pfctl whose helper was killed goes on, and
                                                       might load its rules after everything was undone
============ ========================================= ================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tp2.errors import AlreadyRunning, ForwarderError, PrivilegeError, Tp2Error
from tp2.forward.pfctl import Pfctl, run
from tp2.forward.pfguard import RECORD
from tp2.forward.resolverfiles import ResolverFiles

#: Root's alone, and empty after a reboot, as pf's rules are.
DIRECTORY: Final = Path("/var/run/tp2-pf")


@dataclass(slots=True)
class Record:
    """What has been done, or was about to be.

    ``acquirer``: the process that takes our reference to pf (macOS); ``token``: the reference, once it is known.
    ``main``: the main ruleset was empty, and calls our anchor now. ``enabled``: pf was off.
    ``resolver_directory``: /etc/resolver was not there.
    """

    acquirer: int | None = None
    token: str | None = None
    main: bool = False
    enabled: bool = False
    resolver_directory: bool = False


class Records:
    """The record of one machine, and the right to change it."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self.directory = directory
        self._path = directory / RECORD
        self._locks: list[int] = []

    def claim(self) -> tuple[int, int]:
        """Become the one helper; return the descriptors that hold the guardian's lock and pfctl's.

        The first belongs to the caller. Waits while a guardian undoes what a killed helper has left.

        :raises AlreadyRunning: another helper is there.
        :raises PrivilegeError: not root.
        :raises OSError: the directory cannot be used.
        """
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            self._lock("helper", fcntl.LOCK_EX | fcntl.LOCK_NB)
            guardian = self._lock("guardian", fcntl.LOCK_EX)
            pfctl = self.wait_for_pfctl()
        except BlockingIOError as error:
            self.release()
            raise AlreadyRunning(
                "cannot capture traffic",
                "another tp2 captures on this machine already",
                "stop the other one with 'tp2 down' (with its TP2_RUNTIME_DIR)",
            ) from error
        except PermissionError as error:
            self.release()
            raise PrivilegeError(
                "cannot capture traffic",
                f"{error.filename}: {error.strerror}",
                "run tp2 up as root or through sudo",
            ) from error
        os.set_inheritable(pfctl, True)
        self._locks.remove(guardian)
        return guardian, pfctl

    def wait_for_pfctl(self) -> int:
        """Return when no pfctl of a killed helper is running, with the descriptor that holds pfctl's lock now.

        :raises OSError: the lock cannot be had.
        """
        return self._lock("pfctl", fcntl.LOCK_EX)

    def release(self) -> None:
        """Let all locks go."""
        while self._locks:
            os.close(self._locks.pop())

    def read(self) -> Record | None:
        """Return what is on record; None if nothing is. An unreadable record says that something was done."""
        try:
            fields = json.loads(self._path.read_text())
            return Record(**fields)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            return Record()

    def write(self, record: Record) -> None:
        """Put *record* on record, atomically.

        :raises OSError: it could not be written.
        """
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(asdict(record)))
        new.rename(self._path)

    def erase(self) -> None:
        """Nothing is to be undone any more."""
        self._path.unlink(missing_ok=True)

    def _lock(self, name: str, how: int) -> int:
        descriptor = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._locks.append(descriptor)
        fcntl.flock(descriptor, how)
        return descriptor


def undo(record: Record, pfctl: Pfctl, resolver: ResolverFiles) -> Tp2Error | None:
    """Take back what *record* says and what may be left; return the first trouble. Rules go first, the token last.

    It does no harm where nothing is left, and goes on after a step that failed.
    """
    trouble: Tp2Error | None = None
    for step in (_flush, _sweep, _restore_main, _release):
        try:
            step(record, pfctl, resolver)
        except Tp2Error as error:
            trouble = trouble or error
    return trouble


def flush_cache() -> None:
    """Let macOS forget what it knows of names: they mean something else from now on. Elsewhere, do nothing."""
    # The two commands that Apple documents; neither is there on other systems.
    cache, signal = shutil.which("dscacheutil"), shutil.which("killall")
    if cache is not None and signal is not None:
        with contextlib.suppress(ForwarderError):
            run(cache, "-flushcache")
            run(signal, "-HUP", "mDNSResponder")


def _flush(record: Record, pfctl: Pfctl, resolver: ResolverFiles) -> None:
    try:
        pfctl.flush()
    except Tp2Error:
        # An anchor that is not there cannot be flushed; to load nothing into it is the same, and says if it fails.
        pfctl.load("\n")


def _sweep(record: Record, pfctl: Pfctl, resolver: ResolverFiles) -> None:
    if resolver.sweep(remove_directory=record.resolver_directory):
        flush_cache()


def _restore_main(record: Record, pfctl: Pfctl, resolver: ResolverFiles) -> None:
    if not record.main:
        return
    # If the administrator has loaded rules in the meantime, they count on pf: it is theirs now.
    if not only_calls(pfctl.main_ruleset(), pfctl.platform.hook):
        return
    pfctl.flush_main()
    if record.enabled and pfctl.is_enabled():
        pfctl.disable()


def _release(record: Record, pfctl: Pfctl, resolver: ResolverFiles) -> None:
    token = record.token
    if token is None and record.acquirer is not None:
        token = pfctl.token_of(record.acquirer)
    if token is not None:
        # A token that is not known any more has been taken from us with everybody else's (pfctl -d).
        with contextlib.suppress(Tp2Error):
            pfctl.release(token)


def only_calls(ruleset: str, hook: str) -> bool:
    """Whether a main *ruleset* does nothing but call the anchor *hook*, or nothing at all."""
    ours = re.compile(rf'(?:rdr-)?anchor "{re.escape(hook)}"(?: all)?')
    return all(ours.fullmatch(line.strip()) for line in ruleset.splitlines() if line.strip())
