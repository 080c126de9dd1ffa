"""Mutants of Python: one operator, constant, condition, argument or statement changed."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from tests.mutants.mutant import Mutant

_COMPARED: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
}
_COMPARISON = re.compile(r"==|!=|<=|>=|<|>|\bnot\s+in\b|\bin\b|\bis\s+not\b|\bis\b")
_SIGNS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "+"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
    ast.LShift: ("<<", ">>"),
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "ceil": "floor", "floor": "ceil"}


class _Source:
    """A file's text, and where nodes stand in it."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.starts = [0]
        for line in text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = text.splitlines()

    def at(self, line: int, byte: int) -> int:
        """ast counts bytes of UTF-8."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:byte].decode())

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def mutant(self, node: ast.expr | ast.stmt, becomes: str) -> Mutant:
        return Mutant.of(self.path, self.text, *self.span(node), becomes)

    def compared(self, node: ast.expr, left: ast.expr, right: ast.expr, other: str) -> Mutant:
        """With another operator; parentheses around the operands, which no operand counts as its own, stay."""
        (start, end), gap = self.span(node), slice(self.span(left)[1], self.span(right)[0])
        between = _COMPARISON.sub(other, self.text[gap], count=1)
        return Mutant.of(
            self.path, self.text, start, end, self.text[start : gap.start] + between + self.text[gap.stop : end]
        )

    def between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> Mutant | None:
        """An operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.text.find(old, start, end)
        if at < 0:
            return None
        return Mutant.of(self.path, self.text, at, at + len(old), new)


def mutants(path: str, text: str) -> list[Mutant]:
    """All of a file, in its order. What is said to a reader (docstrings, texts with a blank in them), imports,
    annotations and assertions stay as they are."""
    source = _Source(path, text)
    return sorted({mutant for node in _code(ast.parse(text)) for mutant in _of(node, source)})


def _code(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Import | ast.ImportFrom | ast.Assert):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # a docstring
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield child
            if not isinstance(child, ast.JoinedStr):
                yield from _code(child)


def _of(node: ast.AST, source: _Source) -> Iterator[Mutant]:
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            negated = not isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
            for other in _COMPARED[type(operator)]:
                yield source.compared(node, left, right, other)
            if negated:
                return
        case ast.BoolOp(op=operator, values=values):
            old, new = ("and", "or") if isinstance(operator, ast.And) else ("or", "and")
            for left, right in itertools.pairwise(values):
                if found := source.between(left, right, old, new):
                    yield found
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield source.mutant(node, f"({source.of(operand)})")
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _SIGNS:
            old, new = _SIGNS[type(operator)]
            if found := source.between(left, right, old, new):
                yield found
        case ast.Constant(value=bool() as truth):
            yield source.mutant(node, str(not truth))
        case ast.Constant(value=int() | float() as number):
            yield source.mutant(node, str(number + 1))
        case ast.Constant(value=str() as text) if text and " " not in text and "\\" not in source.of(node):
            yield source.mutant(node, repr(text + "XX"))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield source.mutant(node, f"({source.of(orelse)} if {source.of(test)} else {source.of(body)})")
        case ast.If(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare):
            yield source.mutant(test, f"not ({source.of(test)})")
        case ast.comprehension(ifs=conditions):
            for condition in conditions:
                yield source.mutant(condition, "True")
        case ast.Return(value=ast.expr() as value) if source.of(value) != "None":
            yield source.mutant(node, "return None")
        case ast.Call(func=ast.Name(id=called)) if called in _CALLED:
            yield source.mutant(node.func, _CALLED[called])
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.AugAssign() | ast.Delete():
            yield source.mutant(node, "pass")
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield source.mutant(node, "pass")
        case ast.Break():
            yield source.mutant(node, "continue")
        case ast.Continue():
            yield source.mutant(node, "break")
