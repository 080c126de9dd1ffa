"""Where a store is: `INVOKER_STORE`, read once. Pure, and never with a secret in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]*")
_OPTIONS = ("endpoint", "region")
_FORM = "file:///directory or s3://bucket/prefix?region=…&endpoint=https://…"


class BadPlace(ValueError):
    """A URL that cannot be used. Nothing of the URL is in the text: it may have a secret where none belongs."""


@dataclass(frozen=True)
class Place:
    """A directory, or a bucket and what begins the names of objects in it."""

    kind: Literal["file", "s3"]
    directory: Path = Path()
    bucket: str = ""
    prefix: str = ""
    region: str = "us-east-1"
    endpoint: str | None = None
    """None: Amazon's own."""

    @classmethod
    def parse(cls, url: str) -> Place:
        """Raises BadPlace."""
        try:
            parts = urlsplit(url)
            has_user = "@" in parts.netloc
        except ValueError as error:
            raise BadPlace(f"is not a URL: {_FORM}") from error
        if has_user:
            raise BadPlace("credentials do not belong into the URL: INVOKER_STORE_KEY_FILE is a file with ID:SECRET")
        if parts.fragment:
            raise BadPlace(f"has a fragment (#…): {_FORM}")
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            if parts.netloc or parts.query or not path.is_absolute() or path == Path("/"):
                raise BadPlace("file:// takes an absolute path and nothing else: file:///srv/claude-store")
            return cls("file", directory=path)
        if parts.scheme != "s3":
            raise BadPlace(f"is neither file:// nor s3://: {_FORM}")
        return cls._s3(parts.netloc, parts.path.strip("/"), parts.query)

    @classmethod
    def _s3(cls, bucket: str, prefix: str, query: str) -> Place:
        if not _BUCKET.fullmatch(bucket):
            raise BadPlace(f"names no bucket that there could be: {_FORM}")
        segments = prefix.split("/")
        if not _PREFIX.fullmatch(prefix) or any(part in ("", ".", "..") for part in segments if prefix):
            raise BadPlace("the prefix may have letters, digits and ._- between its slashes")
        given = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := sorted(set(given) - set(_OPTIONS)):
            shown = ", ".join(name for name in unknown if re.fullmatch(r"[a-z_]{1,30}", name)) or "one"
            raise BadPlace(f"options that are not known: {shown}; there are {' and '.join(_OPTIONS)}")
        endpoint = given.get("endpoint")
        if endpoint is not None and not _is_origin(endpoint):
            raise BadPlace("endpoint is http:// or https:// with a host and, where there is one, a port")
        region = given.get("region", "us-east-1")
        if not re.fullmatch(r"[a-z0-9-]{1,40}", region):
            raise BadPlace("region has letters, digits and hyphens")
        return cls("s3", bucket=bucket, prefix=prefix, region=region, endpoint=endpoint)


def _is_origin(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_free = "@" not in parts.netloc and parts.path in ("", "/") and not parts.query and not parts.fragment
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and is_free
    except ValueError:
        return False


@dataclass(frozen=True)
class Key:
    """An access key; `repr` is without its secret."""

    id: str
    secret: str
    token: str | None = None

    @classmethod
    def parse(cls, text: str) -> Key:
        """`ID:SECRET` or `ID:SECRET:TOKEN`. Raises BadPlace."""
        parts = text.strip().split(":", 2)
        if len(parts) < 2 or not all(parts) or any(part != part.strip() or "\n" in part for part in parts):
            raise BadPlace("is ID:SECRET, or ID:SECRET:TOKEN, on one line")
        return cls(*parts)

    def __repr__(self) -> str:
        return "Key(…)"
