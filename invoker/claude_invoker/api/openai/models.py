"""The list of models as OpenAI's clients read it: pure.

https://platform.openai.com/docs/api-reference/models
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def model(name: str) -> dict[str, Any]:
    """When it was made is not known: 0."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "claude-code"}


def listed(names: Sequence[str]) -> dict[str, Any]:
    return {"object": "list", "data": [model(name) for name in names]}
