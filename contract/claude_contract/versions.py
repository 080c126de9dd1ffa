"""Versions of what is stored, so that two releases can share it while one follows the other (docs/upgrade.md)."""

from __future__ import annotations


class UnknownVersion(ValueError):
    """A stored value of a version that this release does not read. The text says whose it is and what to do."""


def check(what: str, found: int | str | None, current: int) -> None:
    """Raises UnknownVersion unless `found` is `current` or the one before. None is 0: release 0.1.0 wrote none."""
    version = str(found or 0)
    if version in (str(current), str(current - 1)):
        return
    if version.isdecimal() and int(version) < current:
        remedy = "an older release wrote it, upgrade by way of the release between"
    else:
        remedy = "a newer release wrote it, upgrade this one"
    raise UnknownVersion(f"{what} is of version {version}, read are {current - 1} and {current}: {remedy}")
