"""Configuration of claude-prompt-context, in the dialect of Kong's plugin schemas."""

from __future__ import annotations

from typing import Any

from kong_claude.schema import ENFORCING_FIELDS, Field

DEFAULT_REWRITE_MAX_BYTES = 64 << 10
DEFAULT_MAX_BODY_BYTES = 8 << 20


def _text(what: str) -> dict[str, Any]:
    return {"type": "string", "required": False, "description": what}


def _patterns(what: str) -> dict[str, Any]:
    return {"type": "array", "required": False, "elements": {"type": "string"}, "description": what}


_PREPEND = "put in front of the caller's system text as it stands (end it with a space or a line break)."
_APPEND = "put after the caller's system text as it stands."

_CONTEXT_FIELD: dict[str, Any] = {
    "type": "record",
    "fields": [
        {
            "source": {
                "type": "string",
                "required": True,
                "match": "^%l+:.",
                "description": "Where the value comes from: header:Name, query:name, path:name (a named capture of the "
                "route), claim:name, consumer:username, request:id or const:text.",
            }
        },
        {
            "required": {
                "type": "boolean",
                "required": False,
                "default": False,
                "description": "Refuse a request without the value.",
            }
        },
        {"pattern": _text("RE2 expression that the whole value must match.")},
        {
            "max_length": {
                "type": "integer",
                "required": False,
                "default": 256,
                "between": [1, 4096],
                "description": "Most characters the value may have.",
            }
        },
        {"default": _text("The value where the request has none.")},
        {
            "render": {
                "type": "boolean",
                "required": False,
                "default": False,
                "description": "Show the value to the model, in a delimited block at the end of the system text.",
            }
        },
    ],
}

FIELDS: list[Field] = [
    {
        "shape": {
            "type": "string",
            "required": False,
            "default": "invoke",
            "one_of": ["invoke", "messages", "chat"],
            "description": "What bodies look like: the invoker's, Anthropic's Messages or OpenAI's chat completions.",
        }
    },
    {"prepend": _text(f"Template, {_PREPEND} {{{{name}}}} stands for a context value.")},
    {"append": _text(f"Template, {_APPEND}")},
    {
        "profiles": {
            "type": "map",
            "required": False,
            "keys": {"type": "string", "match": "^[%w_%-%.]+$"},
            "values": {
                "type": "record",
                "fields": [
                    {"prepend": _text(f"Template, {_PREPEND} Follows the plugin's own prepend.")},
                    {"append": _text(f"Template, {_APPEND} Precedes the plugin's own append.")},
                ],
            },
            "description": "Named texts of which a request gets one, such as code-review and test-writer.",
        }
    },
    {"profile": _text("The profile of requests that name no other.")},
    {"profile_header": _text("The request header in which callers may choose a profile.")},
    {
        "profile_claim": _text(
            "The claim that decides the profile; where a token has it, profile_header counts for nothing."
        )
    },
    {
        "context": {
            "type": "map",
            "required": False,
            "keys": {"type": "string", "match": "^[%a_][%w_%-]*$"},
            "values": _CONTEXT_FIELD,
            "description": "Values put into the body's context object, by name. Callers cannot set these names.",
        }
    },
    {
        "locked": {
            "type": "array",
            "required": False,
            "elements": {"type": "string"},
            "description": "Top-level members of the body that callers may not set, such as system, model or tools.",
        }
    },
    {
        "on_locked": {
            "type": "string",
            "required": False,
            "default": "reject",
            "one_of": ["reject", "replace"],
            "description": "A locked member in the body: refuse the request, or take it out so that only the gateway's "
            "or the upstream's own value counts.",
        }
    },
    {
        "max_prompt_bytes": {
            "type": "integer",
            "required": False,
            "gt": 0,
            "description": "Most bytes (UTF-8) of the caller's text, all parts together.",
        }
    },
    {"deny_patterns": _patterns("RE2 expressions; a prompt in which one is found is refused.")},
    {"allow_patterns": _patterns("RE2 expressions; every text of the prompt must match one as a whole.")},
    {
        "apply": {
            "type": "string",
            "required": False,
            "default": "auto",
            "one_of": ["body", "attested", "auto"],
            "description": "How additions reach the upstream: in the body, in the attestation (the invoker applies "
            "them), or in the body up to rewrite_max_bytes and in the attestation above.",
        }
    },
    {
        "rewrite_max_bytes": {
            "type": "integer",
            "required": False,
            "default": DEFAULT_REWRITE_MAX_BYTES,
            "between": [0, 262144],
            "description": "Largest body that is sent back through Kong, which takes time that grows with its square.",
        }
    },
    {
        "max_body_bytes": {
            "type": "integer",
            "required": False,
            "default": DEFAULT_MAX_BODY_BYTES,
            "between": [1, 67108864],
            "description": "Largest body that is accepted.",
        }
    },
    {
        "explain": {
            "type": "boolean",
            "required": False,
            "default": False,
            "description": "Answer requests with X-Claude-Explain: 1 by what would be sent, without sending it.",
        }
    },
    {
        "explain_permission": {
            "type": "string",
            "required": False,
            "default": "claude:explain",
            "description": "The permission that a caller needs for explanations.",
        }
    },
]

SCHEMA: list[Field] = [*FIELDS, *ENFORCING_FIELDS]
