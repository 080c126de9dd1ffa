"""A line of the audit log and its details, as bytes. No I/O.

`{"seq":…,"at":…,"kind":…,"actor":…,"subject":…,"details":"<digest>","chain":"<hash>"}`: the chain is the SHA-256 of
the chain before and of all bytes of the line before `,"chain":`. Details lie apart, each line with its own salt; the
digest is the SHA-256 of that line. They can be deleted, and the chain holds.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

BEGIN = "0" * 64
"""The chain before the first line."""
MAX_DETAILS = 256 << 10  # bytes of one entry's
_LINE = re.compile(rb'(\{"seq":([1-9][0-9]{0,17}),.*),"chain":"([0-9a-f]{64})"\}', re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """What is to be noted. `subject`: whom it is about, "" for nobody; `details` are JSON values, no secrets."""

    kind: str
    actor: str
    subject: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Line:
    """A line that has been read: `body` is all of it before the chain."""

    seq: int
    body: bytes
    chain: str

    @property
    def members(self) -> Mapping[str, Any]:
        """Raises ValueError."""
        found = json.loads(self.body + b"}")
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found

    def follows(self, before: str) -> bool:
        return self.chain == chained(before, self.body)


_AT = "%Y-%m-%dT%H:%M:%S.%fZ"


def time_of(at: str) -> datetime | None:
    """What a line says of when it was written; None where it is not as ours say it."""
    try:
        return datetime.strptime(at, _AT).replace(tzinfo=UTC)
    except ValueError:
        return None


def chained(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()


def digest_of(details: bytes) -> str:
    """Of a line of details, without its end."""
    return hashlib.sha256(details).hexdigest()


def written(entry: Entry, seq: int, before: str) -> tuple[bytes, bytes, str]:
    """The line, the line of its details, both with their ends; and the chain."""
    details = _json({"seq": seq, "salt": secrets.token_hex(16), "details": entry.details})
    if len(details) > MAX_DETAILS:
        details = _json({"seq": seq, "salt": secrets.token_hex(16), "details": {"too_long_bytes": len(details)}})
    members = {
        "seq": seq,
        "at": entry.at.astimezone(UTC).strftime(_AT),
        "kind": entry.kind,
        "actor": entry.actor,
        "subject": entry.subject,
        "details": digest_of(details),
    }
    body = _json(members)[:-1]
    chain = chained(before, body)
    return body + b',"chain":"' + chain.encode() + b'"}\n', details + b"\n", chain


def read(line: bytes) -> Line:
    """A line without its end. Raises ValueError."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError("not a line of the log")
    return Line(int(found[2]), found[1], found[3].decode())


def seq_of_details(line: bytes) -> int:
    """Raises ValueError."""
    found = json.loads(line)
    if not isinstance(found, dict) or type(found.get("seq")) is not int:
        raise ValueError("not a line of details")
    return int(found["seq"])


def _json(value: Any) -> bytes:
    """Of ASCII alone, so that no reader's idea of lines differs from ours."""
    return json.dumps(value, separators=(",", ":"), default=str).encode()
