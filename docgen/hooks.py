"""What mkdocs calls while it builds the site (see ``hooks`` in mkdocs.yml): the pages of the API reference.

There is one for each room of the house, and nobody has to remember a new module: the pages list what is in tp2/.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docgen.docstrings import LEFT_OUT

ROOT: Final = Path(__file__).parents[1]

#: Where the pages are in the site.
_PLACE: Final = "reference/api"

_HOUSE: Final = "the house"


def pages(package: Path) -> dict[str, str]:
    """Return the API reference of *package*, by page: one for each package in it, and one for its own modules."""
    rooms: dict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if ".".join(names).startswith(LEFT_OUT):
            continue
        # Programs, and a package that says nothing, have nothing to refer to.
        if names[-1] == "__main__" or not _has_docstring(path):
            continue
        inside = len(parts) > 2
        rooms[parts[1] if inside else ""].append(".".join(names))
    return {room: _page(f"{package.name}.{room}" if room else package.name, names) for room, names in rooms.items()}


def _has_docstring(path: Path) -> bool:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is not None


def _page(title: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {name}" for name in sorted(modules, key=lambda name: name != title))])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages to the navigation, where mkdocs.yml has an empty entry for them."""
    entry = [{room or _HOUSE: f"{_PLACE}/{room or 'tp2'}.md"} for room in sorted(pages(ROOT / "tp2"))]
    for section in config.nav or []:
        for name, content in section.items():
            if name == "Reference":
                content.append({"API": entry})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages themselves."""
    for room, text in pages(ROOT / "tp2").items():
        files.append(File.generated(config, f"{_PLACE}/{room or 'tp2'}.md", content=text))
    return files
