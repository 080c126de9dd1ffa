"""What a request to the Messages API may have beside tokens of its model, where a tier allows it: each has a price of
its own, or runs something at Anthropic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

Feature = Literal["context_1m", "fast_mode", "inference_geo", "web_fetch", "web_search"]
"""A context of a million tokens for models that have a smaller one; `speed: fast`; `inference_geo: us`; pages fetched,
and searches made, by the API."""
FEATURES: tuple[Feature, ...] = get_args(Feature)


def parse(names: Iterable[str]) -> tuple[Feature, ...]:
    """Each once, in the order of `FEATURES`. Raises ValueError for a name that is not known."""
    asked = set(names)
    if unknown := sorted(asked.difference(FEATURES)):
        raise ValueError(f"{unknown[0]} is not known: there are {', '.join(FEATURES)}")
    return tuple(name for name in FEATURES if name in asked)
