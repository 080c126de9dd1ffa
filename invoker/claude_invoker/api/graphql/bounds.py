"""How much one GraphQL document may ask for: pure. All of it is known before anything is validated or resolved, since
validating costs the square of what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    parse,
)

from claude_invoker.problem import Problem

MAX_TEXT = 64 << 10
MAX_TOKENS = 2000
MAX_DEPTH = 15  # what GraphiQL asks of the schema has 13
MAX_ALIASES = 10
MAX_FIELDS = 500
MAX_VALUES = 50_000
"""In all variables: each is looked at by itself, while nobody else is served."""
MAX_FIRST = 10
"""Fields of the operation itself: each is a request of its own."""


@dataclass(frozen=True)
class Size:
    """Of what is selected, with all fragments in their places."""

    fields: int = 0
    aliases: int = 0
    depth: int = 0

    def beside(self, other: Size) -> Size:
        return Size(self.fields + other.fields, self.aliases + other.aliases, max(self.depth, other.depth))


def operation_of(text: str) -> tuple[DocumentNode, OperationDefinitionNode]:
    """The document and its only operation. Raises Problem 400 (no GraphQL), 422 (asks for too much)."""
    if len(text) > MAX_TEXT:
        raise too_much(f"the query is longer than {MAX_TEXT} characters: put texts into variables")
    try:
        document = parse(text, max_tokens=MAX_TOKENS)
    except GraphQLError as error:
        raise Problem(400, "bad-request", f"the query is not understood: {error.message[:300]}") from None
    except RecursionError:
        raise too_much("the query is nested too deeply") from None
    operations = [each for each in document.definitions if isinstance(each, OperationDefinitionNode)]
    if len(operations) != 1:
        raise too_much(f"the document has {len(operations)} operations: send one")
    (operation,) = operations
    fragments = {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}
    _check(operation, _Measure(fragments))
    return document, operation


def _check(operation: OperationDefinitionNode, measure: _Measure) -> None:
    """Raises Problem 422."""
    size = measure.of(operation.selection_set)
    for each in measure.fragments.values():  # those that nobody uses are validated as well
        size = size.beside(measure.of(each.selection_set))
    if size.depth > MAX_DEPTH:
        raise too_much(f"the query is more than {MAX_DEPTH} levels deep")
    if size.aliases > MAX_ALIASES:
        raise too_much(f"the query has more than {MAX_ALIASES} aliases")
    if size.fields > MAX_FIELDS:
        raise too_much(f"the query asks for more than {MAX_FIELDS} fields")
    first = operation.selection_set.selections
    if operation.operation is OperationType.MUTATION and (len(first) != 1 or not isinstance(first[0], FieldNode)):
        # Each is let in, and paid for, by itself.
        raise too_much("a mutation has one field, and no fragment in its place: send several as several requests")
    if measure.first(operation.selection_set) > MAX_FIRST:
        raise too_much(f"the query asks for more than {MAX_FIRST} things at once")


class _Measure:
    """Each fragment is measured once, however often it is used: so used, it may stand for any number of fields."""

    def __init__(self, fragments: dict[str, FragmentDefinitionNode]) -> None:
        self.fragments = fragments
        self._known: dict[str, Size | None] = {}

    def of(self, selections: SelectionSetNode | None) -> Size:
        """Raises Problem 422 for fragments that go in a circle. As deep as the parser was at most."""
        found = Size()
        for each in selections.selections if selections is not None else ():
            if isinstance(each, FieldNode):
                inside = self.of(each.selection_set)
                mine = Size(inside.fields + 1, inside.aliases + (each.alias is not None), inside.depth + 1)
            elif isinstance(each, InlineFragmentNode):
                mine = self.of(each.selection_set)
            else:
                assert isinstance(each, FragmentSpreadNode)
                mine = self._fragment(each.name.value)
            found = found.beside(mine)
        return found

    def _fragment(self, name: str) -> Size:
        if name not in self._known:
            if name not in self.fragments:
                return Size()  # which validation refuses
            self._known[name] = None
            try:
                self._known[name] = self.of(self.fragments[name].selection_set)
            except RecursionError:
                raise too_much("the query is nested too deeply") from None
        known = self._known[name]
        if known is None:
            raise too_much("fragments go in a circle")
        return known

    def first(self, selections: SelectionSetNode) -> int:
        """Fields of an operation itself, those of fragments included."""
        count = 0
        for each in selections.selections:
            if isinstance(each, FieldNode):
                count += 1
            elif isinstance(each, InlineFragmentNode):
                count += self.first(each.selection_set)
            elif isinstance(each, FragmentSpreadNode) and each.name.value in self.fragments:
                count += self.first(self.fragments[each.name.value].selection_set)
            if count > MAX_FIRST:  # fragments of fragments may double it again and again
                break
        return count


def refuse_many(variables: Mapping[str, Any]) -> None:
    """Raises Problem 422."""
    left = MAX_VALUES
    waiting: list[Any] = [variables]
    while waiting:
        each = waiting.pop()
        inside = list(each.values() if isinstance(each, Mapping) else each)
        left -= len(inside)
        if left < 0:
            raise too_much(f"the variables have more than {MAX_VALUES} values")
        waiting += [one for one in inside if isinstance(one, dict | list)]


def too_much(detail: str) -> Problem:
    return Problem(422, "invalid", detail)
