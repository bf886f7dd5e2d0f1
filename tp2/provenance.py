"""``tp2 config``: each setting of ``tp2 up``, and where it comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from tp2 import configuration
from tp2.errors import Tp2Error
from tp2.forward.privilege import become, calling_user
from tp2.settings import Settings

#: What is found out if nobody says it, and can be found out without asking anybody.
_DISCOVERED: Final = ("kubeconfig", "context", "dns", "fallback")


def describe(ctx: click.Context, options: Iterable[click.Parameter], runtime: Path) -> dict[str, Any]:
    """Return the object of ``tp2 config --json``.

    :param ctx: that of a command with the *options* of ``tp2 up``.
    :param runtime: the runtime directory.
    """
    file = configuration.used(ctx)
    rows = {str(param.name): _row(ctx, param, file) for param in options if param.expose_value}
    known = {name: value for name, value in ctx.params.items() if name in Settings.__dataclass_fields__}
    become(calling_user())
    for name, found in _discover(Settings(**known)).items():
        if rows[name]["source"] == "default":
            rows[name] |= {"source": "discovered", **found}
    return {
        "file": {"path": str(file.path), "exists": file.exists} if file else None,
        "runtime_dir": str(runtime),
        "settings": {max(param.opts, key=len)[2:]: rows[str(param.name)] for param in options if param.expose_value},
    }


def _row(ctx: click.Context, param: click.Parameter, file: configuration.Configuration | None) -> dict[str, Any]:
    name = str(param.name)
    value = shown(param, ctx.params[name])
    origin: str | None
    match ctx.get_parameter_source(name):
        case ParameterSource.COMMANDLINE:
            source, origin = "flag", max(param.secondary_opts if value is False else param.opts, key=len)
        case ParameterSource.ENVIRONMENT:
            source, origin = "environment", _variable(ctx, param)
        case ParameterSource.DEFAULT_MAP if file is not None:
            source, origin = "file", file.place(name)
        case _:
            source, origin = "default", None
    words = None
    if source == "default" and value in (None, []):
        match_ = re.search(r"\[default: (.*)\]", getattr(param, "help", None) or "")
        words = match_[1] if match_ else "none"
    return {"value": value, "source": source, "origin": origin, "words": words}


def _variable(ctx: click.Context, param: click.Parameter) -> str:
    return param.envvar if isinstance(param.envvar, str) else f"{ctx.auto_envvar_prefix}_{str(param.name).upper()}"


def shown(param: click.Parameter, value: Any) -> Any:
    """Return *value* in the form in which a person writes it, for JSON: a text, a list of texts, or a switch."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return [shown(param, each) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return duration(value)
    if isinstance(value, range):
        return f"{value.start}-{value.stop - 1}"
    return str(value)


def duration(seconds: float) -> str:
    """Return *seconds* as :func:`tp2.settings.parse_duration` reads them, in whole numbers of the largest units."""
    left = round(seconds * 1000)
    parts = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def _discover(settings: Settings) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    try:
        from tp2 import resolvers

        resolved = resolvers.discover(settings)
        found["dns"] = _found(list(resolved.captured), str(resolvers.RESOLV_CONF))
        found["fallback"] = _found(list(map(str, resolved.fallback)), None)
    except Tp2Error as error:
        found["dns"] = found["fallback"] = _missing(error)
    try:
        from tp2.cluster import kubeconfig

        access = kubeconfig.load(settings.kubeconfig, settings.context)
        files = [str(path) for path in kubeconfig.files(settings.kubeconfig)]
        origin = "KUBECONFIG" if os.environ.get("KUBECONFIG") else None
        found["kubeconfig"] = _found(os.pathsep.join(files), origin)
        found["context"] = _found(access.context, os.pathsep.join(files))
    except Tp2Error as error:
        found["kubeconfig"] = found["context"] = _missing(error)
    return {name: found[name] for name in _DISCOVERED}


def _found(value: Any, origin: str | None) -> dict[str, Any]:
    return {"value": value, "origin": origin, "words": None}


def _missing(error: Tp2Error) -> dict[str, Any]:
    return {"value": None, "source": "not found", "origin": None, "words": str(error)}
