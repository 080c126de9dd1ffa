"""A GraphQL request, as far as the gateway has to know it: whether it may start something. No I/O, and no parser.

The gateway admits by it and the invoker acts by it: both ask here, over the same bytes.
"""

from __future__ import annotations

import re

import msgspec

LIMITS_HEADER = "X-Claude-Limits"
"""By which the gateway tells the invoker what is left of the caller's limits, for the caller's own eyes: nothing is
decided by it. What a client sends under this name does not go on."""


class _Asked(msgspec.Struct):
    query: str


_ASKED = msgspec.json.Decoder(_Asked)
_WORD = r"(?<![A-Za-z0-9_]){}(?![A-Za-z0-9_])"
_MUTATION, _LIMITS = re.compile(_WORD.format("mutation")), re.compile(_WORD.format("limits"))


def query_of(body: bytes) -> str | None:
    """The text of the request's document; of several members `query` the last. None where there is none."""
    try:
        return _ASKED.decode(body).query
    except (ValueError, RecursionError):
        return None


def may_start(body: bytes) -> bool:
    """Whether it may be a mutation: these begin with that word, which GraphQL has no other way to write. It may stand
    in a text or a comment of a query too, which then counts as one. So does what cannot be read."""
    query = query_of(body)
    return query is None or _MUTATION.search(query) is not None


def asks_for_limits(body: bytes) -> bool:
    """Whether it may name the field `limits`."""
    return _LIMITS.search(query_of(body) or "") is not None
