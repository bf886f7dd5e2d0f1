"""What texts the code can make: a walk through functions that follows every path and keeps strings as templates.

A :class:`Walk` follows the functions of a module without running them. Names hold templates (``cannot read ‹path›``);
at a fork of the way (``if``, ``match``, ``try``, ``x if y else z``) every branch is followed with the names that it has
seen, so that the words of one path are never mixed with those of another. What is no text becomes a placeholder named
after it. Pure: it reads syntax trees.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

#: Names and the texts that they hold on one path.
Environment = Mapping[str, str]

#: Gives the texts that an expression can be.
Texts = Callable[[ast.expr], list[str]]

#: Told of every call on every path: the call, what texts there are at it, and whether the function that it stands in
#: was entered from a call of its own, so that the texts of that are known.
Visitor = Callable[[ast.Call, Texts, bool], None]

#: How deep one function is followed into another, and how many ways through one are told apart.
_DEPTH: Final = 3
_WAYS: Final = 500

#: What placeholders are called whose names in the code say little.
_SPOKEN: Final = {
    "error": "reason",
    "strerror": "reason",
    "__name__": "reason",
    "verify_message": "reason",
    "message": "reason",
    "words": "reason",
    "decode": "reason",
    "read": "reason",
    "pid": "pid",
    "holder": "pid",
    "uid": "uid",
    "geteuid": "uid",
    "st_uid": "uid",
    "text": "value",
    "known_hosts_path": "known_hosts",
    "get_algorithm": "algorithm",
    "get_fingerprint": "fingerprint",
    "vouched_for_by": "the log of its pod",
    "plural": "resources",
    "place": "port of a pod",
    "within": "in time",
    "absolute": "path of tp2",
    "returncode": "code",
}


@dataclass
class Module:
    """The parts of a module that texts are made of.

    :param constants: what its names are set to at the top.
    :param functions: its functions and methods by name; a name that it has twice is left out.
    :param imports: from names to the module that they come from.
    """

    tree: ast.Module
    constants: dict[str, ast.expr] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, source: str) -> Module:
        """Read a module's source."""
        module = cls(ast.parse(source))
        for statement in module.tree.body:
            match statement:
                case (
                    ast.Assign(targets=[ast.Name(name)], value=value)
                    | ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value)
                ):
                    module.constants[name] = value
                case ast.ImportFrom(module=str(source), names=names):
                    module.imports |= {alias.asname or alias.name: source for alias in names}
        twice = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.name in module.functions:
                    twice.add(node.name)
                module.functions[node.name] = node
        for name in twice:
            del module.functions[name]
        return module


