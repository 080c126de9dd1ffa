"""Schema fields that every enforcing plugin has."""

from __future__ import annotations

from typing import Any

Field = dict[str, dict[str, Any]]

MARK: Field = {
    "mark": {
        "type": "string",
        "required": False,
        "len_min": 1,
        "description": "The value this plugin leaves for the fail-closed guard when it has let a request pass. "
        "Default, and what the guard compares: the id of the route or service that the plugin is bound to. "
        "Only for guards of 0.1.0, which name it (kong-claude guard --mark).",
    }
}


def _key(prefix: str, what: str) -> list[Field]:
    return [
        {
            f"{prefix}secret": {
                "type": "string",
                "required": False,
                "referenceable": True,
                "encrypted": True,
                "description": f"{what}: shared secret for HS256, 32 bytes or more.",
            }
        },
        {
            f"{prefix}secret_file": {
                "type": "string",
                "required": False,
                "description": f"{what}: a file that holds the secret or an Ed25519 key in PEM.",
            }
        },
        {
            f"{prefix}private_key": {
                "type": "string",
                "required": False,
                "referenceable": True,
                "encrypted": True,
                "description": f"{what}: Ed25519 key in PEM (EdDSA), instead of a secret.",
            }
        },
    ]


ATTESTATION: Field = {
    "attestation": {
        "type": "record",
        # Without this Kong would fill in {} and make every request carry an attestation signed by nothing.
        "required": False,
        "description": "Signs what this plugin found into X-Claude-Attestation for the invoker. "
        "All plugins of a route share these settings.",
        "fields": [
            *_key("", "The signing key"),
            {
                "kid": {
                    "type": "string",
                    "required": False,
                    "default": "1",
                    "len_max": 32,
                    "description": "Key id of the signing key.",
                }
            },
            *_key("previous_", "The key before rotation, still accepted from other plugins"),
            {
                "previous_kid": {
                    "type": "string",
                    "required": False,
                    "len_max": 32,
                    "description": "Key id of the previous key.",
                }
            },
            {
                "issuer": {
                    "type": "string",
                    "required": False,
                    "default": "kong-claude",
                    "len_max": 64,
                    "description": "The iss claim: names this gateway.",
                }
            },
            {
                "audience": {
                    "type": "string",
                    "required": False,
                    "default": "claude-invoker",
                    "len_max": 64,
                    "description": "The aud claim: names the invoker.",
                }
            },
            {
                "ttl": {
                    "type": "integer",
                    "required": False,
                    "default": 30,
                    "between": [1, 60],
                    "description": "Seconds until the attestation expires.",
                }
            },
            {
                "request": {
                    "type": "string",
                    "required": False,
                    "match": "^[A-Z]+ /[^%s?]*$",
                    "description": "Method and path of the route's only request, such as POST /claude/invoke. "
                    "Saves asking Kong for them; the invoker refuses any other.",
                }
            },
        ],
    }
}

ENFORCING_FIELDS: list[Field] = [MARK, ATTESTATION]
