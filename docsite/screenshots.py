"""`python -m docsite.screenshots [--out build/site-screenshots]`: the dashboard's pages in both themes, out of a stack
that runs: the gateway's plugins, the invoker and the real CLI, with the stand-in of the Messages API; and the trace of
one of its requests. `make site` shows what is there."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from docsite.pages import ROOT
from docsite.trace import bars, svg
from tests.support.otlp import Receiver, receiving

OUT = ROOT / "build" / "site-screenshots"
TRACE = "trace.svg"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
THEMES = ("light", "dark")
_WITHIN_S = 120.0
_HOME = "/claude/dashboard"
_CALL = json.dumps({"file_path": "findings.md", "content": "# Findings\n\n- parse() drops the last line\n"})
Token = Callable[..., str]
"""`token(subject, *options)`, the options of `kong-claude token`."""


@dataclass(frozen=True)
class Asked:
    """A job. What a prompt tells the stand-in comes behind what lists show of it."""

    key: str
    subject: str
    words: str
    directives: str
    state: str
    more: Mapping[str, Any]


_JOBS = (
    Asked(
        "reviewed",
        "ada",
        "Review the change of src/parser.py against main for mistakes, look for lines that are read and never used, "
        "and write what you have found into findings.md, the worst first, each with its line.",
        f"[[tool Write {_CALL}]] [[say There is one mistake: parse() drops the last line where it has no end.]]",
        "done",
        {"tools": ["Write"]},
    ),
    Asked(
        "failed",
        "grace",
        "Summarise last week's incidents from the notes that are attached, by cause and by how long each lasted, "
        "for people who were not there, and say which of them could have been noticed sooner.",
        "[[status 400]]",
        "failed",
        {},
    ),
    Asked(
        "asking",
        "ada",
        "Write the release notes of version 2.4 into findings.md: what is new, what was mended, what whoever upgrades "
        "has to do, in this order, with a sentence for each, and nothing that only we understand.",
        f"[[tool Write {_CALL}]] [[say They are written.]]",
        "running",
        {"tools": ["Write"], "ask": ["Write"]},
    ),
)
PAGES: Mapping[str, tuple[str, str]] = {
    "overview": ("", "What runs now, tiers and budgets, the last jobs"),
    "jobs": ("jobs", "Jobs, found by words, caller, state, tier and repository"),
    "job": ("jobs/{reviewed}", "A job: its turns and calls, what it cost, what it has left"),
    "approvals": ("approvals", "Calls of tools that wait to be allowed"),
    "limits": ("limits?sub=ada&tier=pro", "What a caller may still do"),
    "catalog": ("catalog", "What runs may have"),
    "charts": ("charts", "What has happened and what it has cost"),
}
"""Name → the address below the dashboard's, and what it shows."""


def fill(gateway: str, token: Token) -> dict[str, str]:
    """Lets jobs run that give the pages something to show. Their ids by their keys."""
    ids: dict[str, str] = {}
    for asked in _JOBS:
        headers = {"Authorization": f"Bearer {token(asked.subject, '--tier', 'pro')}", "X-Repo": "org/app"}
        with httpx.Client(base_url=gateway, headers=headers, timeout=60) as client:
            body = {"prompt": f"{asked.words} {asked.directives}"} | dict(asked.more)
            accepted = client.post("/claude/jobs", json=body)
            accepted.raise_for_status()
            until = time.monotonic() + _WITHIN_S
            while not _is(client.get(accepted.headers["location"]).raise_for_status().json(), asked):
                if time.monotonic() > until:
                    raise SystemExit(f"the job {asked.key} is not {asked.state} within {_WITHIN_S:g} s")
                time.sleep(0.2)
        ids[asked.key] = str(accepted.json()["id"])
    return ids


def _is(job: Mapping[str, Any], asked: Asked) -> bool:
    waits = bool(job["waiting_for_approval"])
    return bool(job["state"] == asked.state) and waits == ("ask" in asked.more)


