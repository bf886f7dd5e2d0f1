"""What in the code makes a message: classes of errors, findings and reasons, and functions that make findings."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from docgen.texts import Module
from tp2.errors import ExitCode, Tp2Error

#: The texts of a message, in the order in which errors take them.
TEXTS: Final = ("what", "why", "remedy")

#: In place of an exit code: what a check has found, as ``tp2 doctor`` shows it.
FINDING: Final = -1

#: The same: a reason that is made by itself and put into an error elsewhere, such as why a pod is not ready.
REASON: Final = -2


@dataclass(frozen=True, slots=True)
class Kind:
    """:param code: an exit code, :data:`FINDING` or :data:`REASON`.
    :param parameters: the names of the positional arguments, as far as they matter."""

    code: int
    parameters: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Which of :data:`TEXTS` it has."""
        return tuple(name for name in TEXTS if name in self.parameters)


Name = tuple[str, str]
"""A module and a name in it."""


def kinds(read: Mapping[str, Module]) -> dict[Name, Kind]:
    """Return everything in the modules *read* that makes messages."""
    found = {(Tp2Error.__module__, Tp2Error.__name__): Kind(int(Tp2Error.exit_code), TEXTS)}
    classes = [
        (name, node)
        for name, module in read.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]
    known = 0
    while known != len(found):
        known = len(found)
        for name, node in classes:
            for base in node.bases:
                inherited = found.get(origin(name, read[name], base))
                if inherited is not None:
                    found[name, node.name] = Kind(_own_code(node) or inherited.code, TEXTS)
    for name, node in classes:
        fields = tuple(
            each.target.id
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        )
        if {"why", "remedy"} <= set(fields):
            found.setdefault((name, node.name), Kind(FINDING if "what" in fields else REASON, fields))
    return found | _functions(read, found)


def _functions(read: Mapping[str, Module], classes: Mapping[Name, Kind]) -> dict[Name, Kind]:
    """Functions of a module's own that do nothing but put their texts into a finding."""
    found = {}
    for name, module in read.items():
        for function in module.functions.values():
            parameters = tuple(argument.arg for argument in function.args.args)
            match function.body:
                case [*_, ast.Return(value=ast.Call(func=made))] if set(TEXTS) <= set(parameters):
                    kind = classes.get(origin(name, module, made))
                    if kind is not None and kind.code == FINDING:
                        found[name, function.name] = Kind(FINDING, parameters)
    return found


def origin(name: str, module: Module, expression: ast.expr) -> Name:
    """Return the module and the name of what *expression* stands for in the module *name*."""
    match expression:
        case ast.Name(id=local):
            return module.imports.get(local, name), local
        case ast.Attribute(value=ast.Name(id=local), attr=attribute):
            return f"{module.imports.get(local, '')}.{local}", attribute
    return "", ""


def _own_code(node: ast.ClassDef) -> int | None:
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="exit_code")], value=ast.Attribute(attr=code)):
                return int(ExitCode[code])
    return None
