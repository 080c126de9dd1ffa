"""A stream of server-sent events as text."""

from __future__ import annotations


def blocks(text: str) -> list[str]:
    """The lines of each whole event, without comments and `retry`."""
    kept = (line for line in text.split("\n") if not line.startswith((":", "retry: ")))
    return [block for block in "\n".join(kept).split("\n\n")[:-1] if block]
