"""`claude-invoker audit verify`: finds what somebody has done to the audit log."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claude_invoker.settings import Settings

REDIS = "redis"


def main(argv: list[str]) -> int:
    """0: nothing was done to it; 1: something was; 2: it cannot be looked at."""
    parser = argparse.ArgumentParser(prog="claude-invoker audit", description="The audit log (docs/audit.md).")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verify")
    verify = verbs.add_parser(
        "verify",
        help="find lines that were changed, moved, removed or cut",
        description="Finds lines that were changed, moved, removed or cut. What was cut at the end, or written anew, "
        "is found by an anchor only.",
    )
    verify.add_argument("--dir", type=Path, help="the log (default: INVOKER_AUDIT_DIR)")
    verify.add_argument(
        "--anchor",
        action="append",
        metavar="FILE|redis",
        help="where its head is kept; redis is INVOKER_REDIS_URL (default: both that are set)",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)

    from pydantic import ValidationError

    from claude_invoker.audit.anchor import Unreachable
    from claude_invoker.settings import Settings

    try:
        return _verify(options, Settings())
    except ValidationError as error:
        print(
            f"claude-invoker: the settings cannot be read: {error.errors(include_input=False)[0]['msg']}",
            file=sys.stderr,
        )
    except Unreachable as error:
        print(f"claude-invoker: an anchor cannot be read: {error}", file=sys.stderr)
    except OSError as error:
        print(f"claude-invoker: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


def _verify(options: argparse.Namespace, settings: Settings) -> int:
    """Raises Unreachable, OSError."""
    from claude_invoker.audit import anchor, verify
    from claude_invoker.audit.log import pairs

    directory = options.dir or settings.audit_directory
    anchors: list[anchor.Anchor] = []
    for name in options.anchor if options.anchor is not None else _known(settings):
        if name != REDIS:
            if not Path(name).exists():
                raise anchor.Unreachable(f"{name} is not there")
            anchors.append(anchor.FileAnchor(Path(name)))
        elif settings.redis_url is None:
            raise anchor.Unreachable("INVOKER_REDIS_URL is not set")
        else:
            anchors.append(anchor.RedisAnchor(settings.redis_url))
    logs = [each.log for each in pairs(directory)] if directory.is_dir() else []
    heads = anchor.relevant(anchors, directory, logs)
    found = verify.verify(directory, heads)
    if logs and not heads:
        found.found("cut", "no anchor knows this log: whether its end was cut cannot be said")
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
    return 1 if found.findings else 0


def _known(settings: Settings) -> list[str]:
    """The anchors that the settings name."""
    file = [str(settings.audit_anchor)] if settings.audit_anchor is not None else []
    return [*file, *([REDIS] if settings.redis_url is not None else [])]
