"""Which models a run may use: pure."""

from __future__ import annotations

from collections.abc import Sequence

from claude_contract.features import LARGE


def permits(allowed: Sequence[str] | None, model: str) -> bool:
    """Whether a model is among the allowed ones (None: all).

    An alias (`sonnet`) allows its family (`claude-sonnet-5-5`), a name also its dated form
    (`claude-sonnet-5-5-20260101`). Each with the large context window (`sonnet[1m]`), which has prices of its own, only
    where the allowed name has it.
    """
    if allowed is None:
        return True
    plain = model.removesuffix(LARGE)
    names = [name.removesuffix(LARGE) for name in allowed if plain == model or name.endswith(LARGE)]
    return any(
        plain == name
        or (name.isalpha() and name in plain.split("-"))
        or (plain.startswith(f"{name}-") and plain[len(name) + 1 :].isdigit() and len(plain) == len(name) + 9)
        for name in names
    )
