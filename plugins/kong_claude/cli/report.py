"""`kong-claude report`: who used how much, what it cost, what was refused, from the access logs."""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from claude_contract.duration import duration
from kong_claude.problem import Problem

HELP = "make a report (pdf, html, md or json) from access logs"
FORMS = ("pdf", "html", "md", "json")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "logs",
        nargs="*",
        type=Path,
        help="access logs, .gz too; a directory stands for its *.jsonl* (with --audit they may be left out)",
    )
    parser.add_argument("--since", default="7d", type=duration, metavar="AGE", help="30m, 12h, 7d, 4w (default: 7d)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="a .pdf, .html, .md or .json file (default: Markdown, printed)")
    where.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--audit",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="an invoker's audit log (INVOKER_AUDIT_DIR), for all costs, those of streams and jobs too; repeatable",
    )
    parser.add_argument("--config", type=Path, help="kong.yml, for the tiers' limits")
    parser.add_argument("--prometheus", metavar="URL", help="Prometheus, for the cost of streams and jobs")


def run(options: argparse.Namespace) -> int:
    form = options.out.suffix[1:].lower() if options.out else "json" if options.json else "md"
    if form not in FORMS:
        raise Problem(f"--out {options.out}: the name must end in .pdf, .html, .md or .json")
    if not options.logs and not options.audit:
        raise Problem("name access logs (docs/metrics.md says how to have one), or an audit log: --audit DIR")
    from kong_claude.report.summary import Summary

    now = time.time()
    known = limits(options.config) if options.config else {}
    summary = Summary(now - options.since, now, known, audited=bool(options.audit), logged=bool(options.logs))
    if options.logs:
        read_all(summary, files(options.logs))
    counted: dict[str, int] = {}
    for directory in options.audit:
        read_audit(summary, directory, counted)
    if options.prometheus:
        summary.metered = metered(options.prometheus, options.since)
    document = summary.document()
    try:
        write(document, form, options.out)
    except OSError as error:
        raise Problem(f"{options.out}: {error.strerror}") from error
    except ModuleNotFoundError as error:
        raise Problem(f"{error.name} is missing: pip install 'kong-claude[report]', or --out report.md") from error
    if options.out:
        logs = f"{summary.all.requests:,} requests, {summary.broken:,} broken lines"
        print(f"{options.out}: {logs if options.logs else 'written, without access logs'}", file=sys.stderr)
    return 0


def files(paths: list[Path]) -> list[Path]:
    found = [f for p in paths for f in (sorted(p.glob("*.jsonl*")) if p.is_dir() else [p])]
    for path in found:
        if not path.is_file():
            raise Problem(f"{path} is not there")
    if not found:
        raise Problem("no *.jsonl files in the directory")
    # Oldest first: peaks are counted in order of time.
    return sorted(found, key=lambda path: path.stat().st_mtime)


def read_all(summary: Any, paths: list[Path]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from kong_claude.report.read import lines, parse

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=sum(path.stat().st_size for path in paths))
        try:
            for line in lines(paths, lambda size: bar.advance(task, size)):
                summary.add(parse(line))
        except (OSError, EOFError) as error:
            raise Problem(f"the logs cannot be read: {error}") from error


def read_audit(summary: Any, directory: Path, counted: dict[str, int]) -> None:
    from kong_claude.report.audit import ends

    try:
        for ended in ends(directory, counted):
            summary.add_end(ended)
    except OSError as error:
        raise Problem(f"--audit {directory}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"--audit {directory}: the log cannot be read: see claude-invoker audit verify") from error


def limits(path: Path) -> dict[str, int]:
    """Tier → requests per minute, from a declarative configuration."""
    import yaml

    found: dict[str, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for tier in value.get("tiers") or []:
                if isinstance(tier, dict) and isinstance(tier.get("minute"), int):
                    found.setdefault(str(tier.get("name")), tier["minute"])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    try:
        walk(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError) as error:
        raise Problem(f"{path}: {str(error).splitlines()[0]}") from error
    return found


def metered(url: str, seconds: float) -> dict[str, float]:
    """Tier → cost, as the invokers counted it."""
    query = f"sum by (tier) (increase(claude_invoker_cost_usd_total[{int(seconds)}s]))"
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            results = json.load(answer)["data"]["result"]
        return {str(r["metric"].get("tier", "none")): float(r["value"][1]) for r in results}
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"--prometheus {url}: {error}") from error


def write(document: dict[str, Any], form: str, out: Path | None) -> None:
    from kong_claude.report import render

    if form == "pdf":
        assert out is not None
        render.pdf(document, out)
        return
    if form == "json":
        text = json.dumps(document, indent=2) + "\n"
    else:
        text = render.page(document) if form == "html" else render.markdown(document)
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")