def shoot(browser: Any, gateway: str, token: str, ids: Mapping[str, str], out: Path, names: Sequence[str]) -> None:
    """Files `NAME-light.png` and `NAME-dark.png` for each of these pages, as whoever has the token sees it."""
    out.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        context = browser.new_context(viewport={"width": 1180, "height": 760}, base_url=gateway, color_scheme=theme)
        opened = context.new_page()
        opened.goto(f"{_HOME}/login")
        opened.get_by_label("Access token").fill(token)
        opened.get_by_role("button", name="Log in").click()
        opened.wait_for_url(f"**{_HOME}")
        for name in names:
            answer = opened.goto(f"{_HOME}/{PAGES[name][0].format_map(ids)}".rstrip("/"))
            if answer is None or not answer.ok:
                raise SystemExit(f"the page {name} is not there: {answer and answer.status}")
            opened.screenshot(path=out / f"{name}-{theme}.png")
        context.close()


@dataclass(frozen=True)
class Client:
    """The request as its client has seen it: the span around all others."""

    id: str
    began: int
    ended: int
    parent: str = ""
    name: str = "POST /claude/invoke at the gateway"


def traced(gateway: str, token: str, collector: Receiver) -> str:
    """A run with a call of a tool, as the picture of its trace."""
    trace, client_id = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"Authorization": f"Bearer {token}", "traceparent": f"00-{trace}-{client_id}-01"}
    body = {"prompt": f"Write down what you find. [[tool Write {_CALL}]] [[say It is written.]]", "tools": ["Write"]}
    began = time.time_ns()
    httpx.post(f"{gateway}/claude/invoke", json=body, headers=headers, timeout=_WITHIN_S).raise_for_status()
    client = Client(client_id, began, time.time_ns())
    collector.whole(trace, "POST /invoke", "invoke_agent claude")
    return svg(bars([client, *collector.of(trace)]))


def page(folder: Path) -> str | None:
    """What the site says of the pictures in a folder, which lie beside it there; None where one is missing."""
    taken = [TRACE, *(f"{name}-{theme}.png" for name in PAGES for theme in THEMES)]
    if not all((folder / name).is_file() for name in taken):
        return None
    parts = [
        "# The product in pictures\n\nFrom a stack that ran; what the dashboard has is in "
        "[Jobs and the dashboard](../jobs.md).",
        "## The way of a request",
        "From the client through the gateway with its plugins to the invoker, the run, its requests to the API and its "
        "call of a tool, as [its trace](../tracing.md) has it: what is in a bar is a part of it. The API is a stand-in "
        "here, which answers at once.",
        f"```{{image}} ../screenshots/{TRACE}\n:alt: The spans of a trace, one below the other\n```",
    ]
    for name, (_, words) in PAGES.items():
        parts.append(f"## {words}")
        for theme in THEMES:
            image = f"../screenshots/{name}-{theme}.png"
            parts.append(f"```{{image}} {image}\n:alt: {words}\n:class: only-{theme}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docsite.screenshots", description="Takes the dashboard's pictures."
    )
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    from playwright.sync_api import sync_playwright

    command = str(Path(sys.executable).with_name("kong-claude"))
    foreign = ("ANTHROPIC_", "CLAUDE", "KONG_", "INVOKER_", "REDIS_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with (
        tempfile.TemporaryDirectory(prefix="screenshots-") as home,
        sync_playwright() as playwright,
        receiving() as collector,
    ):
        environment = kept | {"KONG_CLAUDE_HOME": home, "INVOKER_OTLP_ENDPOINT": collector.url}

        def said(*arguments: str) -> str:
            done = subprocess.run([command, *arguments], env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"kong-claude {arguments[0]}: {done.stdout}{done.stderr}")
            return done.stdout.strip()

        def token(subject: str, *options: str) -> str:
            return said("token", "--sub", subject, *options)

        said("up", "--detach", "--port", str(_free_port()), "--config", str(ROOT / "kong.yml"))
        try:
            gateway = json.loads((Path(home) / "stack.json").read_text())["proxy"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            ids = fill(gateway, token)
            admin = token("ada", "--tier", "pro", "--role", "claude:invoke", "--role", "admin")
            shoot(browser, gateway, admin, ids, out, list(PAGES))
            browser.close()
            (out / TRACE).write_text(traced(gateway, admin, collector))
        finally:
            said("down")
    print(out, flush=True)
    return 0


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
