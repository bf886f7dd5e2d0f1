"""Giving up root (Linux): of everything that root may do, the helper keeps CAP_NET_ADMIN.

Without more than that, being user 0 would still mean owning its files and processes; so the helper becomes a user
that nobody else is. Children, were there any, could gain nothing back: the bounding set is empty, and
``no_new_privs`` is set. See capabilities(7) and prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

from tp2.errors import PrivilegeError

#: The helper's user and group, in the range that systemd's "Users, Groups, UIDs and GIDs" leaves to nobody: ASCII "tp".
OWN_USER: Final = 0x74700000

#: Where a user namespace has no such user: the kernel's overflow user, "nobody".
NOBODY: Final = 65534

CAP_NET_ADMIN: Final = 12

# linux/prctl.h, linux/capability.h
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522


def keep_only_net_admin() -> None:
    """Give up, for good, every privilege of this process but CAP_NET_ADMIN. It must have one thread only.

    In a user namespace that maps no other user (``unshare --map-root-user``) the user stays 0: outside it is
    whoever made the namespace. Whatever is needed of the file system has to be opened, or imported, before.

    :raises PrivilegeError: CAP_NET_ADMIN is missing.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # The right to empty the bounding set may be missing, in a container: then there is little in it.
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    _leave_user_0()
    only = 1 << CAP_NET_ADMIN
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, of capabilities 0 to 31; then the same of those above.
    if libc.capset(header, struct.pack("=6I", only, only, 0, 0, 0, 0)) != 0:
        raise PrivilegeError(
            "cannot capture traffic",
            f"the capability CAP_NET_ADMIN is missing: {os.strerror(ctypes.get_errno())}",
            "run tp2 up as root or through sudo; in a container, grant CAP_NET_ADMIN",
        )
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    # Nobody looks into this process, not even one of the same user.
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _leave_user_0() -> None:
    if os.geteuid() != 0:
        return
    with contextlib.suppress(PermissionError):
        os.setgroups([])
    for user in (OWN_USER, NOBODY):
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError as error:
            # No such user in this namespace, or no right to become another: CAP_SETUID was not given.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
        else:
            return
