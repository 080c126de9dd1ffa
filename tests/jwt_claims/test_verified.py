"""Remembered tokens: bounded, never past exp, never past a change of keys."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kong_claude.jwt_claims import plugin as module
from kong_claude.jwt_claims.issuers import Issuer
from kong_claude.jwt_claims.keys import KeySet, Unavailable, key_from_secret
from kong_claude.jwt_claims.plugin import JwtClaims
from kong_claude.jwt_claims.token import InvalidToken, Token, parse
from kong_claude.jwt_claims.verified import Entry, VerifiedTokens
from tests.jwt_claims.support import ISSUER, OTHER_SECRET, SECRET, claims, config, sign, token
from tests.support.stages import stage_of

HS256 = frozenset({"HS256"})


class Keys:
    """A key source in the test's hand."""

    def __init__(self) -> None:
        self.keys: KeySet | None = KeySet((key_from_secret(SECRET, HS256, "secret"),))
        self.news: deque[str] = deque()
        self.newer: KeySet | None = None
        self.asked = 0

    def current(self) -> KeySet:
        if self.keys is None:
            raise Unavailable
        return self.keys

    def refreshed(self, old: KeySet) -> KeySet:
        self.asked += 1
        self.keys = self.newer or self.keys
        return self.current()


@pytest.fixture
def stage() -> JwtClaims:
    return stage_of(JwtClaims, config())


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were parsed, that is, not remembered."""
    parsed: list[str] = []

    def noted(compact: str) -> Token:
        parsed.append(compact)
        return parse(compact)

    monkeypatch.setattr(module, "parse", noted)
    return parsed


def test_the_second_time_is_remembered(stage: JwtClaims, parses: list[str]) -> None:
    compact = token()
    assert stage.verify(compact) is stage.verify(compact)
    assert parses == [compact]


def test_each_token_is_its_own_and_one_that_is_no_text_too() -> None:
    digests = {VerifiedTokens.digest(compact) for compact in ("a", "b", "\udcff", "\udcfe", token(), token(sub="bob"))}
    assert len(digests) == 6


def test_of_two_callers_each_is_remembered_as_itself(stage: JwtClaims) -> None:
    alice, bob = token(sub="alice"), token(sub="bob")
    for _ in range(2):
        assert [stage.verify(compact).identity.subject for compact in (alice, bob)] == ["alice", "bob"]


def test_a_refused_token_is_not_remembered(stage: JwtClaims, parses: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(InvalidToken):
            stage.verify(token(aud="other"))
    assert len(parses) == 2


def test_never_past_exp() -> None:
    now = [1_000_000.0]
    stage = stage_of(JwtClaims, config(leeway=0), now=lambda: now[0])
    compact = token(iat=None, exp=1_000_010)
    stage.verify(compact)
    now[0] = 1_000_009.9
    stage.verify(compact)
    now[0] = 1_000_010.0
    with pytest.raises(InvalidToken):
        stage.verify(compact)


def test_never_past_a_change_of_keys(stage: JwtClaims, parses: list[str]) -> None:
    keys, compact = Keys(), token()
    stage._issuers = {ISSUER: Issuer(ISSUER, HS256, keys)}
    stage.verify(compact)
    keys.keys = KeySet((*keys.current().keys, key_from_secret(OTHER_SECRET, HS256, "secret")))
    stage.verify(compact)  # a key was added: verified anew
    assert len(parses) == 2
    keys.keys = KeySet((key_from_secret(OTHER_SECRET, HS256, "secret"),))
    with pytest.raises(InvalidToken):
        stage.verify(compact)
    keys.keys = None
    with pytest.raises(Unavailable):
        stage.verify(compact)


@pytest.mark.parametrize(
    ("kid", "known", "asked"),
    [(None, None, True), ("new", "old", True), ("new", None, True), ("old", "old", False)],
)
def test_newer_keys_are_asked_for_where_they_could_help(
    stage: JwtClaims, kid: str | None, known: str | None, asked: bool
) -> None:
    """A token of a key that is not known yet. Who is known by its kid and has not signed is not."""
    keys = Keys()
    keys.keys = KeySet((replace(key_from_secret(SECRET, HS256, "secret"), kid=known),))
    keys.newer = KeySet((replace(key_from_secret(OTHER_SECRET, HS256, "secret"), kid=kid),))
    stage._issuers = {ISSUER: Issuer(ISSUER, HS256, keys)}
    compact = sign({"alg": "HS256", **({"kid": kid} if kid else {})}, claims(), key=OTHER_SECRET)
    if asked:
        assert stage.verify(compact).identity.subject == "alice"
    else:
        with pytest.raises(InvalidToken):
            stage.verify(compact)
    assert keys.asked == asked


def test_size_zero_remembers_nothing(parses: list[str]) -> None:
    stage, compact = stage_of(JwtClaims, config(cache_size=0)), token()
    stage.verify(compact)
    stage.verify(compact)
    assert len(parses) == 2


def test_the_one_that_was_not_used_for_longest_goes_and_what_has_expired() -> None:
    tokens = VerifiedTokens(2)
    now = time.time()
    entry = Entry(None, None, now + 60)  # type: ignore[arg-type]
    tokens.put(b"a", entry)
    tokens.put(b"b", entry)
    assert tokens.get(b"a", now)
    tokens.put(b"c", entry)
    assert [bool(tokens.get(digest, now)) for digest in (b"a", b"b", b"c")] == [True, False, True]
    assert tokens.get(b"a", now + 60) is None
    assert len(tokens) == 1


@given(st.integers(0, 8), st.lists(st.tuples(st.sampled_from("pg"), st.integers(0, 20)), max_size=60))
def test_bounded_and_least_recently_used(size: int, steps: list[tuple[str, int]]) -> None:
    tokens = VerifiedTokens(size)
    model: dict[bytes, Any] = {}
    now = time.time()
    for step, number in steps:
        digest = VerifiedTokens.digest(str(number))
        if step == "p":
            entry = Entry(None, None, now + 60)  # type: ignore[arg-type]
            tokens.put(digest, entry)
            if size:
                kept = digest in model
                model[digest] = entry
                if not kept and len(model) > size:
                    model.pop(next(iter(model)))
        else:
            found = tokens.get(digest, now)
            assert found is model.get(digest)
            if found:
                model[digest] = model.pop(digest)
    assert len(tokens) == len(model) <= size
