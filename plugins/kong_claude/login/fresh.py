"""A token that is good for a while, fetched anew where the kept one is not."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from kong_claude.login import kept, tokens
from kong_claude.login.issuer import Refused, discover, send
from kong_claude.login.kept import Login
from kong_claude.problem import Problem

SOON_S = 300
"""Claude Code keeps what its helper printed for as long (`CLAUDE_CODE_API_KEY_HELPER_TTL_MS`)."""


def token(name: str) -> str:
    """The login's token. Raises Problem."""
    login = kept.read(name)
    if not due(login, time.time()):
        return login.token
    with kept.locked():
        login = kept.read(name)  # another one may have been here first
        if due(login, time.time()):
            login = _refreshed(name, login)
    return login.token


def due(login: Login, now: float) -> bool:
    """Whether the token expires soon: within five minutes, or in the second half of a shorter life."""
    return left_s(login, now) < min(SOON_S, login.life_s / 2)


def left_s(login: Login, now: float) -> float:
    """0 as well where the clock was put back since: nobody knows then."""
    return max(login.since + login.life_s - now, 0) if login.since <= now else 0


def _refreshed(name: str, login: Login) -> Login:
    again = kept.command(name, login)
    try:
        if login.refresh_token is None:
            raise Problem(f"the token has expired, and the issuer gave none to refresh it with: {again}")
        endpoint = discover(login.issuer).token
        form = {**login.client, "grant_type": "refresh_token", "refresh_token": login.refresh_token}
        with kept.replacing(name) as put, _undisturbed():
            asked = time.time()
            found = tokens.read(send(endpoint, form), id_token=login.id_token)
            # Where the answer has no other refresh token the old one stays good (RFC 6749 section 6).
            refresh = found.refresh or login.refresh_token
            login = replace(login, token=found.token, since=asked, life_s=found.life_s, refresh_token=refresh)
            put(login)
        return login
    except Problem as problem:
        if left_s(login, time.time()) > 0:
            return login  # with what is left of it; whoever asks then is told
        if isinstance(problem, Refused):
            raise Problem(f"the issuer does not go on with this login ({problem}): {again}") from None
        raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A signal waits until the issuer's answer is kept: Ctrl-C in Claude Code reaches its helper too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
