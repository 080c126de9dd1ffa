"""What GitHub's OpenAPI description says of the three requests that the invoker makes of it, in our own words.

After github/rest-api-description as `@octokit/openapi-types` 29.0.1 (OpenAPI 23.0.1) has it: which members there must
be, and of what kind. Of a pull request and a repository, which have some sixty each, those by which one is told from
another.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
URL: Schema = {"type": "string", "pattern": "^https?://"}
WHOLE: Schema = {"type": "integer"}
TIME: Schema = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
SOMEBODY: Schema = {"type": ["object", "null"]}
SELECTION: Schema = {"enum": ["all", "selected"]}
PERMISSIONS: Schema = {
    "type": "object",
    "properties": {key: {"enum": ["read", "write"]} for key in ("contents", "metadata", "pull_requests")},
    "additionalProperties": {"type": "string"},
}


def thing(required: Schema, optional: Schema | None = None, *, no_more: bool = False) -> Schema:
    properties = required | (optional or {})
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": not no_more,
    }


INSTALLATION = thing(
    {
        "id": WHOLE,
        "account": SOMEBODY,
        "repository_selection": SELECTION,
        "access_tokens_url": URL,
        "repositories_url": URL,
        "html_url": URL,
        "app_id": WHOLE,
        "target_id": WHOLE,
        "target_type": TEXT,
        "permissions": PERMISSIONS,
        "events": {"type": "array", "items": TEXT},
        "created_at": TIME,
        "updated_at": TIME,
        "single_file_name": {"type": ["string", "null"]},
        "app_slug": TEXT,
        "suspended_by": SOMEBODY,
        "suspended_at": {"type": ["string", "null"]},
    }
)
REPOSITORY = thing({"id": WHOLE, "node_id": TEXT, "name": TEXT, "full_name": TEXT, "private": {"type": "boolean"}})
TOKEN = thing(
    {"token": TEXT, "expires_at": TIME},
    {
        "permissions": PERMISSIONS,
        "repository_selection": SELECTION,
        "repositories": {"type": "array", "items": REPOSITORY},
    },
)
SIDE = thing({"label": TEXT, "ref": TEXT, "sha": TEXT, "user": SOMEBODY, "repo": SOMEBODY})
PULL_REQUEST = thing(
    {
        "id": WHOLE,
        "node_id": TEXT,
        "url": URL,
        "html_url": URL,
        "number": WHOLE,
        "state": {"enum": ["open", "closed"]},
        "title": TEXT,
        "body": {"type": ["string", "null"]},
        "user": SOMEBODY,
        "head": SIDE,
        "base": SIDE,
        "merged": {"type": "boolean"},
        "created_at": TIME,
    },
    {"draft": {"type": "boolean"}},
)
ERROR = thing({}, {"message": TEXT, "documentation_url": TEXT, "url": TEXT, "status": TEXT})
INVALID = thing(
    {"message": TEXT, "documentation_url": TEXT},
    {"errors": {"type": "array", "items": thing({"code": TEXT}, {"resource": TEXT, "field": TEXT, "message": TEXT})}},
)


@dataclass(frozen=True)
class Operation:
    """`asked`: its body; None: it has none. `answers`: by status; any other is an error."""

    method: str
    path: str
    asked: Schema | None
    answers: dict[int, Schema]


OPERATIONS = (
    Operation("GET", r"/repos/[^/]+/[^/]+/installation", None, {200: INSTALLATION}),
    Operation(
        "POST",
        r"/app/installations/\d+/access_tokens",
        thing(
            {},
            {
                "repositories": {"type": "array", "items": {**TEXT, "pattern": "^[^/]+$"}},
                "repository_ids": {"type": "array", "items": WHOLE},
                "permissions": PERMISSIONS,
            },
            no_more=True,
        ),
        {201: TOKEN, 422: INVALID},
    ),
    Operation(
        "POST",
        r"/repos/[^/]+/[^/]+/pulls",
        thing(
            {"head": TEXT, "base": TEXT},
            {
                "title": TEXT,
                "body": TEXT,
                "head_repo": TEXT,
                "maintainer_can_modify": {"type": "boolean"},
                "draft": {"type": "boolean"},
                "issue": WHOLE,
            },
            no_more=True,
        )
        | {"anyOf": [{"required": ["title"]}, {"required": ["issue"]}]},
        {201: PULL_REQUEST, 422: INVALID},
    ),
)


def problems(method: str, path: str, asked: bytes, status: int, answered: Any) -> list[str]:
    """What of a request and its answer is not as described."""
    found = next((each for each in OPERATIONS if each.method == method and re.fullmatch(each.path, path)), None)
    if found is None:
        return [f"{method} {path} is none of the operations"]
    said = []
    if found.asked is not None:
        said += [
            f"{path}: asked: {error.message}"
            for error in Draft202012Validator(found.asked).iter_errors(json.loads(asked))
        ]
    elif asked:
        said.append(f"{path}: it has no body")
    schema = found.answers.get(status, ERROR)
    return said + [f"{path}: {status}: {error.message}" for error in Draft202012Validator(schema).iter_errors(answered)]
