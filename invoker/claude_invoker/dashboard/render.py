"""Templates and how values look in them. Everything is escaped: autoescape is on for every template."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from claude_contract.ledger import dollars, micro_usd
from claude_contract.rules import QUESTION
from claude_invoker.dashboard.charts import Unit
from claude_invoker.dashboard.plain import plain
from claude_invoker.model import Permission
from claude_invoker.runs.questions import questions_of

FOLDER = Path(__file__).parent
_jinja = Environment(
    loader=FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def html(name: str, **values: Any) -> str:
    return _jinja.get_template(f"{name}.html").render(**values)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _usd(amount: float) -> str:
    return f"${amount:.4f}" if amount < 1 else f"${amount:,.2f}"


def _billed(cost_usd: float | Decimal) -> str:
    return dollars(micro_usd(float(cost_usd)))


def _amount(value: float, unit: Unit) -> str:
    """A number of a chart."""
    match unit:
        case "usd":
            return _usd(value)
        case "s":
            return f"{value:,.1f} s"
        case "count":
            return f"{value:,.0f}"


def _took(job: Any) -> str:
    if job.started_at is None or job.finished_at is None:
        return "–"
    return f"{job.finished_at - job.started_at:.1f} s"


def _size(count: int) -> str:
    return (
        f"{count} B"
        if count < 1024
        else f"{count / 1024:.1f} KiB"
        if count < 1 << 20
        else f"{count / (1 << 20):.1f} MiB"
    )


def _questions(asked: Permission) -> dict[str, list[str]]:
    return questions_of(asked.input) if asked.tool == QUESTION else {}


_jinja.filters |= {
    "clock": _clock,
    "usd": _usd,
    "exactly": dollars,
    "billed": _billed,
    "amount": _amount,
    "took": _took,
    "words": lambda name: name.replace("_", " "),
    "size": _size,
    "path": lambda text: quote(text),
    "questions": _questions,
    "pretty": lambda value: plain(json.dumps(value, indent=2, ensure_ascii=False)),
    "plain": plain,
}
