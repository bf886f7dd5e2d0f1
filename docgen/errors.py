"""Every error message of tp2 with its remedy, from the code that makes it: docs/reference/errors.md."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from docgen.kinds import FINDING, REASON, TEXTS, Kind, Name, kinds, origin
from docgen.texts import Module, Texts, Walk
from tp2 import errors
from tp2.errors import ExitCode, Tp2Error

_BRACKETS: Final = "‹[^›]*›"

_HEAD: Final = """\
# Every error message

<!-- Written by scripts/docs from the code of tp2/. A change of a message is made there. -->

An error of `tp2` says what failed, why, and what to do; its exit code says of which kind it is. This page has all of
them, as the code can make them. What stands in ‹brackets› is filled in.

| exit code | of what |
|---|---|
"""


_FINDINGS: Final = (
    "Beside the errors above: checks of `tp2 doctor` and steps of `tp2 explain` that failed, or are worth a look."
)


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """One way in which an error can read.

    ``exit_code`` is that of its class, or else what :mod:`docgen.kinds` has in its place; a reason has no ``what``.
    """

    exit_code: int
    what: str
    why: str
    remedy: str

    @property
    def says_something(self) -> bool:
        """Whether any of its words are here; one that hands on another's words has none of its own."""
        return any(_has_words(text) for text in (self.what, self.why, self.remedy))


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in the code an error is made."""

    file: str
    line: int
    column: int


def modules(package: Path) -> dict[str, Module]:
    """Read every module below *package*, by its full name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module.read(path.read_text(encoding="utf-8"))
    return found


def scan(package: Path) -> dict[Place, set[Message]]:
    """Return what each place in *package* that makes an error can say.

    :raises ValueError: an error is made in a way that this does not understand.
    """
    read = modules(package)
    makers = kinds(read)
    found: dict[Place, set[Message]] = {}
    for name, module in read.items():
        found |= _Scan(name, module, read, makers).run()
    return found


class _Scan:
    def __init__(self, name: str, module: Module, read: Mapping[str, Module], makers: Mapping[Name, Kind]) -> None:
        self._file = name
        self._module = module
        self._read = read
        self._makers = makers
        self._found: dict[Place, set[Message]] = defaultdict(set)
        self._found_by_callers: dict[Place, set[Message]] = defaultdict(set)

    def run(self) -> dict[Place, set[Message]]:
        # Functions that put what they are given into an error are followed from their callers: those know the words.
        makers = {
            name
            for name, function in self._module.functions.items()
            if any(isinstance(node, ast.Call) and self._kind(node) is not None for node in ast.walk(function))
        }
        Walk(self._module, self._read, self._visit, makers).run()
        return {place: _told_once(messages, self._found_by_callers[place]) for place, messages in self._found.items()}

    def _kind(self, call: ast.Call) -> Kind | None:
        return self._makers.get(origin(self._file, self._module, call.func))

    def _visit(self, call: ast.Call, texts: Texts, by_caller: bool) -> None:
        kind = self._kind(call)
        if kind is None:
            return
        given: dict[str, ast.expr] = dict(zip(kind.parameters, call.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        place = Place(self._file, call.lineno, call.col_offset)
        if not given.keys() >= set(kind.texts):
            if kind.code == FINDING:
                # Nothing was found wrong.
                return
            raise ValueError(f"{place}: an error is made without what, why and remedy one by one")
        found = self._found_by_callers if by_caller else self._found
        for words in itertools.product(*(texts(given[name]) if name in given else [""] for name in TEXTS)):
            found[place].add(Message(kind.code, *words))


def _told_once(general: set[Message], special: set[Message]) -> set[Message]:
    """Join what a place can say, whoever calls its function, with what it says for certain callers.

    If the general words are words at all, they will do; where they are only what a caller gives, the callers' count.
    """
    sparse = {one for one in general if not all(_has_words(text) for text in _texts(one))}
    telling = {one for one in special if not any(_is_case_of(one, other) for other in general - sparse)}
    replaced = {
        one
        for one in sparse
        if any(
            _is_case_of(other, one)
            and any(
                _has_words(new) and not _has_words(old) for new, old in zip(_texts(other), _texts(one), strict=True)
            )
            for other in telling
        )
    }
    # What differs in how its brackets are called only, is one.
    kept = _in_order(general - replaced, telling)
    return set({tuple(re.sub(_BRACKETS, "", text) for text in _texts(one)): one for one in kept}.values())


def _in_order(*groups: set[Message]) -> Iterator[Message]:
    """The last is the one to keep, of those that are alike."""
    for group in reversed(groups):
        yield from sorted(group, reverse=True)


def _texts(message: Message) -> tuple[str, str, str]:
    return message.what, message.why, message.remedy


def _is_case_of(one: Message, other: Message) -> bool:
    return all(matches(general, text) for text, general in zip(_texts(one), _texts(other), strict=True))


def matches(template: str, text: str) -> bool:
    """Whether *text* is what *template* says, with something in its brackets."""
    pattern = ".*".join(re.escape(words) for words in re.split(_BRACKETS, template))
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _has_words(text: str) -> bool:
    return any(character.isalpha() for character in re.sub(_BRACKETS, "", text))


def page(found: Mapping[Place, set[Message]]) -> str:
    """Return the page, in Markdown."""
    return "".join(_lines({message for messages in found.values() for message in messages}))


def _lines(messages: set[Message]) -> Iterator[str]:
    yield _HEAD
    by_code: dict[int, dict[str, list[Message]]] = defaultdict(lambda: defaultdict(list))
    for message in sorted(messages):
        if message.says_something:
            by_code[message.exit_code][message.what].append(message)
    meanings = _meanings()
    reasons, findings = by_code.pop(REASON, {}), by_code.pop(FINDING, {})
    for code in by_code:
        yield f"| [{code}](#exit-code-{code}) | {_cell(meanings[code])} |\n"
    for code, by_what in by_code.items():
        yield f"\n## Exit code {code}\n\n{meanings[code]}\n"
        yield from _by_what(by_what)
    if findings:
        yield f"\n## What doctor and explain find\n\n{_FINDINGS}\n"
        yield from _by_what(findings)
    if reasons:
        yield f"\n## Reasons\n\nWhere a message above has ‹why› and ‹remedy›, these may stand:\n\n{_table(reasons[''])}"


def _by_what(messages: Mapping[str, list[Message]]) -> Iterator[str]:
    for what, alternatives in messages.items():
        heading = what if _has_words(what) else "Another of these messages, with more words"
        yield f"\n### {heading}\n\n{_table(alternatives)}"


def _table(messages: list[Message]) -> str:
    rows = (f"| {_cell(message.why)} | {_cell(message.remedy)} |\n" for message in messages)
    return "".join(["| why | what to do |\n|---|---|\n", *rows])


def _meanings() -> dict[int, str]:
    """What each exit code stands for, in the words of its class."""
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Tp2Error)]
    meanings = {int(each.exit_code): " ".join((each.__doc__ or "").split()) for each in classes if each is not Tp2Error}
    return {int(ExitCode.FAILURE): "Whatever has no exit code of its own.", **meanings}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
