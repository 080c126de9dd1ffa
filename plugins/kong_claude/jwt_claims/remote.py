"""An issuer's published keys: fetched ahead of their expiry, by one fetch at a time, kept for a while when it is away.

    age:  0 ........ 0.8 ttl ........ ttl ................ ttl + max_stale
          used       used, fetched    fetched first; used   refused (503)
                     in background    if that fails

A token with an unknown kid leads to at most one fetch per cool-down, so random kids do not turn into traffic. Nothing
is fetched while nobody asks. A set without a usable key is no set: it counts as a failed fetch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from claude_contract.errors import ConfigError
from kong_claude.jwt_claims.fetch import FetchError, fetch_json
from kong_claude.jwt_claims.jwks import keys_from_issuer, summary
from kong_claude.jwt_claims.keys import KeySet, Unavailable

EARLY = 0.8  # of the ttl: from here on a fetch runs in the background
QUIET = 60.0  # seconds until the same failure is said again


class RemoteKeys:
    """A KeySource. `load` returns the keys or raises FetchError; it runs in a thread of its own.

    Under the gevent plugin server threads are greenlets; waiting for one lets other requests run.

    `news` is what an operator must know, for the log of Kong, which only a request reaches: whoever takes a text from
    it writes it there.
    """

    def __init__(
        self,
        load: Callable[[], KeySet],
        *,
        name: str,
        ttl: float,
        max_stale: float,
        cooldown: float,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._name = name
        self._ttl = ttl
        self._max_stale = max_stale
        self._cooldown = cooldown
        self._timeout = timeout
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched = 0.0  # when `_keys` came
        self._failed: float | None = None  # when the last fetch failed; None after one that did not
        self._asked_for_kid: float | None = None
        self._flight: _Flight | None = None
        self.news: deque[str] = deque(maxlen=16)
        self._skipped: frozenset[str] = frozenset()  # the reasons that were said
        self._complained: tuple[str, float] | None = None  # the last failure that was said, and when

    def prefetch(self) -> None:
        """Starts the first fetch without waiting for it."""
        if self._keys is None:
            self._start(None, self._fetched)

    def current(self) -> KeySet:
        """The keys to use now. Raises Unavailable where there are none, or only ones too old."""
        keys, fetched = self._keys, self._fetched
        age = self._clock() - fetched
        if keys is None or age >= self._ttl * EARLY:
            flight = self._start(keys, fetched)
            # While the issuer is known to be away, requests do not wait for each new attempt.
            useless = keys is None or age >= self._ttl + self._max_stale
            if flight is not None and (useless or (age >= self._ttl and self._failed is None)):
                flight.done.wait(self._timeout)
            keys, age = self._keys, self._clock() - self._fetched
        if keys is None or age >= self._ttl + self._max_stale:
            raise Unavailable(self._name)
        return keys

    def refreshed(self, old: KeySet) -> KeySet:
        """Newer keys than `old` if the issuer has any and the cool-down allows to ask. Raises Unavailable."""
        if self._keys is old:
            with self._lock:
                now = self._clock()
                flight = self._flight
                rested = self._asked_for_kid is None or now - self._asked_for_kid >= self._cooldown
                if flight is None and rested:
                    self._asked_for_kid = now
                    flight = self._begin(now)
            if flight is not None:
                flight.done.wait(self._timeout)
        return self.current()

    def _start(self, keys: KeySet | None, fetched: float) -> _Flight | None:
        """The running fetch, or a new one; None during the cool-down after a failure, and where what was seen is
        not the newest by now."""
        with self._lock:
            now = self._clock()
            if self._flight is None and (self._keys is not keys or self._fetched != fetched):
                return None
            if self._flight is None and self._failed is not None and now - self._failed < self._cooldown:
                return None
            return self._begin(now)

    def _begin(self, now: float) -> _Flight:
        # A fetch that hangs beyond all its time-outs must not keep others from starting.
        if self._flight is None or now - self._flight.started > 4 * self._timeout:
            self._flight = _Flight(now)
            threading.Thread(target=self._run, args=(self._flight,), name="jwks", daemon=True).start()
        return self._flight

    def _run(self, flight: _Flight) -> None:
        keys, failure = None, ""
        try:
            keys = self._load()
        except Exception as error:
            failure = str(error) if isinstance(error, FetchError) else repr(error)
        with self._lock:
            if self._flight is flight:
                self._flight = None
            if keys is None:
                self._failed = self._clock()
                self._complain(failure, self._failed)
            else:
                self._fetched, self._failed, self._complained = self._clock(), None, None
                self._take(keys)
        flight.done.set()

    def _take(self, keys: KeySet) -> None:
        skipped = frozenset(keys.skipped)
        if skipped and skipped != self._skipped:
            self.news.append(
                f"keys of {self._name}: {len(keys.keys)} used, {len(keys.skipped)} skipped: {summary(keys.skipped)}"
            )
        self._skipped = skipped
        # The same keys stay the same object: tokens verified with them stay verified.
        if self._keys is None or not self._keys.same(keys):
            self._keys = keys

    def _complain(self, failure: str, now: float) -> None:
        if self._complained is not None and self._complained[0] == failure and now - self._complained[1] < QUIET:
            return
        self._complained = (failure, now)
        left = self._fetched + self._ttl + self._max_stale - now
        served = self._keys is not None and left > 0
        effect = f"those of before serve for {left:.0f} s more" if served else "its tokens are refused"
        self.news.append(f"keys of {self._name} cannot be had, {effect}: {failure}")


class _Flight:
    """One running fetch."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.done = threading.Event()


