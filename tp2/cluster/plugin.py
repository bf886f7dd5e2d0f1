"""Runs the credential plugin of a kubeconfig's user (``exec``), for example ``aws eks get-token``.

A plugin lives for one login. It may take its time, since it may ask somebody to log in in a browser, so what it says
on standard error is passed on while it runs; it ends when tp2 no longer waits for it. (kubernetes_asyncio can
run plugins too, but swallows what they say and leaves them behind when it is cancelled.)

https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tp2.errors import ClusterError
from tp2.system.drawing import paused

logger = logging.getLogger(__name__)

PATIENCE = 300.0
"""How long a plugin may run, in seconds: long enough for somebody to find their second factor."""

_CREDENTIALS = {
    "token": "token",
    "clientCertificateData": "client-certificate-data",
    "clientKeyData": "client-key-data",
}

_CLUSTER_FIELDS = (
    "server",
    "tls-server-name",
    "insecure-skip-tls-verify",
    "certificate-authority-data",
    "proxy-url",
    "disable-compression",
)


async def credentials(plugin: dict[str, Any], context: str, cluster: Mapping[str, Any]) -> dict[str, str]:
    """Run *plugin*, a kubeconfig's ``exec``, and return what it gives as fields of a kubeconfig's user: ``token``, or
    ``client-certificate-data`` and ``client-key-data``.

    :param cluster: the kubeconfig's cluster, which some plugins want to know of (``provideClusterInfo``).
    :raises ClusterError: it cannot be run, failed, took too long or gave no credentials.
    """
    command = str(plugin.get("command") or "")
    interactive = plugin.get("interactiveMode") != "Never" and sys.stdin is not None and sys.stdin.isatty()
    if plugin.get("interactiveMode") == "Always" and not interactive:
        raise _failed(context, command, "it has to ask somebody, and there is no terminal")
    with paused() if interactive else contextlib.nullcontext():
        return await _run(plugin, context, cluster, command, interactive=interactive)


async def _run(
    plugin: dict[str, Any], context: str, cluster: Mapping[str, Any], command: str, *, interactive: bool
) -> dict[str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            command,
            *map(str, _items(plugin, "args")),
            env=_environment(plugin, cluster, interactive=interactive),
            stdin=None if interactive else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        hint = " ".join(str(plugin.get("installHint") or "").split())
        why = "no such program" if missing else getattr(error, "strerror", None) or str(error)
        raise _failed(context, command, why, hint if missing else "") from error
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            output, words = await asyncio.gather(process.stdout.read(), _passed_on(process.stderr, command))
            code = await process.wait()
    except TimeoutError:
        raise _failed(context, command, f"it did not end within {PATIENCE:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise _failed(context, command, f"it ended with status {code}: {words}" if words else f"status {code}")
    return _parsed(output, context, command)


async def _passed_on(stream: asyncio.StreamReader, command: str) -> str:
    """Log what the plugin says, and return the end of it."""
    last: deque[str] = deque(maxlen=5)
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            # A line of more than 64 KiB is nothing that somebody has to read.
            continue
        if not line:
            return " ".join(last)
        if text := " ".join(line.decode("utf-8", "replace").split()):
            logger.warning("%s: %s", command, text)
            last.append(text)


def _parsed(output: bytes, context: str, command: str) -> dict[str, str]:
    try:
        document = json.loads(output)
    except (ValueError, RecursionError):
        document = None
    status = document.get("status") if isinstance(document, dict) else None
    given = status if isinstance(status, dict) else {}
    found = {ours: given[theirs] for theirs, ours in _CREDENTIALS.items() if isinstance(given.get(theirs), str)}
    for key in found.keys() - {"token"}:
        # Plugins give PEM; a kubeconfig has base64 around it.
        found[key] = base64.b64encode(found[key].encode()).decode()
    if "token" in found or {"client-certificate-data", "client-key-data"} <= found.keys():
        return found
    raise _failed(context, command, "it printed no ExecCredential with a token or a certificate and its key")


def _environment(plugin: dict[str, Any], cluster: Mapping[str, Any], *, interactive: bool) -> dict[str, str]:
    spec: dict[str, Any] = {"interactive": interactive}
    if plugin.get("provideClusterInfo") is True:
        spec["cluster"] = _cluster_info(cluster)
    info = {"apiVersion": plugin.get("apiVersion"), "kind": "ExecCredential", "spec": spec}
    more = {
        str(entry["name"]): str(entry.get("value", ""))
        for entry in _items(plugin, "env")
        if isinstance(entry, dict) and "name" in entry
    }
    return {**os.environ, **more, "KUBERNETES_EXEC_INFO": json.dumps(info)}


def _cluster_info(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Cluster of client.authentication.k8s.io/v1: the kubeconfig's, with its CA inline and the plugin's own part."""
    info = {key: cluster[key] for key in _CLUSTER_FIELDS if key in cluster}
    if "certificate-authority" in cluster and "certificate-authority-data" not in cluster:
        with contextlib.suppress(OSError):
            # Without it the login fails, and says why, once it is the client's turn to read it.
            pem = Path(str(cluster["certificate-authority"])).read_bytes()
            info["certificate-authority-data"] = base64.b64encode(pem).decode()
    extensions = cluster.get("extensions")
    for entry in extensions if isinstance(extensions, list) else ():
        if isinstance(entry, dict) and entry.get("name") == "client.authentication.k8s.io/exec":
            info["config"] = entry.get("extension")
    return info


def _items(plugin: dict[str, Any], key: str) -> list[Any]:
    value = plugin.get(key)
    return value if isinstance(value, list) else []


def _failed(context: str, command: str, why: str, hint: str = "") -> ClusterError:
    return ClusterError(
        f"the credential plugin of context {context!r} failed",
        f"{command}: {why}",
        hint or f"make `kubectl --context {context} get services` work first",
    )
