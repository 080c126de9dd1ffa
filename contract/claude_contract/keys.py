"""Keys that are made of several parts, some of which a caller chose."""

from __future__ import annotations


def joined(separator: str, *parts: str) -> str:
    """One key of its parts, from which they can be told again: no two tuples of one length give the same key.

    In every part but the last the separator, one ASCII character, and `%` are escaped (RFC 3986). Parts without them
    stay as they are, so that keys can be read.
    """
    *head, last = parts
    return separator.join([*(escaped(separator, part) for part in head), last])


def escaped(separator: str, part: str) -> str:
    """A part as it stands in `joined`; urllib's `unquote` is the inverse."""
    return part.replace("%", "%25").replace(separator, f"%{ord(separator):02X}")
