"""Decisions about calls of tools that hold in the later turns of a session, as lines of text. Pure."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ValidationError

from claude_contract.rules import Rules
from claude_invoker.model import PermissionDecision
from claude_invoker.problem import Problem

MAX_CALL = 16 << 10
"""Characters of a call that is remembered."""
MAX_DECISIONS = 20
"""Of one turn."""


class _Kept(BaseModel):
    rules: str
    key: str
    decision: PermissionDecision


def refuse(key: str, others: Mapping[str, PermissionDecision], *, has_session: bool) -> None:
    """Raises Problem 422 where the call of that key is not remembered in later turns."""
    if not has_session:
        raise Problem(422, "invalid", "remember: the run goes on with no session")
    if len(key) > MAX_CALL or len(others) >= MAX_DECISIONS:
        raise Problem(422, "invalid", "remember: it is too much to be remembered in later turns")


def written(decisions: Mapping[str, PermissionDecision], rules: Sequence[Rules]) -> list[str]:
    kept = (_Kept(rules=_fingerprint(rules), key=key, decision=each) for key, each in decisions.items())
    return [each.model_dump_json(exclude_none=True) for each in kept]


def read(lines: Iterable[str], rules: Sequence[Rules]) -> dict[str, PermissionDecision]:
    """Those that were made under these very rules, by the keys of their calls; the last of several holds."""
    found = {}
    for line in lines:
        with contextlib.suppress(ValidationError):
            kept = _Kept.model_validate_json(line)
            if kept.rules == _fingerprint(rules):
                found[kept.key] = kept.decision
    return found


def _fingerprint(rules: Sequence[Rules]) -> str:
    return hashlib.sha256(repr(rules).encode()).hexdigest()[:32]
