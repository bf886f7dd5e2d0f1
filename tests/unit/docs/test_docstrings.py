"""Docstrings are shown as they are meant."""

from __future__ import annotations

from pathlib import Path

import griffe
import pytest

from docgen.docstrings import to_html


@pytest.fixture
def module(tmp_path: Path) -> griffe.Module:
    (tmp_path / "room.py").write_text(
        "from tp2.errors import Tp2Error\n\n\nclass Table:\n    def lease(self): ...\n\n    def drop(self): ...\n"
    )
    loaded = griffe.load("room", search_paths=[tmp_path])
    assert isinstance(loaded, griffe.Module)
    return loaded


def test_references_lead_to_what_the_code_means(module: griffe.Module) -> None:
    html = to_html("See :class:`Table`, :meth:`~Table.lease` and :exc:`Tp2Error`.", module)
    assert '<autoref identifier="room.Table" optional><code>Table</code></autoref>' in html
    assert '<autoref identifier="room.Table.lease" optional><code>lease</code></autoref>' in html
    assert '<autoref identifier="tp2.errors.Tp2Error" optional><code>Tp2Error</code></autoref>' in html


def test_in_a_method_the_methods_beside_it_are_found(module: griffe.Module) -> None:
    lease = module["Table.lease"]
    assert isinstance(lease, griffe.Object)
    assert 'identifier="room.Table.drop"' in to_html("Not :meth:`drop`.", lease)


def test_tables_fields_and_literals_are_understood(module: griffe.Module) -> None:
    html = to_html("One.\n\n== ==\na  b\n== ==\n1  2\n== ==\n\n:param x: a *number*.\n:raises E: ``never``.\n", module)
    assert html.count("<td>") == 2
    assert "<em>number</em>" in html
    assert "<dt><code>x</code>" in html
    assert "<dt>raises <code>E</code>" in html
    assert ">never</span>" in html


@pytest.mark.parametrize(
    "text",
    [
        "*unclosed",
        "== ==\na  b\n== ==\nlonger than its column\n== ==\n",
        "a `reference_`_ to nothing",
        ":nosuchrole:`x`",
    ],
)
def test_what_is_no_restructured_text_is_an_error_of_the_build(module: griffe.Module, text: str) -> None:
    with pytest.raises(ValueError, match="the docstring of room"):
        to_html(text, module)
