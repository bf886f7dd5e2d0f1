"""Label and field selectors of the sandbox's Kubernetes API: which objects a list or a watch is about.

Pure. Labels can be selected by equality and by presence (``app=web,tier!=db,canary,!old``), fields by
``metadata.name`` and ``metadata.namespace``; anything else is a 400, as a malformed selector is to a real server.
https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tp2.sandbox.kubeapi_resources import Object, StatusError

_TERM = re.compile(r"\s*(?P<key>!?[-A-Za-z0-9_./]+)\s*(?:(?P<operator>!=|==?)\s*(?P<value>[-A-Za-z0-9_.]*))?\s*")
_FIELDS = {"metadata.name": "name", "metadata.namespace": "namespace"}


class Selector(NamedTuple):
    """Terms that all must hold: ``(key, operator, value)``; the operator is ``=``, ``!=``, ``in`` or ``out``."""

    labels: tuple[tuple[str, str, str], ...] = ()
    fields: tuple[tuple[str, str, str], ...] = ()

    def matches(self, obj: Object) -> bool:
        """Whether *obj* is selected."""
        metadata = obj["metadata"]
        labels = metadata.get("labels") or {}
        return all(_holds(labels, *term) for term in self.labels) and all(
            _holds(metadata, _FIELDS[key], operator, value) for key, operator, value in self.fields
        )


def read_selector(labels: str, fields: str) -> Selector:
    """The selector of a request's ``labelSelector`` and ``fieldSelector``.

    :raises StatusError: 400, one of them cannot be read.
    """
    field_terms = _terms(fields)
    for key, _, _ in field_terms:
        if key not in _FIELDS:
            raise StatusError(400, "BadRequest", f"field label not supported: {key}")
    return Selector(_terms(labels), field_terms)


def _terms(text: str) -> tuple[tuple[str, str, str], ...]:
    terms = []
    for part in text.split(",") if text else ():
        found = _TERM.fullmatch(part)
        if found is None or (found["operator"] and found["key"].startswith("!")):
            raise StatusError(400, "BadRequest", f"unable to parse requirement: {part!r}")
        key, operator = found["key"], (found["operator"] or "").replace("==", "=")
        if not operator:
            operator = "out" if key.startswith("!") else "in"
        terms.append((key.lstrip("!"), operator, found["value"] or ""))
    return tuple(terms)


def _holds(values: Object, key: str, operator: str, value: str) -> bool:
    match operator:
        case "=":
            return bool(values.get(key) == value)
        case "!=":
            return bool(values.get(key) != value)
        case "in":
            return key in values
    return key not in values
