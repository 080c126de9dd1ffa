"""`kong-claude status`: is the stack up, and where does it listen."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from kong_claude.ask import answers
from kong_claude_local.state import place, recall

HELP = "show whether the local stack runs and where it listens (exit code 1 if not)"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    running = recall()
    if running is None:
        print(
            json.dumps({"running": False})
            if options.json
            else f"no stack of {place()} is running; start it with: kong-claude up"
        )
        return 1
    parts = {
        "gateway": answers(running.admin, "/status"),
        "invoker": answers(running.invoker, "/readyz"),
    }
    if options.json:
        print(json.dumps({"running": True, **asdict(running), "ready": parts}))
    else:
        print(f"gateway  {running.proxy}  ({'ready' if parts['gateway'] else 'not ready'}, admin {running.admin})")
        print(f"invoker  {running.invoker}  ({'ready' if parts['invoker'] else 'not ready'})")
        print(f"redis    {running.redis}")
        print(f"answers  {'canned, from ' + running.standin if running.standin else 'from the Anthropic API'}")
        print(f"pid      {running.pid}" + (f", log {running.log}" if running.log else ""))
    return 0 if all(parts.values()) else 1
