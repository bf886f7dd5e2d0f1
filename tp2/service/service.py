"""``tp2 service install`` and ``uninstall``: tp2 starts with the machine, kept by systemd or launchd.

Whatever fails on the way is undone: there is the whole service afterwards, or the one that was there before, or none.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from tp2.errors import PrivilegeError, Tp2Error
from tp2.forward.privilege import calling_user
from tp2.runtime import service_directory
from tp2.service.units import LABEL, MARK, Service, launchd_plist, systemd_unit

Say = Callable[[str], None]

#: Seconds that a manager may need: systemd waits for tp2 to be ready (TimeoutStartSec=).
TIMEOUT: Final = 150.0

#: Of the installing user's environment, what says where the cluster is.
_KEPT: Final = ("KUBECONFIG",)


class Manager(Protocol):
    """A service manager of this machine. Its methods raise Tp2Error if it refuses."""

    name: str
    file: Path

    def render(self, service: Service) -> str:
        """Return the text of :attr:`file` for *service*."""

    def put(self, *, start: bool) -> None:
        """Take up what :attr:`file` says now, for every start of the machine; and *start* it now."""

    def drop(self) -> None:
        """Stop the service if it runs, and start it no more. Called while :attr:`file` is there."""

    def forget(self) -> None:
        """Take notice that :attr:`file` is gone."""


class Systemd:
    """systemd's system manager."""

    name = "systemd"

    def __init__(self, root: Path = Path("/")) -> None:
        self.file = root / "etc" / "systemd" / "system" / "tp2.service"

    def render(self, service: Service) -> str:
        return systemd_unit(service)

    def put(self, *, start: bool) -> None:
        _run("systemctl", "daemon-reload")
        _run("systemctl", "enable", "--quiet", self.file.name)
        if start:
            began = _run("journalctl", "--lines=0", "--show-cursor", check=False)
            try:
                _run("systemctl", "restart", self.file.name)
            except Tp2Error as error:
                raise self._did_not_start(error, began) from error

    def drop(self) -> None:
        _run("systemctl", "disable", "--now", "--quiet", self.file.name)

    def forget(self) -> None:
        _run("systemctl", "daemon-reload")
        # Or else a service that failed is listed until the next boot.
        _run("systemctl", "reset-failed", self.file.name, check=False)

    def _did_not_start(self, error: Tp2Error, before: str) -> Tp2Error:
        """Return the error that tp2 itself wrote into the journal, or *error* if there is none."""
        # The journal may be a little behind.
        _run("journalctl", "--sync", check=False)
        cursor = before.rpartition("-- cursor: ")[2].strip()
        options = [
            "--unit",
            self.file.name,
            "--output=cat",
            "--no-pager",
            *(["--after-cursor", cursor] if cursor else []),
        ]
        told = re.findall(
            r"^tp2: (.+)\n  why: (.+)\n  try: (.+)$", _run("journalctl", *options, check=False), re.MULTILINE
        )
        why, remedy = (f"{told[-1][0]}: {told[-1][1]}", told[-1][2]) if told else (error.why, "see 'journalctl -u tp2'")
        return Tp2Error("the service does not start", why, remedy)


class Launchd:
    """launchd's system domain."""

    name = "launchd"

    def __init__(self, root: Path = Path("/")) -> None:
        self.file = root / "Library" / "LaunchDaemons" / f"{LABEL}.plist"

    def render(self, service: Service) -> str:
        return launchd_plist(service)

    def put(self, *, start: bool) -> None:
        # What is loaded already would not be read again.
        _run("launchctl", "bootout", f"system/{LABEL}", check=False)
        _run("launchctl", "enable", f"system/{LABEL}")
        if start:
            _run("launchctl", "bootstrap", "system", str(self.file))

    def drop(self) -> None:
        # It is not loaded after an installation without a start.
        _run("launchctl", "bootout", f"system/{LABEL}", check=False)

    def forget(self) -> None:
        """launchd remembers nothing of what is not loaded."""


def find_manager(root: Path = Path("/")) -> Manager:
    """Return this machine's service manager.

    :raises Tp2Error: it has none that tp2 knows.
    """
    if sys.platform == "darwin":
        return Launchd(root)
    # sd_booted(3)
    if (root / "run" / "systemd" / "system").is_dir():
        return Systemd(root)
    raise Tp2Error(
        "there is no service manager that tp2 knows",
        "systemd does not run here, and this is not macOS",
        "start 'tp2 up --detach' as this machine starts its services; 'tp2 service install --print' shows a unit",
    )


def describe(options: Sequence[str]) -> Service:
    """Return the service that runs ``tp2 up`` with *options* for the calling user."""
    user = calling_user()
    # -I: as for the helper, root takes no modules from anywhere but the installation.
    # A service does not go to the background, whatever the user's configuration says.
    command = (sys.executable, "-I", "-m", "tp2", "up", "--no-detach", *options)
    kept = {name: os.environ[name] for name in _KEPT if os.environ.get(name)}
    return Service(command, user, service_directory(user.uid), kept)


