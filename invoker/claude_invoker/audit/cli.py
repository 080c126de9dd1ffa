"""`claude-invoker audit`: whether the log is whole, what it says of a person, and that deleted; who has spent what."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from claude_contract.duration import duration
from claude_invoker.audit.spent import BY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from claude_invoker.audit.anchor import Anchor
    from claude_invoker.audit.log import Head
    from claude_invoker.audit.verify import Verdict
    from claude_invoker.settings import Settings
    from claude_invoker.store.store import Store

REDIS, STORE = "redis", "store"
_LEFT = 128 + signal.SIGPIPE
"""As a shell has it of a program whose reader has left: `audit export | head`."""
_WHERE = "--dir or INVOKER_AUDIT_DIR say where the log is"
_ANCHORS = (
    "no anchor was asked: set INVOKER_REDIS_URL, INVOKER_AUDIT_ANCHOR or INVOKER_AUDIT_STORE as the invoker has it, "
    "or say --anchor"
)


class _NoStore(Exception):
    """None is configured."""


class _NoLog(Exception):
    """There is no such directory."""


def main(argv: list[str]) -> int:
    """0: nothing was done to the log, or what was asked for is done; 1: something was; 2: it cannot be looked at."""
    options = _parser().parse_args(argv)

    from pydantic import ValidationError
    from redis.exceptions import RedisError

    from claude_invoker.audit.anchor import Unreachable
    from claude_invoker.settings import Settings
    from claude_invoker.store.store import Away

    verbs = {"verify": _verify, "export": _export, "forget": _forget, "spent": _spent}
    try:
        done = asyncio.run(verbs[options.verb](options, Settings()))
        sys.stdout.flush()  # so that who reads no further is found out here, not when Python ends
        return done
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _LEFT
    except ValidationError as error:
        problem = f"the settings cannot be read: {error.errors(include_input=False)[0]['msg']}"
    except _NoStore:
        problem = "INVOKER_AUDIT_STORE is not set"
    except _NoLog as error:
        problem = f"{error} is not there: {_WHERE}"
    except Unreachable as error:
        problem = f"an anchor cannot be read: {error}"
    except Away as error:
        problem = f"the store of the audit log (INVOKER_AUDIT_STORE): {error}"
    except RedisError as error:
        problem = f"the jobs' Redis cannot be asked ({type(error).__name__})"
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    except ValueError as error:
        problem = f"the log cannot be read ({error}): see claude-invoker audit verify"
    print(f"claude-invoker: {problem}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="claude-invoker audit", description="The audit log (docs/audit.md).")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verify|export|forget|spent")
    verify = verbs.add_parser(
        "verify",
        help="find lines that were changed, moved, removed or cut",
        description="Finds lines that were changed, moved, removed or cut. What was cut at the end, or written anew, "
        "is found by an anchor only.",
    )
    verify.add_argument(
        "--anchor",
        action="append",
        metavar="FILE|redis|store",
        help="where its head is kept; redis is INVOKER_REDIS_URL, store INVOKER_AUDIT_STORE (default: all that are "
        "set)",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    export = verbs.add_parser(
        "export",
        help="print what is there about a person",
        description="Prints the lines about a person with their details, one JSON object a line, and the requests that "
        "jobs of theirs have kept, to be tried again.",
    )
    forget = verbs.add_parser(
        "forget",
        help="delete the details about a person",
        description="Deletes the details of the lines about a person, in the directory and in INVOKER_AUDIT_STORE "
        "where that is set, and the requests that jobs of theirs have kept, to be tried again. The lines stay, "
        "and with them the name: who did something, when, and of what kind. "
        "That they were deleted is a line, too, and the log is as whole as before (claude-invoker audit verify). It "
        "may be written meanwhile.",
    )
    for each in (export, forget):
        each.add_argument("--subject", required=True, type=_name, help="as the token has it")
    spent = verbs.add_parser(
        "spent",
        help="add up what was spent, and by whom",
        description="Adds up what runs and requests to models themselves have cost, the dearest first. A run counts "
        "when it has ended.",
    )
    spent.add_argument("--since", type=duration, metavar="AGE", help="30m, 12h, 7d, 4w (default: all that the log has)")
    spent.add_argument("--by", choices=BY, default="subject", help="(default: subject)")
    spent.add_argument("--json", action="store_true", help="print one JSON object for each")
    for each in (verify, export, spent):
        each.add_argument("--store", action="store_true", help="what INVOKER_AUDIT_STORE has, of all invokers")
    for each in (verify, export, forget, spent):
        each.add_argument("--dir", type=Path, help="the log (default: INVOKER_AUDIT_DIR)")
    return parser


def _name(text: str) -> str:
    """Raises ArgumentTypeError for nobody, of whom there are lines, too."""
    if not text:
        raise argparse.ArgumentTypeError("whose?")
    return text


async def _spent(options: argparse.Namespace, settings: Settings) -> int:
    """Raises _NoStore, _NoLog, Away, OSError, ValueError."""
    from claude_invoker.audit import shipping, spent

    since = None if options.since is None else datetime.now(UTC) - timedelta(seconds=options.since)
    if options.store:
        async with shipping.fetched(_store(settings)) as places:
            rows, unknown = spent.spent(places.values(), options.by, since)
    else:
        rows, unknown = spent.spent([_directory(options, settings)], options.by, since)
    if options.json:
        for row in rows:
            print(json.dumps({**asdict(row), "usd": str(row.usd)}))
    else:
        print(spent.table(rows, options.by))
    if unknown:
        print(f"{unknown} more lines whose details were deleted", file=sys.stderr)
    return 0


async def _export(options: argparse.Namespace, settings: Settings) -> int:
    """Raises _NoStore, _NoLog, Away, OSError, ValueError."""
    from claude_invoker.audit import person, shipping
    from claude_invoker.jobs import kept

    if options.store:
        async with shipping.fetched(_store(settings)) as places:
            found = [row for each in places.values() for row in person.export(each, options.subject)]
    else:
        found = person.export(_directory(options, settings), options.subject)
    if settings.jobs_redis_url is not None:
        found += await kept.export(settings.jobs_redis_url, options.subject)
    for row in sorted(found, key=lambda each: str(each["at"])):
        print(json.dumps(row))
    print(f"{len(found)} lines about {options.subject!r}", file=sys.stderr)
    return 0


async def _forget(options: argparse.Namespace, settings: Settings) -> int:
    """Raises _NoLog, Away, OSError, ValueError."""
    from claude_invoker.audit import person, shipping
    from claude_invoker.audit.writer import store_of
    from claude_invoker.jobs import kept

    directory = _directory(options, settings)
    deleted = person.forget(directory, options.subject, f"uid {os.getuid()} at {socket.gethostname()}")
    print(f"{directory}: details of {deleted} lines deleted", file=sys.stderr)
    store = store_of(settings)
    if store is not None:
        deleted = await shipping.forget(store, options.subject)
        print(f"INVOKER_AUDIT_STORE: details of {deleted} lines deleted", file=sys.stderr)
    if settings.jobs_redis_url is not None:
        deleted = await kept.delete(settings.jobs_redis_url, options.subject)
        print(f"jobs: {deleted} requests deleted that could have been tried again", file=sys.stderr)
    return 0


async def _verify(options: argparse.Namespace, settings: Settings) -> int:
    """Raises _NoStore, Unreachable, Away, OSError, ValueError."""
    from claude_invoker.audit import anchor, person, shipping
    from claude_invoker.audit.verify import Verdict

    if not options.store:
        directory = options.dir or settings.audit_directory
        heads = await _heads(options, settings, directory)
        found = _looked(directory, heads, has_store=settings.audit_store is not None)
        if not directory.is_dir():
            print(f"claude-invoker: {_WHERE}", file=sys.stderr)
        elif not _named(options, settings):
            print(f"claude-invoker: {_ANCHORS}", file=sys.stderr)
        return _told(options, found, heads)
    found = Verdict()
    heads = await asyncio.to_thread(anchor.known, _anchors(options, settings))
    async with shipping.fetched(_store(settings)) as places:
        if not places:
            found.found("gone", "the store has no log")
        forgotten = person.forgotten_in(places.values())
        for log, seq in sorted({head.log: head.seq for head in heads if head.log not in places}.items()):
            found.found("gone", f"the log {log} had {seq} lines, and the store has none of them")
        for log, directory in places.items():
            one = _looked(directory, [head for head in heads if head.log == log], forgotten)
            found.findings += one.findings
            found.heads |= one.heads
            found.without_details += one.without_details
    return _told(options, found, heads)


def _looked(
    directory: Path,
    heads: Sequence[Head],
    forgotten: Mapping[str, datetime] = MappingProxyType({}),
    *,
    has_store: bool = False,
) -> Verdict:
    """`forgotten`, `has_store`: as `verify` says. Raises OSError."""
    from claude_invoker.audit.log import pairs
    from claude_invoker.audit.verify import verify

    found = verify(directory, heads, forgotten, has_store=has_store)
    if directory.is_dir() and pairs(directory) and not heads:
        found.found("cut", "no anchor knows this log: whether its end was cut cannot be said")
    return found


async def _heads(options: argparse.Namespace, settings: Settings, directory: Path) -> list[Head]:
    """What the anchors know of the directory's logs. Raises _NoStore, Unreachable, Away, OSError, ValueError."""
    from claude_invoker.audit import anchor, shipping
    from claude_invoker.audit.log import pairs

    logs = [each.log for each in pairs(directory)] if directory.is_dir() else []
    found: list[Head] = []
    if STORE in _named(options, settings):
        found += [head for head in await shipping.heads_in(_store(settings)) if head.log in logs]
    return [*found, *await asyncio.to_thread(anchor.relevant, _anchors(options, settings), directory, logs)]


