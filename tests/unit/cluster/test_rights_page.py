"""The documentation says what rights tp2 needs: those that it asks for, and no other."""

from __future__ import annotations

from pathlib import Path

from tp2.cluster.rights import CATALOG_RIGHTS, ENDPOINT_RIGHTS, NAMESPACE_RIGHTS

PAGE = Path(__file__).parents[3] / "docs" / "endpoint.md"


def test_the_table_of_rights_is_that_of_the_roles() -> None:
    section = PAGE.read_text("utf-8").partition("## Rights in the cluster")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    scopes = (
        (CATALOG_RIGHTS, "everywhere, or some namespaces"),
        (NAMESPACE_RIGHTS, "everywhere"),
        (ENDPOINT_RIGHTS, "the endpoint's namespace"),
    )
    assert rows == [
        f"| {right.verb} | {right.resource}{f'.{right.group}' if right.group else ''} | {where} | {right.purpose} |"
        for rights, where in scopes
        for right in rights
    ]
