"""What a request to the Messages API may have beside tokens of its model, where a tier allows it: each has a price of
its own, or runs something at Anthropic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

Feature = Literal["context_1m", "fast_mode", "inference_geo", "web_fetch", "web_search"]
"""A context of a million tokens for models that have a smaller one; `speed: fast`; `inference_geo: us`; pages fetched,
and searches made, by the API."""
FEATURES: tuple[Feature, ...] = get_args(Feature)
LARGE = "[1m]"
"""How the CLI names a model with a window of a million tokens."""
_FAST = re.compile(r"-fast(?:-\d{8}|-latest)?$", re.IGNORECASE)


def parse(names: Iterable[str]) -> tuple[Feature, ...]:
    """Each once, in the order of `FEATURES`. Raises ValueError for a name that is not known."""
    asked = set(names)
    if unknown := sorted(asked.difference(FEATURES)):
        raise ValueError(f"{unknown[0]} is not known: there are {', '.join(FEATURES)}")
    return tuple(name for name in FEATURES if name in asked)


def of_model(name: str) -> tuple[Feature, ...]:
    """What a model's name alone asks for: `sonnet[1m]` a large context; and `-fast` is how prices are named, and other
    sellers of the same models name them in fast mode."""
    plain = name.removesuffix(LARGE)
    asked = {"context_1m": plain != name, "fast_mode": _FAST.search(plain) is not None}
    return tuple(feature for feature in FEATURES if asked.get(feature))
