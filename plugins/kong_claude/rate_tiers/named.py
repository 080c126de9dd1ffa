"""What a body names, as far as limits depend on it: its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from claude_contract.kinds import RUN, kind_of
from claude_contract.structure import too_many_parts
from kong_claude.decision import Refuse
from kong_claude.rate_tiers.tiers import Tier
from kong_claude.request import Request

MAX_MODEL_BODY = 1 << 20  # bytes read to see which model a body names
MAX_GRAPHQL = 8 << 20  # the same of a GraphQL request, whose variables may be a prompt's images
MAX_MESSAGE = 32 << 20  # the same where runs and messages are told apart by it: the API takes no more


def of_its_kind(request: Request, tier: Tier) -> Tier | Refuse:
    """The limits by which a request is counted that is a run, or a message of a model itself. The body that was looked
    at is in the attestation, and so is its kind."""
    body = request.body(MAX_MESSAGE)
    if body is None:
        return Refuse(413, f"the body is larger than {MAX_MESSAGE} bytes", "body_too_large")
    if kind_of(body) == "run":
        return tier
    if tier.messages is None:
        return Refuse(
            403,
            f"your tier has no requests to models themselves: ask for {RUN}, or {RUN}-MODEL, which start a run",
            "messages_not_allowed",
            detail={"tier": tier.name},
        )
    return tier.messages


def model_refusal(request: Request, tier: str, allowed: Sequence[str]) -> Refuse | None:
    """A body that names a model outside the tier."""
    body = request.body(MAX_MODEL_BODY)
    if body is None:
        return Refuse(413, "the body is too large to see which model it names", "body_too_large")
    models = _models(body) if body else []
    if models is None:
        return Refuse(400, "the body must be a JSON object", "bad_body")
    if all(model is None or model in allowed for model in models):
        return None
    return Refuse(
        403,
        "this model is not in your tier",
        "model_not_allowed",
        detail={"tier": tier, "allowed_models": list(allowed)},
    )


def _models(body: bytes) -> list[Any] | None:
    """The models that a JSON body names: several where the key is repeated, since parsers differ in which one counts.

    None for what is not a JSON object, nested too deeply or with too many values to be read.
    """
    if too_many_parts(body):
        return None
    try:
        pairs = json.loads(body.decode(), object_pairs_hook=_Pairs)  # of UTF-16 the bytes say nothing of its values
    except (ValueError, RecursionError):
        return None
    return [value for name, value in pairs if name == "model"] if isinstance(pairs, _Pairs) else None


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repetitions."""
