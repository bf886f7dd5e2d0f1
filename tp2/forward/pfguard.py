"""The guardian: waits for the end of the helper that started it, and undoes what that has left, if anything.

Its standard input is a pipe whose other end the helper alone has: the end of file is the end of the helper. The lock
that it holds came with it (:mod:`tp2.forward.pfundo`), and goes with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

#: The name of the record (:class:`tp2.forward.pfundo.Records`) in its directory; there while anything is to be undone.
RECORD: Final = "record"


class Guardian:
    """A running guardian, as the helper sees it."""

    def __init__(self, platform: str, directory: Path, resolver: Path, lock: int) -> None:
        """Start it.

        :param platform: the name of the :class:`tp2.forward.platforms.Platform`.
        :param lock: the descriptor that holds the guardian's lock; it is closed here.
        """
        # -I: as the helper itself (tp2.forward.privilege).
        command = [sys.executable, "-I", "-m", "tp2.forward.pfguard", platform, str(directory), str(resolver)]
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=null, stderr=null, pass_fds=(lock,), start_new_session=True
            )
        finally:
            os.close(lock)
        self.pid = self._process.pid

    def dismiss(self) -> None:
        """Let it see the end, and wait until it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(arguments: list[str]) -> NoReturn:
    """Wait for the end of standard input, then undo."""
    # Whoever ends the helper's whole group must not end the one that cleans up after it.
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP):
        signal.signal(name, signal.SIG_IGN)
    system, directory, resolver = arguments
    sys.stdin.buffer.read()
    if not (Path(directory) / RECORD).exists():
        # As a rule the helper has undone everything itself, and the rest is not needed.
        raise SystemExit(0)
    from tp2.forward.pfctl import Pfctl
    from tp2.forward.pfundo import Records, undo
    from tp2.forward.platforms import FREEBSD, MACOS
    from tp2.forward.resolverfiles import ResolverFiles

    platform = {known.name: known for known in (MACOS, FREEBSD)}[system]
    records = Records(Path(directory))
    records.wait_for_pfctl()
    record = records.read()
    if record is not None and undo(record, Pfctl(platform), ResolverFiles(Path(resolver))) is None:
        records.erase()
    raise SystemExit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
