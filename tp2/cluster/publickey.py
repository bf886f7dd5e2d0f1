"""Which public key of the user's the endpoint should let in: the one that ``tp2 up`` will offer first.

In this order: the one of ``--identity``; the first in ssh-agent; ``~/.ssh/id_ed25519.pub``, ``id_ecdsa.pub``,
``id_rsa.pub``. Files and agent are those of the user who runs this. No private key is written anywhere, and one is
read only if ``--identity`` names it and its public half is not beside it.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Final

from tp2.errors import UsageError

FILES: Final = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")

# What OpenSSH's sshd takes from everybody today; DSA is gone since 7.0.
_LINE: Final = re.compile(
    r"^(?P<type>ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r" (?P<blob>AAAA[A-Za-z0-9+/]+={0,2})(?: (?P<comment>.*))?$"
)
_MAKE_ONE: Final = "make one with `ssh-keygen -t ed25519`, or name one with --identity"


async def own_public_key(identity: Path | None, *, agent: str | None = None, home: Path | None = None) -> str:
    """One line for ``authorized_keys``: type, key and comment.

    :param identity: the private key that ``tp2 up`` is told to use, if it is.
    :param agent: the agent's socket, ``SSH_AUTH_SOCK`` by default; ``""`` for no agent.
    :param home: the user's home directory, :meth:`Path.home` by default.
    :raises UsageError: there is none, or the one that was named cannot be had.
    """
    if identity is not None:
        return _of_identity(identity)
    socket = os.environ.get("SSH_AUTH_SOCK", "") if agent is None else agent
    if line := await _first_of_agent(socket):
        return line
    directory = (home or Path.home()) / ".ssh"
    for name in FILES:
        if line := _read_public(directory / name):
            return line
    raise UsageError(
        "there is no SSH key that the endpoint could let you in with",
        f"ssh-agent has none, and {directory} has none of {', '.join(FILES)}",
        _MAKE_ONE,
    )


def normalized(text: str) -> str | None:
    """The first line of *text* that is a public key, in its plain form: without options, its comment printable."""
    for line in text.splitlines():
        if match := _LINE.match(line.strip()):
            comment = "".join(char for char in match["comment"] or "" if char.isprintable()).strip()
            return " ".join(filter(None, (match["type"], match["blob"], comment)))
    return None


def _of_identity(identity: Path) -> str:
    # As ssh does: the public half lies beside the private one, and may be all there is (the rest is in the agent).
    for path in (identity.with_name(f"{identity.name}.pub"), identity):
        if line := _read_public(path):
            return line
    return _derived(identity)


def _derived(identity: Path) -> str:
    import asyncssh  # 0.3 s that only this case has to pay

    what = f"the public key of {identity} is not known"
    try:
        key = asyncssh.read_private_key(str(identity))
    except (OSError, ValueError) as error:
        why, remedy = getattr(error, "strerror", None) or str(error), "name an SSH private key with --identity"
        if "passphrase" in why.lower():
            why = f"the private key has a passphrase, and {identity.name}.pub is not beside it"
            remedy = f"write it there: `ssh-keygen -y -f {identity} > {identity}.pub`"
        raise UsageError(what, why, remedy) from error
    line = normalized(key.export_public_key().decode("utf-8", "replace"))
    if line is None:
        raise UsageError(what, f"sshd takes no {key.get_algorithm()} keys", _MAKE_ONE)
    return line


def _read_public(path: Path) -> str | None:
    try:
        return normalized(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


async def _first_of_agent(socket: str) -> str | None:
    if not socket:
        return None
    import asyncssh

    try:
        async with await asyncssh.connect_agent(socket) as agent:
            keys = await agent.get_keys()
    except (OSError, ValueError):
        return None
    for key in keys:
        # A certificate's own line would let in nobody: sshd has no authority for it.
        blob = base64.b64encode(key.public_data).decode("ascii")
        line = normalized(f"{key.algorithm.decode('ascii', 'replace')} {blob} {key.get_comment()}")
        if line is not None:
            return line
    return None
