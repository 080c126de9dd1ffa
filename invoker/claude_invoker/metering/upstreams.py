"""Several addresses of the API: which of them a request is sent to, and which comes next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

AWAY = frozenset((502, 503, 504, 529))
"""What is answered for an API that cannot serve anybody now: it has run nothing, and bills nothing."""
_REST_S = 30.0


class Upstreams:
    """`urls`: in the order in which they are asked. One that has failed is asked last for a while, so that not each
    request waits for it."""

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._failed: dict[str, float] = {url.rstrip("/"): -_REST_S for url in urls}
        self._clock = clock

    def in_turn(self) -> Iterator[tuple[str, bool]]:
        """For one request: an address, and whether it is the last. The next is for where that one has failed."""
        since = self._clock() - _REST_S
        urls = sorted(self._failed, key=lambda url: self._failed[url] > since)
        return ((url, url == urls[-1]) for url in urls)

    def failed(self, url: str) -> None:
        self._failed[url] = self._clock()

    def answered(self, url: str) -> None:
        self._failed[url] = self._clock() - _REST_S
