"""The parameters in the body of a request to the Admin API, as Kong's takes them (kong/api/api_helpers.lua)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from minikong import lyaml
from minikong.multipart import decode_multipart

FORM, MULTIPART, JSON = "application/x-www-form-urlencoded", "multipart/form-data", "application/json"
YAML = ("application/yaml", "text/yaml")


class NotTaken(Exception):
    """`status`: 400 for JSON that is none, 415 for a kind that Kong does not take."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def parameters(body: bytes, kind: str) -> tuple[Any, str]:
    """What a body of the content type `kind` names, and the body as text where nothing has used it up.

    A JSON body is its value, a form or multipart its fields as text, of a repeated one the last. Raises NotTaken.
    """
    if kind.startswith(JSON):
        try:
            return lyaml.load_json(_text(body)), _text(body)
        except ValueError:
            raise NotTaken(400, "Cannot parse JSON body") from None
    if kind.startswith(FORM):
        return dict(parse_qsl(_text(body), keep_blank_values=True, errors="surrogateescape")), _text(body)
    if kind.startswith(MULTIPART):
        fields = _parts(body, kind)
        return fields, "" if "boundary=" in kind else _text(body)
    if kind and not kind.startswith(YAML):
        raise NotTaken(415, "Unsupported Media Type")
    return {}, _text(body)


def _parts(body: bytes, kind: str) -> Mapping[str, str]:
    held = decode_multipart(body, kind.encode("latin-1"))
    last = {name: value[-1] if isinstance(value, list) else value for name, value in held.items()}
    return {_text(name): _text(value) for name, value in last.items() if isinstance(value, bytes)}


def _text(given: bytes) -> str:
    return given.decode(errors="surrogateescape")
