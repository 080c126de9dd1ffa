"""The request bodies in the OpenAPI document. Routes read their bodies themselves (the gateway's additions come
before validation), so FastAPI does not know them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

_REFERENCE = "#/components/schemas/{model}"
_models: dict[str, type[BaseModel]] = {}


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` for a route whose body is a `model`."""
    _models[model.__name__] = model
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def install(app: FastAPI) -> None:
    """Adds the models' schemas to what `app.openapi()` answers."""
    document = app.openapi

    def with_models() -> dict[str, Any]:
        if app.openapi_schema is None:
            schemas = document().setdefault("components", {}).setdefault("schemas", {})
            for name, model in _models.items():
                schema = model.model_json_schema(ref_template=_REFERENCE)
                schemas |= schema.pop("$defs", {}) | {name: schema}
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = with_models  # type: ignore[method-assign]
