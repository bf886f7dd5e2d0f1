"""YAML of people's files, read without holding up whoever has something else to do."""

from __future__ import annotations

from typing import Any


def load(text: bytes) -> Any:
    """Return the document in *text*, of the same rules as PyYAML's safe_load.

    libyaml does it, ten times as fast, where PyYAML was built with it: a kubeconfig of a few hundred clusters would
    otherwise take a second.

    :raises yaml.YAMLError, ValueError, RecursionError: it is none.
    """
    import yaml

    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe loaders
