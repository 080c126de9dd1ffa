"""What claude-prompt-context costs by size of body, beside moving the same bytes: `python -m bench.prompt`.

`ms_<size>`: a whole access event (median) with strict JSON, a locked field and additions; bodies over 64 KiB are read
and checked but not sent back (attested). `x_transport_1m`: that event over one of a plugin that makes the same calls
with the same frames and does nothing else. `ms_1m_unread` is the event where nothing has to be read in the body,
`ms_1m_patterns` the one with three deny patterns. `worst_8m_ms`: 8 MB of a million tiny arrays, refused.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import machine
from kong_claude import PLUGINS
from tests.support.kong_driver import Driver, Request, plugin_server

LIMIT = 16 << 20
SIZES = {"1k": 1 << 10, "100k": 100 << 10, "1m": 1 << 20, "8m": 8 << 20}
ROUNDS = {"1k": 400, "100k": 150, "1m": 40, "8m": 8}
ATTESTATION = {"secret": "0123456789abcdef0123456789abcdef", "request": "POST /claude/invoke"}
CONFIG: dict[str, Any] = {
    "mark": "m",
    "prepend": "You are a code review assistant. ",
    "context": {"repository": {"source": "header:X-Repo"}, "branch": {"source": "header:X-Branch"}},
    "locked": ["tools"],
    "max_body_bytes": LIMIT,
    "attestation": ATTESTATION,
}
PATTERNS = ["(?i)ignore (all )?previous instructions", r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", "(?i)rm -rf /"]
# The same calls and frames as the plugin's, with nothing in between.
BARE = """
class Plugin:
    def __init__(self, config):
        self.replies, self.marks = config["replies"], config["mark"]

    def access(self, kong):
        kong.request.get_headers(1000)
        kong.request.get_raw_body(LIMIT)
        kong.service.request.set_headers(self.replies)
        if "body" in self.marks:
            kong.service.request.set_raw_body(self.marks["body"].encode())
        kong.ctx.shared.set("claude_context", self.marks["shared"])

Schema = ()
version, priority = "0.1.0", 769
""".replace("LIMIT", str(LIMIT))


def document(size: int) -> bytes:
    """A prompt of source code, as Claude Code's callers send it."""
    line = 'def handler(event, context):\n    return {"statusCode": 200, "body": json.dumps({"ok": True})}\n'
    text = line * (size // len(line) + 1)
    overhead = len(json.dumps({"prompt": text, "system": "Be brief."})) / len(text)
    return json.dumps({"prompt": text[: int(size / overhead)], "system": "Be brief."}).encode()


def request(body: bytes) -> Request:
    headers = {
        "host": "api.example.com",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-request-id": "0123456789abcdef",
        "x-repo": "org/app",
        "x-branch": "main",
        "accept": "*/*",
        "user-agent": "bench",
    }
    return Request(headers=headers, body=body)


def event(kong: Driver, instance: Any, body: bytes) -> Request:
    asked = request(body)
    outcome = kong.handle(instance, "access", asked)
    assert outcome.exit is None, outcome.exit
    return asked


def milliseconds(run: Callable[..., object], *arguments: Any) -> float:
    started = time.perf_counter()
    run(*arguments)
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="kc-bench-") as folder:
        Path(folder, "claude-bare.py").write_text(BARE)
        with plugin_server(PLUGINS) as ours, plugin_server(folder) as theirs:
            with ours.driver(120) as kong, theirs.driver(120) as peer:
                instance = kong.start_instance("claude-prompt-context", CONFIG)
                for name, size in SIZES.items():
                    body = document(size)
                    seen = event(kong, instance, body)
                    same: dict[str, Any] = {"shared": seen.shared["claude_context"]}
                    if seen.upstream_body is not None:
                        same["body"] = seen.upstream_body.decode()
                    bare = peer.start_instance("claude-bare", {"replies": seen.upstream_headers, "mark": same})
                    whole, moved = [], []
                    for _ in range(ROUNDS[name]):
                        whole.append(milliseconds(event, kong, instance, body))
                        moved.append(milliseconds(event, peer, bare, body))
                    figures[f"ms_{name}"] = round(statistics.median(whole), 3)
                    figures[f"x_transport_{name}"] = round(statistics.median(whole) / statistics.median(moved), 2)
                    print(f"{name}: {figures[f'ms_{name}']} ms, x{figures[f'x_transport_{name}']}", file=sys.stderr)
                body = document(SIZES["1m"])
                changes: dict[str, dict[str, Any]] = {
                    "unread": {"locked": [], "apply": "attested"},
                    "patterns": {"deny_patterns": PATTERNS},
                }
                for key, more in changes.items():
                    other = kong.start_instance("claude-prompt-context", {**CONFIG, **more})
                    times = [milliseconds(event, kong, other, body) for _ in range(20)]
                    figures[f"ms_1m_{key}"] = round(statistics.median(times), 3)
                for key, hostile in {
                    "worst_8m_ms": b'{"a":[' + b"[]," * ((SIZES["8m"] // 3) - 3) + b"1]}",
                    "worst_accepted_ms": b'{"a":[' + b"[]," * 499_000 + b"1]}",
                    "worst_8m_numbers_ms": b'{"a":[' + b"1," * (SIZES["8m"] // 2 - 8) + b"1]}",
                }.items():
                    asked = request(hostile)
                    figures[key] = round(milliseconds(kong.handle, instance, "access", asked), 1)
    figures["machine"] = machine()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
