"""A report's document as Markdown, HTML (one file, nothing loaded) or PDF."""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Table = tuple[str, list[str], list[list[str]]]
ROWS = 12  # of a table by tier, team, …
_CSS = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2933;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{margin:0;font-size:1.7rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.span{color:#616e7c}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8rem,1fr));gap:.8rem;margin:1.5rem 0}
.figures div{background:#f4f6f8;border-radius:6px;padding:.7rem .9rem}.figures b{display:block;font-size:1.2rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{padding:.3rem .6rem;border-bottom:1px solid #e4e7eb}
th{text-align:right;font-weight:600;color:#52606d}td{text-align:right;font-variant-numeric:tabular-nums}
td:first-child,th:first-child{text-align:left;overflow-wrap:anywhere}img{max-width:100%}ul{padding-left:1.2rem}
"""


def figures(document: dict[str, Any]) -> list[tuple[str, str]]:
    total = document["total"]
    return [
        ("requests", _count(total["requests"])),
        ("refused", _count(total["refusals"])),
        ("cost", _usd(total["cost_usd"])),
        ("tokens", _short(total["input_tokens"] + total["output_tokens"])),
        ("median", _seconds(total["p50_s"])),
        ("p99", _seconds(total["p99_s"])),
    ]


def span(document: dict[str, Any]) -> str:
    begin, end = (datetime.fromtimestamp(document[name], UTC) for name in ("since", "until"))
    return f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"


def tables(document: dict[str, Any]) -> list[Table]:
    """(title, columns, rows) of everything that is shown as a table; empty ones are left out."""
    found: list[Table] = []
    head = ["requests", "refused", "tokens in", "tokens out", "cost", "p50", "p95", "p99"]
    for name in ("tier", "team", "model", "repository", "route"):
        rows = [
            [
                plain(value),
                _count(g["requests"]),
                _count(g["refusals"]),
                *("–" if g[kind] is None else _short(g[kind]) for kind in ("input_tokens", "output_tokens")),
                _usd(g["cost_usd"]),
                *(_seconds(g[f"p{share}_s"]) for share in (50, 95, 99)),
            ]
            for value, g in list(document[f"by_{name}"].items())[:ROWS]
        ]
        found.append((f"By {name}", [name, *head], rows))
    refusals = [[plain(reason), f"{number:,}"] for reason, number in list(document["refusals"].items())[:ROWS]]
    found.append(("Refusals", ["plugin/reason", "requests"], refusals))
    peaks = [
        [plain(tier), str(peak), str(document["limits_per_minute"].get(tier, "not known"))]
        for tier, peak in document["peaks_per_minute"].items()
    ]
    found.append(("Peaks against limits", ["tier", "most of one caller in a minute", "limit"], peaks))
    metered = [[plain(tier), _usd(usd)] for tier, usd in document["metered_cost_usd"].items()]
    found.append(("Cost by tier, streams and jobs included (Prometheus)", ["tier", "cost"], metered))
    slowest = [
        [plain(s["run_id"] or s["request_id"]), plain(s["route"]), plain(s["model"]), plain(s["tier"]),
         f"{s['seconds']:.1f} s"]
        for s in document["slowest"]
    ]  # fmt: skip
    found.append(("Slowest", ["run or request", "route", "model", "tier", "took"], slowest))
    return [table for table in found if table[2]]


def plain(value: Any) -> str:
    """Text from a log for a page: one line, printable, bounded."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:80]


def markdown(document: dict[str, Any]) -> str:
    def cell(text: str) -> str:
        return re.sub(r"([\\|*_`\[\]<>])", r"\\\1", text)

    lines = ["# Claude gateway", "", span(document), ""]
    lines += [f"- **{name}**: {value}" for name, value in figures(document)]
    lines += [f"- {cell(hint)}" for hint in document["hints"]]
    lines += ["", cell(document["counted"])]
    for title, columns, rows in tables(document):
        lines += ["", f"## {title}", "", "| " + " | ".join(columns) + " |"]
        lines.append("|" + "|".join([" --- ", *(" ---: " for _ in columns[1:])]) + "|")
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def page(document: dict[str, Any]) -> str:
    """HTML."""
    from kong_claude.report.charts import costs, trends

    e = html.escape
    out = ["<!doctype html><html lang=en><meta charset=utf-8><title>Claude gateway</title>", f"<style>{_CSS}</style>"]
    out.append(f"<h1>Claude gateway</h1><p class=span>{e(span(document))}</p><div class=figures>")
    out += [f"<div><b>{e(value)}</b>{e(name)}</div>" for name, value in figures(document)]
    out.append(f"</div><p class=span>{e(document['counted'])}</p>")
    if document["hints"]:
        out.append("<ul>" + "".join(f"<li>{e(hint)}</li>" for hint in document["hints"]) + "</ul>")
    over_time = trends(document, (9.5, 6.5))
    words = "Cost over time" if document["total"]["requests"] is None else "Requests, refusals and cost over time"
    out.append("<h2>Over time</h2>" + _picture(over_time, words))
    spent = [name for name, series in document["cost_usd_over_time"].items() if series]
    charts = {
        f"By {name}": _picture(costs(document, [name], (9.5, 2.8)), f"Cost by {name} over time") for name in spent
    }
    for title, columns, rows in tables(document):
        out.append(f"<h2>{e(title)}</h2>{charts.get(title, '')}<table><tr>")
        out.append("".join(f"<th>{e(c)}</th>" for c in columns) + "</tr>")
        out += ["<tr>" + "".join(f"<td>{e(c)}</td>" for c in row) + "</tr>" for row in rows]
        out.append("</table>")
    return "\n".join(out) + "</html>\n"


def _picture(figure: Any, words: str) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg")
    return f"<img alt='{words}' src='data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}'>"


def pdf(document: dict[str, Any], path: Path) -> None:
    """A4 pages: figures and trends first, then what was spent on what over time, then the tables."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    from kong_claude.report.charts import BLUE, INK, costs, trends

    with PdfPages(path, metadata={"Title": "Claude gateway", "Creator": "kong-claude"}) as pages:
        first = trends(document, (8.27, 11.69), (0.05, 0.06, 0.9, 0.62))
        first.text(0.07, 0.945, "Claude gateway", fontsize=22, color=INK, weight="bold")
        first.text(0.07, 0.922, span(document), fontsize=10, color="#616e7c")
        for i, (name, value) in enumerate(figures(document)):
            first.text(0.07 + i * 0.148, 0.865, value, fontsize=14, color=BLUE, weight="bold")
            first.text(0.07 + i * 0.148, 0.848, name, fontsize=9, color="#616e7c")
        for i, hint in enumerate(document["hints"][:6]):
            first.text(0.07, 0.81 - i * 0.02, f"\u2022 {hint[:110]}".replace("$", r"\$"), fontsize=9, color=INK)
        for i, row in enumerate(textwrap.wrap(document["counted"], 125)):
            first.text(0.07, 0.04 - i * 0.013, row, fontsize=8, color="#616e7c")
        pages.savefig(first)
        if spent := [name for name, series in document["cost_usd_over_time"].items() if series]:
            pages.savefig(costs(document, spent, (8.27, 11.69)))
        sheet, y = None, 0.0
        for title, columns, rows in tables(document):
            height = 0.06 + 0.022 * len(rows)
            if sheet is None or y - height < 0.05:
                if sheet is not None:
                    pages.savefig(sheet)
                sheet, y = Figure(figsize=(8.27, 11.69)), 0.95
            sheet.text(0.07, y, title, fontsize=12, weight="bold", color=INK)
            _table(sheet, columns, rows, y - 0.026)
            y -= height + 0.02
        if sheet is not None:
            pages.savefig(sheet)


def _table(sheet: Any, columns: list[str], rows: list[list[str]], top: float) -> None:
    # The first column takes what the others leave.
    rest = [max(len(row[i]) for row in [columns, *rows]) for i in range(1, len(columns))]
    share = [min(0.5, 0.0088 * (n + 2)) for n in rest]
    right = [0.93 - sum(share[i + 1 :]) for i in range(len(share))]
    room = int((0.93 - sum(share) - 0.07) / 0.0088)
    for r, row in enumerate([columns, *rows]):
        y = top - 0.022 * r
        style: dict[str, Any] = {"fontsize": 8, "color": "#52606d" if r == 0 else "#1f2933", "parse_math": False}
        name = row[0] if len(row[0]) <= room else row[0][: room - 1] + "…"
        sheet.text(0.07, y, name, **style)
        for x, text in zip(right, row[1:], strict=True):
            sheet.text(x, y, text, ha="right", **style)


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f} s"


def _usd(amount: float | None) -> str:
    """As the dashboard writes it: of what is less than a dollar more."""
    if amount is None:
        return "–"
    return f"${amount:.4f}" if 0 < amount < 1 else f"${amount:,.2f}"


def _short(number: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f} {unit}"
    return f"{number:,}"