class Walk:
    """Follows the functions of *module*; *others* are the project's modules by name, for their constants.

    :param enter: functions that are followed from where they are called, too, with the texts that they are called with.
    """

    def __init__(self, module: Module, others: Mapping[str, Module], visit: Visitor, enter: Iterable[str] = ()) -> None:
        self._module = module
        self._others = others
        self._visit = visit
        self._enter = frozenset(enter)
        self._depth = 0

    def run(self) -> None:
        """Follow every function, and the module itself."""
        self._block([s for s in self._module.tree.body if not isinstance(s, ast.ClassDef)], [{}])
        for node in ast.walk(self._module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._block(node.body, [{}])

    def _block(
        self, statements: Iterable[ast.stmt], ways: list[Environment], ends: list[str] | None = None
    ) -> list[Environment]:
        """Follow *statements* from each of *ways*; return how they can be left at their end.

        :param ends: is given the texts that are returned.
        """
        for statement in statements:
            ways = self._unique(way for each in ways for way in self._statement(statement, each, ends))
        return ways

    def _statement(self, statement: ast.stmt, way: Environment, ends: list[str] | None) -> list[Environment]:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                return [way]
            case ast.If(test=test, body=body, orelse=orelse):
                self._calls(test, way)
                return self._block(body, [way], ends) + self._block(orelse, [way], ends)
            case ast.For(body=body, orelse=orelse) | ast.AsyncFor(body=body, orelse=orelse):
                self._calls(statement.iter, way)
                return self._block(orelse, self._unique([way, *self._block(body, [way], ends)]), ends)
            case ast.While(test=test, body=body, orelse=orelse):
                self._calls(test, way)
                return self._block(orelse, self._unique([way, *self._block(body, [way], ends)]), ends)
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                for item in items:
                    self._calls(item.context_expr, way)
                return self._block(body, [way], ends)
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=finalbody):
                after = self._block(orelse, self._block(body, [way], ends), ends)
                for handler in handlers:
                    after += self._block(handler.body, [way], ends)
                return self._block(finalbody, self._unique(after or [way]), ends) if finalbody else after
            case ast.Match(subject=subject, cases=cases):
                self._calls(subject, way)
                return [way, *(left for case in cases for left in self._block(case.body, [way], ends))]
            case (
                ast.Assign(targets=[ast.Name(name)], value=value)
                | ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value)
            ):
                self._calls(value, way)
                return self._set(way, name, value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if len(names) == len(values):
                self._calls(statement, way)
                ways = [way]
                for target, value in zip(names, values, strict=True):
                    if isinstance(target, ast.Name):
                        ways = [left for each in ways for left in self._set(each, target.id, value)]
                return ways
            case ast.AugAssign(target=ast.Name(name), op=ast.Add(), value=value):
                return [
                    {**way, name: before + after} for before in [way.get(name, "")] for after in self.texts(value, way)
                ]
            case ast.Return(value=ast.expr() as value):
                self._calls(value, way)
                if ends is not None:
                    ends += self.texts(value, way)
                return []
            case ast.Return() | ast.Raise() | ast.Continue() | ast.Break():
                self._calls(statement, way)
                return []
            case _:
                self._calls(statement, way)
                return [way]

    def _set(self, way: Environment, name: str, value: ast.expr) -> list[Environment]:
        if self._is_text(value, way):
            return [{**way, name: text} for text in self.texts(value, way)]
        return [{other: text for other, text in way.items() if other != name}]

    def _calls(self, node: ast.AST, way: Environment) -> None:
        for call in ast.walk(node):
            if isinstance(call, ast.Call):
                self._visit(call, lambda expression: self.texts(expression, way), self._depth > 0)
                name = _called(call)
                if name in self._enter and name in self._module.functions and self._depth < _DEPTH:
                    self._inside(call, self._module.functions[name], way, None)

    def _inside(
        self,
        call: ast.Call,
        function: ast.FunctionDef | ast.AsyncFunctionDef,
        way: Environment,
        ends: list[str] | None,
    ) -> None:
        """Follow *function* with the texts of *call*."""
        names = [argument.arg for argument in function.args.args]
        if names[:1] == ["self"]:
            names = names[1:]
        given = {
            **dict(zip(names, call.args, strict=False)),
            **{keyword.arg: keyword.value for keyword in call.keywords if keyword.arg},
        }
        choices = {name: self.texts(value, way) for name, value in given.items() if self._is_text(value, way)}
        self._depth += 1
        for texts in itertools.product(*choices.values()):
            self._block(function.body, [dict(zip(choices, texts, strict=True))], ends)
        self._depth -= 1

    def texts(self, expression: ast.expr, way: Environment) -> list[str]:
        """Return the texts that *expression* can be."""
        return list(dict.fromkeys(self._texts(expression, way)))

    def _texts(self, expression: ast.expr, way: Environment) -> Iterator[str]:
        match expression:
            case ast.Constant(value=value):
                yield str(value)
            case ast.JoinedStr(values=values):
                yield from self._joined([list(self._texts(value, way)) for value in values])
            case ast.FormattedValue(value=value, conversion=conversion, format_spec=spec):
                for text in self._texts(value, way):
                    formatted = _formatted(text, spec)
                    yield f"'{formatted}'" if conversion == ord("r") else formatted
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                yield from self._joined([list(self._texts(left, way)), list(self._texts(right, way))])
            case ast.IfExp(body=body, orelse=orelse):
                yield from self._texts(body, way)
                yield from self._texts(orelse, way)
            case ast.BoolOp(op=ast.Or(), values=values):
                for value in values[:-1]:
                    yield from filter(None, self._texts(value, way))
                yield from self._texts(values[-1], way)
            case ast.Name(id=name) if name in way:
                yield way[name]
            case ast.Name(id=name) if (constant := self._constant(name)) is not None:
                yield from self._texts(constant, {})
            case ast.Call():
                yield from self._call(expression, way)
            case _:
                yield _placeholder(expression)

    def _call(self, call: ast.Call, way: Environment) -> Iterator[str]:
        name = _called(call)
        match call:
            case ast.Call(func=ast.Attribute(value=value, attr="format"), args=args, keywords=keywords):
                filled = [next(self._texts(argument, way)) for argument in args]
                named = {keyword.arg: next(self._texts(keyword.value, way)) for keyword in keywords if keyword.arg}
                for text in self._texts(value, way):
                    yield text.format(*filled, **named)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=table), attr="get"), args=[_, *default]) if isinstance(
                self._constant(table), ast.Dict
            ):
                constant = self._constant(table)
                assert isinstance(constant, ast.Dict)
                for value in (*constant.values, *default):
                    yield from self._texts(value, {})
            case ast.Call(func=ast.Attribute(value=value, attr="rstrip" | "strip" | "lower" | "removeprefix")):
                yield from self._texts(value, way)
            case ast.Call(func=ast.Name(id="str" | "repr"), args=[value]):
                yield from self._texts(value, way)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(attribute)), *_]):
                yield _named(attribute)
            case _ if (
                name in self._module.functions and self._depth < _DEPTH and _gives_text(self._module.functions[name])
            ):
                ends: list[str] = []
                self._inside(call, self._module.functions[name], way, ends)
                yield from ends or [_placeholder(call)]
            case _:
                yield _placeholder(call)

    def _is_text(self, value: ast.expr, way: Environment) -> bool:
        match value:
            case ast.Constant(value=str()) | ast.JoinedStr():
                return True
            case ast.Name(id=name):
                return name in way
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._is_text(left, way) or self._is_text(right, way)
            case ast.IfExp(body=body, orelse=orelse):
                return self._is_text(body, way) or self._is_text(orelse, way)
            case ast.BoolOp(op=ast.Or(), values=values):
                return any(self._is_text(each, way) for each in values)
            case ast.Call(func=ast.Attribute(value=inner, attr="rstrip" | "strip" | "lower" | "format")):
                return self._is_text(inner, way)
            case ast.Call():
                function = self._module.functions.get(_called(value))
                return function is not None and _gives_text(function)
        return False

    def _constant(self, name: str) -> ast.expr | None:
        if name in self._module.constants:
            return self._module.constants[name]
        source = self._others.get(self._module.imports.get(name, ""))
        return source.constants.get(name) if source else None

    @staticmethod
    def _joined(parts: list[list[str]]) -> Iterator[str]:
        return ("".join(choice) for choice in itertools.product(*parts))

    @staticmethod
    def _unique(ways: Iterable[Environment]) -> list[Environment]:
        found = {tuple(sorted(way.items())): way for way in ways}
        if len(found) > _WAYS:
            raise ValueError(f"there are more than {_WAYS} ways through a function: raise the limit, or split it")
        return list(found.values())


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _gives_text(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return isinstance(function.returns, ast.Name) and function.returns.id == "str"


def _placeholder(expression: ast.expr) -> str:
    """Name what stands in a text where the code has *expression*."""
    match expression:
        case ast.Name(id=name):
            return _named(name)
        case ast.Attribute(attr=name):
            return _named(name)
        case (
            ast.Subscript(slice=ast.Constant(value=str(key)))
            | ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(key)), *_])
        ):
            return _named(key)
        case ast.Subscript(value=value) | ast.Await(value=value) | ast.Starred(value=value):
            return _placeholder(value)
        case ast.Call(func=ast.Attribute(attr="join"), args=[value]):
            return _placeholder(value)
        case ast.GeneratorExp(generators=[ast.comprehension(iter=source), *_]):
            return _placeholder(source)
        case ast.Call(func=ast.Name(id="map"), args=[_, value]):
            return _placeholder(value)
        case ast.Call(func=ast.Attribute(value=value, attr="split" | "splitlines")):
            return _placeholder(value)
        case ast.Call(func=ast.Name(id="sorted" | "type" | "int" | "len" | "str"), args=[value, *_]):
            return _placeholder(value)
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return _named(name)
    return _named("value")


def _named(name: str) -> str:
    name = name.strip("_") if name != "__name__" else name
    return f"‹{_SPOKEN.get(name, name.lower().replace('_', ' '))}›"


def _formatted(text: str, spec: ast.expr | None) -> str:
    match spec:
        case ast.JoinedStr(values=[ast.Constant(value=str(form))]):
            try:
                number: Any = float(text)
                return format(number, form)
            except ValueError:
                return text
    return text
