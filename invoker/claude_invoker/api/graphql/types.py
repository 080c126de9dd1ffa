"""GraphQL's types for the API's documents, made of the models themselves: what is a field there is one here, by a name
as GraphQL writes them (`maxTurns`). What has no type of GraphQL's own is `JSON`."""

from __future__ import annotations

import asyncio
import inspect
import json
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import orjson
from graphql import (
    GraphQLBoolean,
    GraphQLError,
    GraphQLField,
    GraphQLFloat,
    GraphQLID,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLScalarType,
    GraphQLString,
    ValueNode,
    value_from_ast_untyped,
)
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from claude_contract.nesting import TOO_DEEP, too_deep


def _literal(node: ValueNode, variables: dict[str, Any] | None = None) -> Any:
    """What is written in the document itself, which no reader of JSON has seen: what one would make of it. Raises
    GraphQLError."""
    found = value_from_ast_untyped(node, variables)
    if too_deep(found):
        raise GraphQLError(f"a value {TOO_DEEP}", node)
    try:
        return orjson.loads(json.dumps(found, allow_nan=False))
    except ValueError:
        raise GraphQLError("a number is beyond those of JSON", node) from None


JSON = GraphQLScalarType(
    "JSON",
    description="Any value of JSON, as the HTTP API has it.",
    parse_value=lambda value: value,
    parse_literal=_literal,
)
_SCALARS: dict[Any, GraphQLScalarType] = {
    str: GraphQLString,
    int: GraphQLInt,
    float: GraphQLFloat,
    bool: GraphQLBoolean,
}


def camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


@cache
def output(model: type[BaseModel]) -> GraphQLObjectType:
    """An object of the model's fields, read of the dictionary that `model_dump(mode="json")` makes."""

    def fields() -> dict[str, GraphQLField]:
        found = {}
        for name, field in model.model_fields.items():
            its = GraphQLID if name == "id" else _type(field.annotation, output)
            resolve = _reading_in_turn(name) if isinstance(its, GraphQLList) else _reading(name)
            found[camel(name)] = GraphQLField(its, description=field.description, resolve=resolve)
        return found

    return GraphQLObjectType(model.__name__, fields, description=_said(model))


@cache
def argument(model: type[BaseModel]) -> GraphQLInputObjectType:
    """The same of what a caller sends: a dictionary with the model's own names, which is still to be validated."""

    def fields() -> dict[str, GraphQLInputField]:
        return {
            camel(name): GraphQLInputField(_taken(field), description=field.description, out_name=name)
            for name, field in model.model_fields.items()
        }

    return GraphQLInputObjectType(f"{model.__name__}Input", fields, description=_said(model))


def _taken(field: FieldInfo) -> Any:
    found = _type(field.annotation, argument)
    return GraphQLNonNull(found) if field.is_required() else found


def _reading(name: str) -> Callable[..., Any]:
    def read(found: dict[str, Any], info: GraphQLResolveInfo[Any]) -> Any:
        return found.get(name)

    return read


def _reading_in_turn(name: str) -> Callable[..., Any]:
    """Of a list, which may be long: others are served before what is in it is looked at (`Asking.turn`)."""

    async def read(found: dict[str, Any], info: GraphQLResolveInfo[Any]) -> Any:
        if found.get(name):
            async with info.context.turn:
                await asyncio.sleep(0)
        return found.get(name)

    return read


def _said(model: type[BaseModel]) -> str | None:
    return inspect.cleandoc(said) if (said := vars(model).get("__doc__")) else None


def _type(annotation: Any, of_model: Any) -> Any:
    """Never one that forbids null: an answer that lacks something says the rest all the same."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0], of_model)
    if origin in (Union, types.UnionType):
        others = [part for part in parts if part is not type(None)]
        return _type(others[0], of_model) if len(others) == 1 else JSON
    if origin is Literal:
        return GraphQLString
    if origin is list:
        inside = _type(parts[0], of_model)
        return JSON if inside is JSON else GraphQLList(GraphQLNonNull(inside))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return of_model(annotation)
    return _SCALARS.get(annotation, JSON)
