"""What a running tp2 was told, so that who asks what is wrong with it need not say it all again. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from tp2.settings import Remote, Rules, Settings, SocketAddress, Via, parse_exclusion


def told(settings: Settings) -> dict[str, Any]:
    """Return the settings that say where things are, for the control socket."""
    return {
        "kubeconfig": str(settings.kubeconfig.absolute()) if settings.kubeconfig else None,
        "context": settings.context,
        "namespaces": list(settings.namespaces),
        "dns": list(settings.dns),
        "cluster_domain": settings.cluster_domain,
        "exclude": [str(item) for item in settings.exclude],
        "remote": list(settings.remote) if settings.remote else None,
        "via": str(settings.via),
        "endpoint_namespace": settings.endpoint_namespace,
        "identity": str(settings.identity.absolute()) if settings.identity else None,
        "host_key": settings.host_key,
        "socks": list(settings.socks),
        "forwarder": str(settings.forwarder),
        "ports": [settings.ports.start, settings.ports.stop],
    }


def adopted(settings: Settings, words: dict[str, Any], given: Collection[str]) -> Settings:
    """Return *settings* with what :func:`told` said in the place of what is not *given*.

    :param given: the names of the settings that are to stay as they are.
    :raises KeyError, TypeError, ValueError: a tp2 of another version said it.
    """
    theirs: dict[str, Any] = {
        "kubeconfig": _path(words["kubeconfig"]),
        "context": words["context"],
        "namespaces": tuple(words["namespaces"]),
        "dns": tuple(words["dns"]),
        "cluster_domain": str(words["cluster_domain"]),
        "exclude": tuple(map(parse_exclusion, words["exclude"])),
        "remote": Remote(*words["remote"]) if words["remote"] else None,
        "via": Via(words["via"]),
        "endpoint_namespace": str(words["endpoint_namespace"]),
        "identity": _path(words["identity"]),
        "host_key": words["host_key"],
        "socks": SocketAddress(*words["socks"]),
        "forwarder": Rules(words["forwarder"]),
        "ports": range(*words["ports"]),
    }
    return replace(settings, **{name: value for name, value in theirs.items() if name not in given})


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
