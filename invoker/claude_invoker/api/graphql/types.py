"""GraphQL's types for the API's documents, made of the models themselves: what is a field there is one here, by a name
as GraphQL writes them (`maxTurns`). What has no type of GraphQL's own is `JSON`."""

from __future__ import annotations

import inspect
import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from graphql import (
    GraphQLBoolean,
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
)
from pydantic import BaseModel
from pydantic.fields import FieldInfo

JSON = GraphQLScalarType("JSON", description="Any value of JSON, as the HTTP API has it.")
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
        return {
            camel(name): GraphQLField(
                GraphQLID if name == "id" else _type(field.annotation, output),
                description=field.description,
                resolve=_reading(name),
            )
            for name, field in model.model_fields.items()
        }

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


def _reading(name: str) -> Any:
    def read(found: dict[str, Any], info: GraphQLResolveInfo[Any]) -> Any:
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