# Kong makes a new instance at every change of its configuration, and never closes some old ones: all that name the same
# place share its keys and cool-downs, and what nobody names any more goes away.
_shared: WeakValueDictionary[Hashable, RemoteKeys] = WeakValueDictionary()
_shared_lock = threading.Lock()


def remote_keys(
    url: str,
    algorithms: frozenset[str],
    *,
    issuer: str,
    discovery: bool,
    insecure: bool,
    field: str,
    ttl: float,
    max_stale: float,
    cooldown: float,
    timeout: float,
) -> RemoteKeys:
    """The shared RemoteKeys for a jwks_uri, or for an issuer's discovery document. Raises ConfigError."""
    if not allowed(url, insecure):
        raise ConfigError(field, "must be an https URL (http needs allow_insecure_jwks)")

    def load() -> KeySet:
        place = url
        if discovery:
            place = jwks_uri(fetch_json(url, timeout), issuer, insecure)
        try:
            return keys_from_issuer(fetch_json(place, timeout), algorithms)
        except ValueError as error:
            raise FetchError(f"{place}: {error}") from error

    identity = (url, algorithms, issuer, discovery, insecure, ttl, max_stale, cooldown, timeout)
    with _shared_lock:
        found = _shared.get(identity)
        if found is None:
            found = _shared[identity] = RemoteKeys(
                load, name=issuer, ttl=ttl, max_stale=max_stale, cooldown=cooldown, timeout=timeout
            )
    found.prefetch()
    return found


def discovery_url(issuer: str) -> str:
    """OpenID Connect Discovery 1.0, section 4: appended to the issuer, without a doubled slash."""
    return issuer.rstrip("/") + "/.well-known/openid-configuration"


def jwks_uri(document: Any, issuer: str, insecure: bool) -> str:
    """`jwks_uri` of a discovery document that speaks for exactly this issuer. Raises FetchError."""
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise FetchError(f"the discovery document is not that of {issuer}")
    found = document.get("jwks_uri")
    if not isinstance(found, str) or not allowed(found, insecure):
        raise FetchError(f"the discovery document of {issuer} names no usable jwks_uri")
    return found


def allowed(url: str, insecure: bool) -> bool:
    """True for an absolute https URL without user information; http only where configured."""
    try:
        parts = urlsplit(url)
        return parts.scheme in (("https", "http") if insecure else ("https",)) and bool(
            parts.hostname and parts.username is None and parts.port != 0
        )
    except ValueError:
        return False
