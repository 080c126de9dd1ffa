"""`kong-claude invoke`: one prompt through the local gateway."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any

from kong_claude.problem import Problem
from kong_claude_local.state import place, recall
from kong_claude_local.token import make

HELP = "send one prompt through the gateway and print the answer"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the prompt; - reads it from standard input")
    parser.add_argument("--stream", action="store_true", help="print the answer as it arrives")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--repo", help="X-Repo header: the repository the prompt is about")
    parser.add_argument("--branch", help="X-Branch header")
    parser.add_argument("--model", help="model name")
    parser.add_argument("--url", help="gateway (default: the stack of this directory)")
    parser.add_argument("--sub", help="subject of the development token (default: local), where CLAUDE_TOKEN has none")
    parser.add_argument("--tier", help="tier of the development token (default: pro), the same")
    parser.add_argument("--json", action="store_true", help="print the whole JSON answer")


def run(options: argparse.Namespace) -> int:
    running = recall()
    base = options.url or (running.proxy if running else None)
    if base is None:
        raise Problem(
            f"no stack of {place()} is running; start one with: kong-claude up --detach, or name one with --url"
        )
    token = os.environ.get("CLAUDE_TOKEN")
    if token and (options.sub or options.tier):
        raise Problem("CLAUDE_TOKEN is set, whose subject and tier count: unset it, or leave out --sub and --tier")
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    body = {"prompt": prompt, "system": options.system, "model": options.model}
    headers = {
        # A token for another gateway comes from the environment: an argument would show in the process list.
        "Authorization": "Bearer "
        + (token or make(options.sub or "local", options.tier or "pro", ["claude:invoke"], 600)),
        "Content-Type": "application/json",
        "Accept": "text/event-stream" if options.stream else "application/json",
    }
    headers |= {name: value for name, value in (("X-Repo", options.repo), ("X-Branch", options.branch)) if value}
    request = urllib.request.Request(
        base.rstrip("/") + "/claude/invoke",
        json.dumps({name: value for name, value in body.items() if value is not None}).encode(),
        headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return show_stream(response) if options.stream else show(response.read(), whole=options.json)
    except urllib.error.HTTPError as error:
        print(f"{error.code} {error.reason}: {error.read().decode('utf-8', 'replace')}", file=sys.stderr)
        return 1
    except (urllib.error.URLError, OSError) as error:
        raise Problem(f"{base} does not answer ({error}); is the stack up? kong-claude status") from error


def show(body: bytes, *, whole: bool) -> int:
    answer = json.loads(body)
    print(json.dumps(answer, indent=2) if whole else answer.get("result", ""))
    return 0


def show_stream(response: HTTPResponse) -> int:
    """Prints the text deltas; exit code 1 where the run ended in an error."""
    failed = 0
    for event, data in events(response):
        if event == "content_block_delta":
            print(data.get("delta", {}).get("text", ""), end="", flush=True)
        elif event == "error":
            print(f"\nerror: {json.dumps(data)}", file=sys.stderr)
            failed = 1
    print()
    return failed


def events(response: HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """(event name, JSON data) of a text/event-stream body."""
    name, data = "message", ""
    for raw in response:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line and data:
            yield name, json.loads(data)
            name, data = "message", ""
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
