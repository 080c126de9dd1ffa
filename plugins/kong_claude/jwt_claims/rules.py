"""What claims must say for a request to pass: pure decisions over the claims of a verified token."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.schema import RuleConfig

# Claims that hold a list as one string (RFC 8693, 4.2).
_SPACE_SEPARATED = ("scope", "scp")
_MISSING = object()
_GLOB = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
# RFC 6749, appendix A.4: what may stand in a scope attribute.
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f-\U0010ffff]{1,64}@([A-Za-z0-9.-]{1,255})")


def lookup(claims: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None. Names with dots (`https://example.com/roles`) are tried first."""
    found = _lookup(claims, path)
    return None if found is _MISSING else found


def has(claims: Mapping[str, Any], path: str) -> bool:
    """True where the path leads to a value that is not null."""
    return lookup(claims, path) is not None


def _lookup(claims: Any, path: str) -> Any:
    if not isinstance(claims, Mapping):
        return _MISSING
    if path in claims:
        return claims[path]
    dot = path.rfind(".")
    while dot > 0:
        head = path[:dot]
        if head in claims:
            found = _lookup(claims[head], path[dot + 1 :])
            if found is not _MISSING:
                return found
        dot = path.rfind(".", 0, dot)
    return _MISSING


def values(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """The claim as a list of strings. Only `scope` and `scp` are split at spaces; numbers and booleans as in JSON."""
    value = lookup(claims, path)
    if isinstance(value, str):
        return tuple(value.split(" ")) if path.rpartition(".")[2] in _SPACE_SEPARATED else (value,)
    found = value if isinstance(value, list) else [value]
    return tuple(
        one if isinstance(one, str) else json.dumps(one) for one in found if isinstance(one, str | int | float | bool)
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One claim and what it must hold; all parts that are set must be true."""

    claim: str
    any_of: frozenset[str]
    all_of: frozenset[str]
    none_of: frozenset[str]
    equals: str | None

    def problem(self, claims: Mapping[str, Any]) -> str | None:
        """What the caller lacks, or None."""
        held = frozenset(values(claims, self.claim))
        if self.any_of and self.any_of.isdisjoint(held):
            return f"{self.claim} must hold one of: {', '.join(sorted(self.any_of))}"
        if not self.all_of <= held:
            return f"{self.claim} must hold: {', '.join(sorted(self.all_of - held))}"
        if not self.none_of.isdisjoint(held):
            return f"{self.claim} must not hold: {', '.join(sorted(self.none_of & held))}"
        if self.equals is not None and values(claims, self.claim) != (self.equals,):
            return f"{self.claim} must be: {self.equals}"
        return None

    @property
    def scope(self) -> str:
        """What would satisfy the rule, as the scope attribute of a challenge (RFC 6750, 3)."""
        return " ".join(v for v in sorted(self.any_of | self.all_of) if _SCOPE_TOKEN.fullmatch(v))


def rules_from_config(config: Sequence[RuleConfig]) -> tuple[Rule, ...]:
    """Raises ConfigError for a rule that could only ever say one thing."""
    rules = []
    for number, entry in enumerate(config, 1):
        name = f"rules[{number}]"
        if not entry.claim:
            raise ConfigError(f"{name}.claim", "is required")
        rule = Rule(
            entry.claim,
            any_of=frozenset(entry.any_of),
            all_of=frozenset(entry.all_of),
            none_of=frozenset(entry.none_of),
            equals=entry.equals,
        )
        if not (rule.any_of or rule.all_of or rule.none_of or rule.equals is not None):
            raise ConfigError(name, "needs any_of, all_of, none_of or equals")
        if (rule.any_of and rule.any_of <= rule.none_of) or not rule.all_of.isdisjoint(rule.none_of):
            raise ConfigError(name, "demands and forbids the same value")
        rules.append(rule)
    return tuple(rules)


def email_problem(claims: Mapping[str, Any], domains: frozenset[str]) -> str | None:
    """What is wrong with the caller's email address, or None. `domains` in lower case; subdomains do not match."""
    email = claims.get("email")
    match = _EMAIL.fullmatch(email) if isinstance(email, str) else None
    if match is None:
        return "the token has no usable email claim"
    verified = claims.get("email_verified")
    if verified is not True and verified != "true":  # a text from Apple, and whoever hands its tokens on
        return "the email address is not verified"
    if match[1].lower() not in domains:
        return "the email address is not in an accepted domain"
    return None


def repository_allowed(repository: str, globs: Sequence[str]) -> bool:
    """True where one of the globs matches. `*` and `?` stay within a path segment, `**` does not."""
    if not repository.isprintable() or not repository.isascii() or not repository:
        return False
    if any(part in (".", "..") for part in repository.replace("\\", "/").split("/")) or "%" in repository:
        return False
    return any(_glob(pattern).fullmatch(repository) for pattern in globs)


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> re2._Regexp[str]:
    # The pattern comes from a claim: RE2 takes linear time, whatever it says.
    return re2.compile("".join(_GLOB.get(part) or re2.escape(part) for part in re.split(r"(\*\*|\*|\?)", pattern)))