def _anchors(options: argparse.Namespace, settings: Settings) -> list[Anchor]:
    """But for the store, which is another kind. Raises Unreachable."""
    from claude_invoker.audit import anchor

    found: list[Anchor] = []
    for name in _named(options, settings):
        if name == REDIS:
            if settings.redis_url is None:
                raise anchor.Unreachable("INVOKER_REDIS_URL is not set")
            found.append(anchor.RedisAnchor(settings.redis_url))
        elif name != STORE:
            if not Path(name).exists():
                raise anchor.Unreachable(f"{name} is not there")
            found.append(anchor.FileAnchor(Path(name)))
    return found


def _told(options: argparse.Namespace, found: Verdict, heads: Sequence[Head]) -> int:
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        for finding in found.findings:
            print(finding)
        for head in found.heads.values():
            anchored = max((known.seq for known in heads if known.log == head.log), default=0)
            print(
                f"log {head.log}: {head.seq} lines, {anchored} of them anchored, details of {found.without_details} "
                f"deleted, {len(found.findings)} findings",
                file=sys.stderr,
            )
        if found.moved:
            print(
                f"{found.moved} lines lie in the store alone: claude-invoker audit verify --store looks at them",
                file=sys.stderr,
            )
    return 1 if found.findings else 0


def _directory(options: argparse.Namespace, settings: Settings) -> Path:
    """Raises _NoLog."""
    directory: Path = options.dir or settings.audit_directory
    if not directory.is_dir():
        raise _NoLog(directory)
    return directory


def _store(settings: Settings) -> Store:
    """Raises _NoStore."""
    from claude_invoker.audit.writer import store_of

    store = store_of(settings)
    if store is None:
        raise _NoStore
    return store


def _named(options: argparse.Namespace, settings: Settings) -> list[str]:
    """The anchors that the options name, else the settings."""
    if options.anchor is not None:
        return list(options.anchor)
    file = [str(settings.audit_anchor)] if settings.audit_anchor is not None else []
    redis = [REDIS] if settings.redis_url is not None else []
    return [*file, *redis, *([STORE] if settings.audit_store is not None else [])]
