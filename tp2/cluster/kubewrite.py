"""Writing new tokens into a kubeconfig, as kubectl does, without ever losing the file.

The refresh token that an issuer has given in the place of another may be the only one that is good now: if it is not
written down, kubectl is logged out. So it is, into the file that has the user, in the form that the file has: what
changes is two values, and comments stay. The file is replaced as a whole (rename(2)), by one that only its owner can
read, and under the lock that kubectl takes (``FILE.lock``).
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml

LOCK_PATIENCE: Final = 2.0
"""Seconds that another writer may take: kubectl itself would not wait at all."""


class Unwritten(Exception):
    """The kubeconfig stays as it was, with the reason."""


async def write_tokens(paths: Sequence[Path], user: str, used: str, changes: Mapping[str, str]) -> None:
    """Change the auth-provider's config of *user* in the first of *paths* that has it.

    Does nothing if its refresh token is not *used* any more: somebody has logged in again meanwhile.

    :param changes: keys of that config, and their new values.
    :raises Unwritten: it cannot be written.
    """
    try:
        for path in paths:
            if _config_of(_read(path), user) is not None:
                await _change(path, user, used, changes)
                return
    except OSError as error:
        raise Unwritten(f"{error.filename or path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise Unwritten(f"{path} is not a kubeconfig any more") from error
    raise Unwritten(f"the user {user!r} is gone from it")


async def _change(path: Path, user: str, used: str, changes: Mapping[str, str]) -> None:
    lock = path.with_name(f"{path.name}.lock")
    await _take(lock)
    try:
        _change_locked(path, user, used, changes)
    finally:
        lock.unlink(missing_ok=True)


def _change_locked(path: Path, user: str, used: str, changes: Mapping[str, str]) -> None:
    text = path.read_text("utf-8")
    config = _config_of(yaml.safe_load(text), user)
    if config is not None and str(config.get("refresh-token")) == used:
        _replace(path.resolve(), changed(text, user, changes))


async def _take(lock: Path) -> None:
    clock = asyncio.get_running_loop().time
    deadline = clock() + LOCK_PATIENCE
    while True:
        try:
            os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if clock() > deadline:
                raise Unwritten(f"another program holds its lock {lock}") from None
            await asyncio.sleep(0.05)
        else:
            return


def changed(text: str, user: str, changes: Mapping[str, str]) -> str:
    """Return the kubeconfig *text* with the auth-provider's config of *user* changed.

    :raises ValueError: *text* has no such user.
    """
    wanted = yaml.safe_load(text)
    config = _config_of(wanted, user)
    if config is None:
        raise ValueError(f"no user {user!r}")
    config.update(changes)
    with suppress(yaml.YAMLError, LookupError, ValueError):
        spliced = _spliced(text, user, changes)
        if yaml.safe_load(spliced) == wanted:
            return spliced
    return yaml.safe_dump(wanted, sort_keys=False)


def _spliced(text: str, user: str, changes: Mapping[str, str]) -> str:
    """Put the new values into the places of the old ones. A JSON string is a YAML scalar, too."""
    entries = _child(yaml.compose(text, Loader=yaml.SafeLoader), "users").value
    entry = next(entry for entry in entries if _child(entry, "name").value == user)
    node = _child(_child(_child(entry, "user"), "auth-provider"), "config")
    places: list[tuple[int, int, str]] = []
    for key, value in changes.items():
        try:
            old = _child(node, key)
        except LookupError:
            name, last = node.value[-1]
            comma = ", " if node.flow_style else "\n" + " " * name.start_mark.column
            places.append((last.end_mark.index, last.end_mark.index, f"{comma}{json.dumps(key)}: {json.dumps(value)}"))
        else:
            places.append((old.start_mark.index, old.end_mark.index, json.dumps(value)))
    for start, end, new in sorted(places, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _child(node: Any, key: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value
    raise LookupError(key)


def _config_of(document: Any, user: str) -> dict[str, Any] | None:
    entries = document.get("users") if isinstance(document, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and str(entry.get("name")) == user:
            fields = entry.get("user")
            provider = fields.get("auth-provider") if isinstance(fields, dict) else None
            config = provider.get("config") if isinstance(provider, dict) else None
            return config if isinstance(config, dict) else None
    return None


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        return None


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            owner = path.stat()
            if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                # Root, with somebody else's kubeconfig: it stays theirs.
                with suppress(PermissionError):
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
