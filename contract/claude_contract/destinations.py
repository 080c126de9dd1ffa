"""Hosts on the internet that a tier opens to its runs: `pypi.org`, `*.npmjs.org`, `github.com:8443`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

HTTPS = 443
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# Two labels at least: a name of one is looked up in the machine's own domains, `*.com` would be most of the internet.
# No number at the end: that would be an address, in one of the ways that libc reads them.
_TEXT = re.compile(rf"(\*\.)?((?:{_LABEL}\.)+(?![0-9]|0x)(?:{_LABEL}))(?::([1-9][0-9]{{0,4}}))?")
_LONGEST = 253


@dataclass(frozen=True, slots=True, order=True)
class Destination:
    """A host and a TCP port. A host `*.example.com` stands for every name below example.com, not for itself."""

    host: str
    port: int = HTTPS

    def __str__(self) -> str:
        return self.host if self.port == HTTPS else f"{self.host}:{self.port}"

    def covers(self, other: Destination) -> bool:
        """Whether everything that `other` stands for is within this."""
        if self.port != other.port:
            return False
        below = self.host.startswith("*.") and other.host.endswith(self.host[1:])
        return below or other.host == self.host


def parse(text: str) -> Destination:
    """Raises ValueError, which says what an entry has to be."""
    found = _TEXT.fullmatch(text.lower())
    if found is None or len(found[2]) > _LONGEST or int(found[3] or HTTPS) > 65535:
        raise ValueError(
            "must be a host name of two labels at least, with or without a port, such as pypi.org, *.npmjs.org (every "
            "name below it) or github.com:8443; no address, and * in front only"
        )
    return Destination(f"{found[1] or ''}{found[2]}", int(found[3] or HTTPS))


def within_both(ours: Iterable[Destination], theirs: Iterable[Destination]) -> tuple[Destination, ...]:
    """What both stand for, sorted; the narrower of two entries stands."""
    ours, theirs = tuple(ours), tuple(theirs)
    return tuple(
        sorted(
            {one for one in ours if any(other.covers(one) for other in theirs)}
            | {one for one in theirs if any(other.covers(one) for other in ours)}
        )
    )
