"""The configuration file: TOML, whose keys are the long names of the options of ``tp2 up``.

    remote = "me@bastion"
    namespace = ["shop", "blog"]
    verbose = true

A flag goes before the environment, the environment before the file, and the file before the default. The file is read
as the user, also where root was asked to start tp2: what root alone may read is not theirs to have quoted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from tp2.errors import Tp2Error, UsageError

#: No configuration of a person's own is longer, in bytes.
MAX_FILE: Final = 1_000_000

#: Where :func:`used` finds what was read.
_META: Final = "tp2.configuration"


@dataclass(frozen=True, slots=True)
class Configuration:
    """A file as it was read. ``values`` has click's names of parameters; ``lines`` the line of each, from 1."""

    path: Path
    exists: bool
    values: dict[str, Any]
    lines: dict[str, int]

    def place(self, name: str) -> str:
        """Return ``FILE:LINE`` of the parameter called *name*."""
        return f"{self.path}:{self.lines[name]}" if name in self.lines else str(self.path)


def option() -> click.Option:
    """Return ``--config``, which gives the other options of its command what the file says."""
    return click.Option(
        ["--config"],
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_use,
        help="Take from this file what is not said here. [default: config.toml where this platform has such files;"
        " 'tp2 config' says where]",
    )


def used(ctx: click.Context) -> Configuration | None:
    """Return what was read for the command of *ctx*."""
    found = ctx.meta.get(_META)
    return found if isinstance(found, Configuration) else None


def _use(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if ctx.resilient_parsing:
        return
    configuration = read(ctx, value)
    ctx.default_map = {**(ctx.default_map or {}), **configuration.values}
    ctx.meta[_META] = configuration


def default_path() -> Path:
    """Return where the user's file is, whether or not there is one; under sudo, that of the user who called it."""
    import platformdirs

    with _at_home_of_the_caller():
        return platformdirs.user_config_path("tp2", appauthor=False) / "config.toml"


def read(ctx: click.Context, named: Path | None) -> Configuration:
    """Return the configuration for the command of *ctx*.

    :param named: the file, which then has to be there; None for the default one.
    :raises UsageError: it cannot be read, is not TOML, or says something that no option takes.
    """
    from tp2.forward.privilege import acting_as, calling_user

    user = calling_user()
    path = default_path() if named is None else named.absolute()
    try:
        with acting_as(user), path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if named is None:
            return Configuration(path, exists=False, values={}, lines={})
        raise _unreadable(path, error.strerror) from error
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
    if len(content) > MAX_FILE:
        raise _unreadable(path, f"it has more than {MAX_FILE} bytes")
    document = _parse(path, content)
    options = {_key(param): param for param in ctx.command.params if _can_be_set(param)}
    values, lines = {}, {}
    with _at_home_of_the_caller():
        home = Path.home()
    for key, given in document.items():
        line = _line_of(key, content)
        where = f"{path}, line {line}" if line else str(path)
        if key not in options:
            raise _unknown(where, key, list(options))
        param = options[key]
        with acting_as(user):
            value = _checked(ctx, param, key, given, _Place(where, path.parent, home))
        values[str(param.name)] = value
        if line:
            lines[str(param.name)] = line
    return Configuration(path, exists=True, values=values, lines=lines)


@dataclass(frozen=True, slots=True)
class _Place:
    """``where`` a value was found, in words; what a relative path and ``~`` in it are relative to."""

    where: str
    directory: Path
    home: Path

    def whole(self, text: str) -> str:
        if text == "~" or text.startswith("~/"):
            return str(self.home / text[2:])
        return str(self.directory / text)


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not TOML",
            " ".join(str(error).split()),
            'write each option on a line of its own, as in remote = "me@bastion"',
        ) from error


def _can_be_set(param: click.Parameter) -> bool:
    # What is eager decides what is read at all, and is too early for the file.
    return isinstance(param, click.Option) and param.expose_value and not param.is_eager and param.name != "as_json"


def _key(param: click.Parameter) -> str:
    return max(param.opts, key=len).lstrip("-")


def _line_of(key: str, content: bytes) -> int | None:
    pattern = rb"""(?m)^[ \t]*["']?%s["']?[ \t]*[=.]|^[ \t]*\[+[ \t]*["']?%s\b""" % ((re.escape(key.encode()),) * 2)
    match = re.search(pattern, content)
    return content.count(b"\n", 0, match.start()) + 1 if match else None


def _checked(ctx: click.Context, param: click.Parameter, key: str, given: Any, place: _Place) -> Any:
    """Return *given* as click takes it from a map of defaults."""
    assert isinstance(param, click.Option)
    if param.is_flag:
        if isinstance(given, bool):
            return given
        raise UsageError(f"{place.where}: {key} is no switch", f"it is {_kind(given)}", f"write it as {key} = true")
    if param.multiple and isinstance(given, list):
        return [_scalar(ctx, param, key, each, place) for each in given]
    value = _scalar(ctx, param, key, given, place)
    return [value] if param.multiple else value


def _scalar(ctx: click.Context, param: click.Option, key: str, given: Any, place: _Place) -> str:
    example = _example(param, key)
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        expected = "a text, or a list of them" if param.multiple else "a text"
        raise UsageError(
            f"{place.where}: {key} cannot be this", f"it is {_kind(given)}, not {expected}", f"write it as {example}"
        )
    text = str(given)
    # A host key may be a file or the key itself.
    if isinstance(param.type, click.Path) or (param.name == "host_key" and Path(place.whole(text)).is_file()):
        text = place.whole(text)
    try:
        param.type.convert(text, param, ctx)
    except click.BadParameter as error:
        cause = error.__context__
        if isinstance(cause, Tp2Error):
            raise UsageError(f"{place.where}: {key} cannot be this", str(cause), cause.remedy) from cause
        raise UsageError(
            f"{place.where}: {key} cannot be this", error.message.rstrip("."), f"write it as {example}"
        ) from error
    return text


def _example(param: click.Option, key: str) -> str:
    if isinstance(param.type, click.Choice):
        return " or ".join(f'{key} = "{choice}"' for choice in param.type.choices)
    word = param.metavar or "FILE" if isinstance(param.type, click.Path) else param.metavar or "NAME"
    return f'{key} = ["{word}", ...]' if param.multiple else f'{key} = "{word}"'


def _kind(given: Any) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return kinds.get(type(given), "a date or a time")


def _unknown(where: str, key: str, known: list[str]) -> UsageError:
    import difflib

    near = difflib.get_close_matches(key.replace("_", "-").lower(), known, n=1)
    return UsageError(
        f"{where}: {key[:80]!r} is no option of 'tp2 up'",
        "each key is the long name of an option",
        f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}",
    )


def _unreadable(path: Path, why: str | None) -> UsageError:
    return UsageError(
        f"cannot read the configuration file {path}",
        (why or "it cannot be opened").lower(),
        "name one that this user can read: --config FILE, or TP2_CONFIG",
    )


@contextmanager
def _at_home_of_the_caller() -> Iterator[None]:
    """Let the environment name the directories of the user who calls; under sudo it names root's."""
    if os.geteuid() != 0 or "SUDO_UID" not in os.environ:
        yield
        return
    from tp2.forward.caller import environment_of_sudos_caller
    from tp2.forward.privilege import calling_user

    names = ("HOME", "XDG_CONFIG_HOME")
    ours = {name: os.environ.get(name) for name in names}
    theirs = {"HOME": str(calling_user().home), **environment_of_sudos_caller()}
    try:
        _set({name: theirs.get(name) for name in names})
        yield
    finally:
        _set(ours)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
