"""The runtime directory: where the control socket, the lock and the log of one running tp2 live.

The lock is a :manpage:`flock(2)`, which the kernel lets go however its holder dies; everything else in the directory
belongs to whoever holds it, so what a killed tp2 left is simply replaced by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from tp2.errors import AlreadyRunning, Tp2Error


def default_directory(uid: int) -> Path:
    """Return the directory for a user without TP2_RUNTIME_DIR: below /run where there is one for them."""
    service = service_directory(uid)
    if (uid == 0 and service.parent.is_dir()) or _belongs_to(service, uid):
        return service
    own = os.environ.get("XDG_RUNTIME_DIR") if uid == os.getuid() else None
    for candidate in (own, f"/run/user/{uid}"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate) / "tp2"
    import tempfile  # a tenth of the time that 'tp2 mappings' takes

    return Path(tempfile.gettempdir()) / f"tp2-{uid}"


def service_directory(uid: int) -> Path:
    """Return where ``tp2 service install`` puts the directory of a user: unlike their own, it is there before they
    log in, and named alike for the service and for them. Only root can make it."""
    run = Path("/run") if Path("/run").is_dir() else Path("/var/run")
    return run / (f"tp2-{uid}" if uid else "tp2")


def _belongs_to(path: Path, uid: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid


class RuntimeDirectory:
    """The files of one instance below *path*."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = path / "control.sock"
        self.log = path / "tp2.log"
        self._lock = path / "lock"
        self._descriptor: int | None = None

    @contextlib.contextmanager
    def socket_address(self) -> Iterator[str]:
        """Give a path of the control socket that fits a socket address (108 bytes on Linux, unix(7))."""
        path = str(self.socket)
        if len(os.fsencode(path)) < 104:
            yield path
            return
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{self.socket.name}"
        finally:
            os.close(directory)

    def holder(self) -> int | None:
        """Return the pid of the tp2 that holds the directory, 0 if it is unknown, or None if nobody does."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            content = os.read(descriptor, 32).strip()
            return int(content) if content.isdigit() else 0
        finally:
            os.close(descriptor)
        return None

    def check_free(self) -> None:
        """:raises AlreadyRunning: another tp2 holds the directory."""
        pid = self.holder()
        if pid is not None:
            raise AlreadyRunning(
                "tp2 is running already",
                f"process {pid or '(unknown)'} holds {self.path}",
                "stop it with 'tp2 down', or give this one another TP2_RUNTIME_DIR",
            )

    def acquire(self) -> None:
        """Create the directory and take the lock, for this process and those it forks.

        :raises AlreadyRunning: another tp2 holds it.
        :raises Tp2Error: the directory cannot be made, or belongs to somebody else.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.lstat()
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        if not stat.S_ISDIR(status.st_mode):
            raise self._unusable("it is not a directory")
        # Below /tmp anybody could have made it first, to be handed our control socket.
        if status.st_uid != os.geteuid():
            raise self._unusable(f"it belongs to user {status.st_uid}, and this is user {os.geteuid()}")
        while True:
            try:
                descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise self._unusable(f"{self._lock.name}: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                self.check_free()
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise self._unusable(error.strerror or str(error)) from error
                continue
            # Its former holder may have removed the file between our open and our lock: then it locks nothing.
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), self._lock.stat()):
                    break
            os.close(descriptor)
        self._descriptor = descriptor
        self.write_pid()
        try:
            self.socket.unlink(missing_ok=True)
            if self.log.is_symlink() or (self.log.exists() and not self.log.is_file()):
                raise OSError(errno.EINVAL, "it is not a file of tp2's", str(self.log))
        except OSError as error:
            self.release(keep_log=True)
            raise self._unusable(f"{Path(error.filename).name}: {error.strerror}") from error

    @contextlib.contextmanager
    def watch_holder(self) -> Iterator[Callable[[], None]]:
        """Give a function that blocks until the process that holds the directory now has ended."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield lambda: None
            return
        try:
            # Open from before it is told to stop: it removes the file, but the lock on it lasts as long as the process.
            yield lambda: fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def write_pid(self) -> None:
        """Write this process' id into the lock file; needed again after a fork."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self, *, keep_log: bool = False) -> None:
        """Remove what is ours; the log of a tp2 that failed is kept for its user.

        The lock itself is let go by the end of the process, which is what :meth:`watch_holder` waits for.
        """
        if self._descriptor is None:
            return
        for path in (self.socket, self._lock) if keep_log else (self.socket, self.log, self._lock):
            with contextlib.suppress(OSError):
                path.unlink()
        # Not ours to remove if the user keeps other things in it.
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self._descriptor = None

    def __enter__(self) -> RuntimeDirectory:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release(keep_log=error is not None)

    def _unusable(self, why: str) -> Tp2Error:
        return Tp2Error(
            f"cannot use the runtime directory {self.path}",
            why,
            "set TP2_RUNTIME_DIR to a directory of this user's own",
        )
