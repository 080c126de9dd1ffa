"""The OpenAPI document, at the invoker and as the gateway's clients see it.

Routes read their bodies themselves (the gateway's additions come before validation), so FastAPI does not know them.
"""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

Document = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"
_models: dict[str, type[BaseModel]] = {}
_METHODS = ("get", "post", "put", "delete")

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same token, as SDKs send it"},
}
_REFUSAL = {
    "type": "object",
    "required": ["message"],
    "properties": {"message": {"type": "string"}, "request_id": {"type": "string"}},
}
_REFUSED = {
    "401": "No valid token",
    "403": "Not for this caller",
    "429": "A limit is used up",
    "503": "The gateway could not check the request",
}
"""What the gateway may answer to any request, and why."""


def reference(model: type[BaseModel]) -> Document:
    """The schema of a model that FastAPI does not find by itself."""
    _models[model.__name__] = model
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def request_body(model: type[BaseModel]) -> Document:
    """`openapi_extra` for a route whose body is a `model`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference(model)}}}}


def form_body(model: type[BaseModel]) -> Document:
    """The same for one whose body is a form: a `model` as its part `request`, an archive, files."""
    file = {"type": "string", "format": "binary"}
    schema = {
        "type": "object",
        "required": ["request"],
        "properties": {"request": reference(model), "archive": file, "files": {"type": "array", "items": file}},
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": schema, "encoding": {"request": {"contentType": "application/json"}}}}
    return {"requestBody": {"required": True, "content": content}}


def file_body() -> Document:
    """The same for one whose body is a file as it is."""
    content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}


def operation_id(route: APIRoute) -> str:
    """By which generators name a function: `runs_look`."""
    return f"{route.tags[0]}_{route.name}" if route.tags else route.name


def install(app: FastAPI, prefix: str) -> None:
    """Adds the models' schemas to what `app.openapi()` answers; and below the public `prefix` the document for who
    comes by the gateway."""
    document = app.openapi

    def with_models() -> Document:
        if app.openapi_schema is None:
            schemas = document().setdefault("components", {}).setdefault("schemas", {})
            for name, model in _models.items():
                schema = model.model_json_schema(ref_template=_REFERENCE)
                schemas |= schema.pop("$defs", {}) | {name: schema}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = with_models  # type: ignore[method-assign]
    if prefix:
        # Beside /openapi.json, and as open as that.
        app.add_api_route(
            f"{prefix}/openapi.json", lambda: at_gateway(app.openapi(), prefix), include_in_schema=False, name="openapi"
        )


def at_gateway(own: Document, prefix: str) -> Document:
    """The document of the invoker as it is behind the gateway: below `prefix`, with a token, and with the gateway's own
    refusals."""
    document = copy.deepcopy(own)
    document["info"]["title"] = "Claude Code at the gateway"
    document["servers"] = [{"url": prefix}]
    document["components"]["securitySchemes"] = _SCHEMES
    document["components"]["schemas"]["Refusal"] = _REFUSAL
    document["security"] = [{name: []} for name in _SCHEMES]
    document["paths"] = {
        path: operations for path, operations in document["paths"].items() if not _is_the_machines(operations)
    }
    for operations in document["paths"].values():
        for method in _METHODS:
            if method in operations:
                _with_refusals(operations[method]["responses"])
    return document


def _is_the_machines(operations: Document) -> bool:
    """Whether a path is for orchestrators, and no route of the gateway leads to it."""
    return any("health" in operations[method].get("tags", ()) for method in _METHODS if method in operations)


def _with_refusals(answers: Document) -> None:
    if "4XX" in answers:
        return  # a vendor's language, which `claude-errors` speaks at the gateway as well
    for status, why in _REFUSED.items():
        answer = answers.setdefault(status, {"description": why, "content": {}})
        answer["content"]["application/json"] = {"schema": {"$ref": _REFERENCE.format(model="Refusal")}}
