"""Jobs by what is asked for, newest first: a bounded look at the index of a subject's jobs, or of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from claude_invoker.jobs.record import VERSION, Job
from claude_invoker.jobs.store import PREFIX, Store, index_of
from claude_invoker.place import Place

LOOKED_AT = 2000
"""Jobs, for one page: some milliseconds of Redis."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for; "" for whichever. `repository` and `text` (of the title) are parts, whether of large ASCII
    letters or of small ones."""

    state: str = ""
    tier: str = ""
    repository: str = ""
    text: str = ""
    tag: str = ""


async def find(
    store: Store, subject: str | None, wanted: Wanted, after: Place | None, count: int
) -> tuple[list[Job], Place | None]:
    """The newest `count` jobs of a subject (None: of all) that come `after`, in short, and where to go on. Fewer, or
    none, while there is more to look at."""
    begin = ("", "") if after is None else (repr(after.created_at), after.id)
    asked = (wanted.state, wanted.tier, _small(wanted.repository), _small(wanted.text), wanted.tag)
    args = (f"{PREFIX}job:", *begin, count, LOOKED_AT, *asked)
    at, last, *ids = await store.run("find", [index_of(subject)], args)
    return await store.short(ids), Place(float(at), last) if last else None


def _small(text: str) -> str:
    """As Redis' Lua does it: letters beyond ASCII stay."""
    return text.encode("utf-8", "replace").lower().decode()


async def newest(store: Store, subject: str | None, since: float, fields: Sequence[str]) -> list[dict[str, str]]:
    """These fields of the records of the newest jobs of a subject (None: of all) that were accepted `since` then, as
    far as they are there."""
    args = (f"{PREFIX}job:", repr(since), LOOKED_AT, VERSION, *fields)
    found = await store.run("newest", [index_of(subject)], args)
    return [{name: value for name, value in zip(fields, job, strict=True) if value is not None} for job in found]
