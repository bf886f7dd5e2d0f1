"""The file that says who may use the SOCKS server."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tp2.errors import UsageError
from tp2.socks.messages import Credentials

#: Bytes; a username and a password have 255 each at the most (RFC 1929 section 2).
_LONGEST = 4096


def read_credentials(path: Path) -> Credentials:
    """Return the ``USERNAME:PASSWORD`` in the first line of *path*.

    :raises UsageError: there is no such line, it cannot be read, or everybody can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.read(_LONGEST).partition(b"\n")[0]
    except OSError as error:
        raise _unusable(path, error.strerror or str(error), "check the path and its permissions") from error
    if stat.S_IMODE(mode) & 0o077:
        raise _unusable(path, "others may read it", f"chmod 600 {path}")
    username, colon, password = line.rstrip(b"\r").partition(b":")
    if not colon or not 0 < len(username) < 256 or not 0 < len(password) < 256:
        raise _unusable(
            path, "its first line is not USERNAME:PASSWORD", "write 1 to 255 bytes on each side of the colon"
        )
    try:
        return Credentials(username.decode(), password.decode())
    except UnicodeDecodeError as error:
        raise _unusable(path, "it is not UTF-8", "write it anew, in UTF-8") from error


def _unusable(path: Path, why: str, remedy: str) -> UsageError:
    return UsageError(f"cannot use the SOCKS credentials in {path}", why, remedy)
