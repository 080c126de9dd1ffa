"""Which models a run may use: pure."""

from __future__ import annotations

from collections.abc import Sequence


def permits(allowed: Sequence[str] | None, model: str) -> bool:
    """Whether a model is among the allowed ones (None: all).

    An alias (`sonnet`) allows its family (`claude-sonnet-5-5`), a name also its dated form
    (`claude-sonnet-5-5-20260101`).
    """
    return allowed is None or any(
        model == name
        or (name.isalpha() and name in model.split("-"))
        or (model.startswith(f"{name}-") and model[len(name) + 1 :].isdigit() and len(model) == len(name) + 9)
        for name in allowed
    )
