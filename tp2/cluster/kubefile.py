"""What kubeconfig files say: which context, cluster and user, after merging several files as kubectl does.

Pure, but for reading the files. Every way in which a kubeconfig can be wrong ends here in a
:class:`~tp2.errors.ClusterError` that names the file and the entry; what is returned can be given to a client
library that trusts its input. Relative paths in a file are relative to that file.

Rules: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from tp2.cluster.proxies import is_usable, without_password
from tp2.errors import ClusterError
from tp2.system import quickyaml

_LISTS = {"contexts": "context", "clusters": "cluster", "users": "user"}
_FILE_KEYS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
_LIBRARY_PROVIDERS = ("gcp", "oidc")


@dataclass(frozen=True, slots=True)
class Selection:
    """One context with what it refers to. ``cluster`` and ``user`` are the kubeconfig's own fields, without empty
    ones, with absolute paths; ``user`` is empty if the context names none, and ``user_name`` is what it is called."""

    context: str
    namespace: str
    server: str
    cluster: dict[str, object]
    user: dict[str, object]
    user_name: str = ""

    def as_kubeconfig(self) -> dict[str, object]:
        """A kubeconfig with this context and nothing else."""
        return {
            "current-context": self.context,
            "contexts": [{"name": self.context, "context": {"cluster": "cluster", "user": "user"}}],
            "clusters": [{"name": "cluster", "cluster": self.cluster}],
            "users": [{"name": "user", "user": self.user}],
        }


def select(paths: Sequence[Path], context: str | None, *, all_must_exist: bool) -> Selection:
    """Read *paths*, merge them, and pick *context*, or the current context if it is None.

    :param all_must_exist: whether a missing file is an error, or is passed over as those of ``$KUBECONFIG`` are.
    :raises ClusterError: a file cannot be read or is no kubeconfig, or the context is incomplete.
    """
    files = [(path, document) for path in paths if (document := _read(path, all_must_exist)) is not None]
    if not files:
        names = ", ".join(map(str, paths))
        raise ClusterError("cannot read the kubeconfig", f"none of these exists: {names}", "correct $KUBECONFIG")
    source = ", ".join(str(path) for path, _ in files)
    entries = {kind: _merged(files, kind) for kind in _LISTS}
    name = context or _current_context(files, source, entries["contexts"])
    chosen = entries["contexts"].get(name)
    if chosen is None:
        raise ClusterError(
            f"there is no context {name!r} in the kubeconfig",
            f"{source} has {_known(entries['contexts'])}",
            "name one of them with --context",
        )
    cluster = _referred(entries["clusters"], "cluster", chosen, name, source)
    user = _referred(entries["users"], "user", chosen, name, source) if chosen.get("user") else {}
    return Selection(
        context=name,
        namespace=str(chosen.get("namespace") or "default"),
        server=_server(cluster, name, source),
        cluster=cluster,
        user=_usable(user, name, source),
        user_name=str(chosen.get("user") or ""),
    )


def _read(path: Path, must_exist: bool) -> dict[str, object] | None:
    try:
        document = quickyaml.load(path.read_bytes())
    except FileNotFoundError:
        if not must_exist:
            return None
        raise ClusterError(
            f"cannot read the kubeconfig {path}", "no such file", "correct --kubeconfig or $KUBECONFIG"
        ) from None
    except OSError as error:
        raise ClusterError(
            f"cannot read the kubeconfig {path}",
            error.strerror or str(error),
            "make it readable for the user who runs tp2, or name another one with --kubeconfig",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ClusterError(
            f"cannot read the kubeconfig {path}",
            f"it is not valid YAML: {' '.join(str(error).split())}",
            "correct the file; `kubectl config view` shows how it is understood",
        ) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ClusterError(
            f"cannot read the kubeconfig {path}",
            "it is not a kubeconfig: a mapping with contexts, clusters and users was expected",
            "name the right file with --kubeconfig",
        )
    return document


def _merged(files: Iterable[tuple[Path, dict[str, object]]], kind: str) -> dict[str, dict[str, object]]:
    """The entries of one kind by name; the first file that has a name wins."""
    merged: dict[str, dict[str, object]] = {}
    for path, document in files:
        entries = document.get(kind)
        for entry in entries if isinstance(entries, list) else ():
            body = entry.get(_LISTS[kind]) if isinstance(entry, dict) else None
            if isinstance(body, dict) and "name" in entry:
                merged.setdefault(str(entry["name"]), _absolute(body, path.absolute().parent))
    return merged


def _absolute(body: dict[str, object], directory: Path) -> dict[str, object]:
    fields = {key: value for key, value in body.items() if value not in (None, "")}
    for key in _FILE_KEYS:
        if key in fields:
            fields[key] = str(directory / Path(str(fields[key])).expanduser())
    plugin = fields.get("exec")
    if isinstance(plugin, dict) and "/" in str(plugin.get("command", "")):
        fields["exec"] = plugin | {"command": str(directory / str(plugin["command"]))}
    return fields


def _current_context(
    files: Iterable[tuple[Path, dict[str, object]]], source: str, contexts: dict[str, dict[str, object]]
) -> str:
    for _, document in files:
        if current := document.get("current-context"):
            return str(current)
    raise ClusterError(
        "no cluster is selected",
        f"{source} has no current-context; it has {_known(contexts)}",
        "name a context with --context, or choose one with `kubectl config use-context NAME`",
    )


def _known(contexts: dict[str, dict[str, object]]) -> str:
    return "the contexts " + ", ".join(contexts) if contexts else "no contexts at all"


def _referred(
    entries: dict[str, dict[str, object]], kind: str, chosen: dict[str, object], context: str, source: str
) -> dict[str, object]:
    name = str(chosen.get(kind) or "")
    if name not in entries:
        raise ClusterError(
            f"the context {context!r} is incomplete",
            f"it refers to the {kind} {name!r}, which {source} does not have" if name else f"it names no {kind}",
            f"add the {kind} to the kubeconfig, or choose another context with --context",
        )
    return entries[name]


def _server(cluster: dict[str, object], context: str, source: str) -> str:
    server = str(cluster.get("server", ""))
    if not _is_http(server):
        raise ClusterError(
            f"the cluster of context {context!r} has no usable server",
            f"{source} says {server!r}" if server else f"{source} gives no server for it",
            "set its server to the URL of the Kubernetes API: https://HOST:PORT",
        )
    proxy = str(cluster.get("proxy-url", ""))
    if proxy and not is_usable(proxy):
        raise ClusterError(
            f"the proxy-url of context {context!r} cannot be used",
            f"{without_password(proxy)!r} is no URL of a proxy",
            "use a proxy that speaks HTTP CONNECT or SOCKS5: http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT",
        )
    return server.rstrip("/")


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()


def _usable(user: dict[str, object], context: str, source: str) -> dict[str, object]:
    provider = user.get("auth-provider")
    if isinstance(provider, dict) and provider.get("name") not in _LIBRARY_PROVIDERS:
        raise ClusterError(
            f"the credentials of context {context!r} cannot be used",
            f"the auth-provider {provider.get('name')!r} is unknown (kubectl dropped such providers in 1.26)",
            "use the provider's exec plugin (for Azure: kubelogin), or another context",
        )
    if "tokenFile" not in user:
        return user
    # A tokenFile goes before a token, and what surrounds the token in the file is no part of it.
    path = Path(str(user["tokenFile"]))
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"the token of context {context!r} cannot be read",
            f"{path}: {getattr(error, 'strerror', None) or error}",
            f"make the file readable, or correct tokenFile in {source}",
        ) from error
    return {key: value for key, value in user.items() if key != "tokenFile"} | {"token": token}