def text(options: Sequence[str]) -> str:
    """Return what :func:`install` would write, for this machine's kind of manager."""
    manager = Launchd() if sys.platform == "darwin" else Systemd()
    return manager.render(describe(options))


def install(options: Sequence[str], *, start: bool, trusting: bool, say: Say, root: Path = Path("/")) -> None:
    """Write, enable and start the service; one of tp2's that is there already is replaced.

    :param options: of ``tp2 up``.
    :param trusting: whether files that others than root can change may be run as root.
    :raises PrivilegeError: not root; or, unless *trusting*, tp2 is installed where others can change it.
    :raises Tp2Error: there is no manager, the file is somebody else's, or the service does not start.
    """
    manager = find_manager(root)
    _check_root("install")
    service = describe(options)
    if not trusting:
        _check_installation()
    former = _ours(manager)
    with _undone_on_failure(manager, former):
        _write(manager.file, manager.render(service))
        manager.put(start=start)
    say(f"{manager.name} {'runs' if start else 'will run'} tp2 for {service.user.name}, as {manager.file} says")


def uninstall(*, say: Say, root: Path = Path("/")) -> None:
    """Stop the service and remove everything of it. It is no error if there is none.

    :raises PrivilegeError: not root.
    :raises Tp2Error: the file is somebody else's, or the service cannot be stopped.
    """
    manager = find_manager(root)
    if _ours(manager) is None:
        say(f"there is no service: {manager.file} does not exist")
        return
    _check_root("uninstall")
    manager.drop()
    manager.file.unlink()
    manager.forget()
    _remove_directory()
    say(f"{manager.file} is gone, and its service with it")


@contextlib.contextmanager
def _undone_on_failure(manager: Manager, former: str | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # The first error is the one to report: what fails now follows from it.
        with contextlib.suppress(Tp2Error, OSError):
            if former is None:
                with contextlib.suppress(Tp2Error):
                    manager.drop()
                manager.file.unlink(missing_ok=True)
                manager.forget()
                _remove_directory()
            else:
                _write(manager.file, former)
                manager.put(start=True)
        raise


def _ours(manager: Manager) -> str | None:
    """Return what the file says, or None if there is none.

    :raises Tp2Error: it is not tp2's.
    """
    try:
        content = manager.file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(manager.file, error) from error
    if MARK not in content:
        raise Tp2Error(
            "there is a service of that name already",
            f"{manager.file} was not written by tp2",
            "rename or remove it first, if it is no longer needed",
        )
    return content


def _unreadable(file: Path, error: OSError) -> Tp2Error:
    return Tp2Error(f"cannot use {file}", error.strerror or str(error), "look at the file and its directory as root")


def _write(file: Path, content: str) -> None:
    """Put *content* in place whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".tp2-", encoding="utf-8", delete=False) as new:
            try:
                new.write(content)
                new.flush()
                Path(new.name).chmod(0o644)
                Path(new.name).replace(file)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _unreadable(file, error) from error


def _remove_directory() -> None:
    """Remove an empty runtime directory: launchd leaves it, and its user may not remove it."""
    with contextlib.suppress(OSError):
        service_directory(calling_user().uid).rmdir()


def _check_root(operation: str) -> None:
    if os.geteuid() != 0:
        raise PrivilegeError(
            f"cannot {operation} a service",
            "the machine's services are root's to change, and this is an ordinary user",
            f"run 'sudo {Path(sys.argv[0]).absolute()} service {operation}' with the same options",
        )


def _check_installation() -> None:
    """:raises PrivilegeError: a service would make somebody root who is not: they can change what it runs."""
    program = Path(sys.executable)
    places = {program.parent, program.resolve(), Path(sys.prefix).resolve(), Path(__file__).resolve().parent}
    for path in sorted({above for place in places for above in (place, *place.parents)}):
        status = path.stat()
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or shared:
            raise PrivilegeError(
                "cannot install a service that others could change",
                f"{path} can be written by others than root, and the service would run it as root",
                "install tp2 where only root writes: sudo python3 -m venv /opt/tp2, then, with a wheel or in a "
                "checkout, sudo /opt/tp2/bin/pip install WHEEL-OR-DOT; or add --trust-installation",
            )


def _run(program: str, *arguments: str, check: bool = True) -> str:
    """Run a manager's command and return what it printed; unless *check*, however it ends.

    :raises Tp2Error: it failed.
    """
    path = shutil.which(program)
    if path is None and not check:
        return ""
    command = " ".join((program, *arguments))
    if path is None:
        raise Tp2Error(
            f"cannot run '{command}'", f"there is no {program} on PATH", f"install what {program} belongs to"
        )
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Tp2Error(f"cannot run '{command}'", str(error), "run it by hand to see what it waits for") from error
    if check and done.returncode != 0:
        words = done.stderr.strip().splitlines()
        why = words[0] if words else f"it ended with exit code {done.returncode}"
        raise Tp2Error(f"'{command}' failed", why, "run it by hand, as root, to see more")
    return done.stdout
