"""Docstrings for mkdocstrings: written in reStructuredText, shown as HTML, with references that lead somewhere.

mkdocstrings takes docstrings for Markdown. This griffe extension turns each into HTML beforehand, by docutils, which
knows tables, literal blocks and field lists; a docstring that is no reStructuredText is an error of the build.
"""

from __future__ import annotations

import re
from copy import copy
from functools import cache
from html import escape
from typing import Any, Final

import griffe
from docutils import frontend, nodes, utils
from docutils.core import publish_parts
from docutils.parsers.rst import Parser, roles
from docutils.readers.standalone import Reader
from docutils.writers.html5_polyglot import Writer

#: The roles of Sphinx that docstrings here use, for things of Python.
_REFERENCES: Final = ("class", "func", "meth", "mod", "attr", "data", "exc", "const")

#: Names of those roles' targets, beside what is written: ``:class:`~tp2.errors.Tp2Error``` is shown as ``Tp2Error``.
_TARGET: Final = re.compile(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", re.DOTALL)

#: Packages without a page: tp2's own stand-in for a cluster is nobody's to use.
LEFT_OUT: Final = ("tp2.sandbox",)

_SETTINGS: Final = {
    "initial_header_level": 4,
    "doctitle_xform": False,
    "halt_level": 2,
    "traceback": True,
    "report_level": 5,
    "embed_stylesheet": False,
    "syntax_highlight": "none",
    "file_insertion_enabled": False,
    "raw_enabled": True,
    "smart_quotes": False,
    # What is wrong is raised; it need not be printed as well.
    "warning_stream": "",
}


class Restructured(griffe.Extension):
    """Turns the docstrings of a package into HTML once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Convert every docstring of *pkg*."""
        _convert(pkg, set())


def _convert(item: griffe.Object, done: set[str]) -> None:
    # What no page shows need not be converted.
    if item.path in done or item.name.startswith("_") or item.path in LEFT_OUT:
        return
    done.add(item.path)
    if item.docstring is not None:
        item.docstring.value = to_html(item.docstring.value, item)
    for member in item.members.values():
        if isinstance(member, griffe.Object):
            _convert(member, done)


def to_html(text: str, item: griffe.Object) -> str:
    """Return *text*, the docstring of *item*, as a block of HTML.

    :raises ValueError: it is no reStructuredText.
    """
    for role in _REFERENCES:
        roles.register_local_role(role, _reference_from(item))
    roles.register_local_role("manpage", _manual_page)
    try:
        parts = publish_parts(text, writer="html5", settings=copy(_settings()))
    except utils.SystemMessage as error:
        raise ValueError(f"the docstring of {item.path} is no reStructuredText: {error}") from error
    # What a field is for, its place in the list says; ``:raises`` has to be told from parameters.
    body = re.sub(r"<dt>param (\w+)", r"<dt><code>\1</code>", parts["body"].strip())
    body = re.sub(r"<dt>raises ([\w.]+)", r"<dt>raises <code>\1</code>", body)
    return f'<div class="docstring">\n{body}\n</div>'


@cache
def _settings() -> Any:
    """Return docutils' settings; to find them takes it twice as long as a docstring does."""
    settings = frontend.get_default_settings(Parser, Reader, Writer)
    for name, value in _SETTINGS.items():
        setattr(settings, name, value)
    return settings


def _reference_from(item: griffe.Object) -> Any:
    """Return a role whose names are looked up as code in *item* would look them up."""

    def reference(
        name: str, raw: str, text: str, line: int, inliner: Any, *_: Any
    ) -> tuple[list[nodes.Node], list[Any]]:
        match = _TARGET.fullmatch(text)
        target = match["target"] if match else text
        shown = match["text"] if match else target.rpartition(".")[2] if target.startswith("~") else target
        target = target.lstrip("~").removesuffix("()")
        path = _resolved(target, item)
        # Optional: of a thing without a docstring there is nothing to lead to.
        html = f'<autoref identifier="{escape(path)}" optional><code>{escape(shown)}</code></autoref>'
        return [nodes.raw(raw, html, format="html")], []

    return reference


def _resolved(target: str, item: griffe.Object) -> str:
    first, dot, rest = target.partition(".")
    scope: griffe.Object | None = item
    while scope is not None:
        found = scope.members.get(first)
        if found is not None:
            path = found.target_path if isinstance(found, griffe.Alias) else found.path
            return f"{path}{dot}{rest}"
        scope = scope.parent if isinstance(scope.parent, griffe.Object) else None
    return target


def _manual_page(name: str, raw: str, text: str, line: int, inliner: Any, *_: Any) -> Any:
    return [nodes.emphasis(raw, text)], []
