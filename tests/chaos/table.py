"""The table of docs/fail-closed.md, from what `python -m tests.chaos` has counted on a real Kong."""

from __future__ import annotations

from collections.abc import Mapping

Row = Mapping[str, float]
_SERVED = ("unauthenticated_passes", "wrong_tenant", "unattested_at_upstream")
PAIR = " pair"
"""Ends the name of a row that was counted with the pair."""


def markdown(report: Mapping[str, Row]) -> str:
    """Who of whom got in, and one row for each fault: by single calls, and after a `+` by the pair."""
    lines = [
        _total(report),
        "",
        "| injected | requests | valid ones refused | invalid ones served | recovery, single calls | pair |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report.items():
        if not name.endswith(PAIR):
            pair = report.get(name + PAIR)
            both = [row] if pair is None else [row, pair]
            counts = [_sum(both, "requests"), _sum(both, "valid_refused"), f"{sum(map(_in, both)):,}"]
            lines.append(f"| `{name}` | {' | '.join(counts)} | {_recovery(row)} | {_recovery(pair)} |")
    return "\n".join(lines)


def _total(report: Mapping[str, Row]) -> str:
    requests = sum(int(row["requests"]) for row in report.values())
    got_in = sum(map(_in, report.values()))
    left, missing = (int(sum(row.get(name, 0) for row in report.values())) for name in ("leaked", "missing_in_metrics"))
    return (
        f"Of {requests:,} requests {got_in:,} were served to somebody without a valid token, reached another tenant's "
        f"route or an upstream unattested; {left:,} leases stayed taken; {missing:,} requests of the reloads are missing in "
        "`/claude/metrics`."
    )


def _in(row: Row) -> int:
    return int(sum(row.get(name, 0) for name in _SERVED))


def _sum(rows: list[Row], name: str) -> str:
    return " + ".join(f"{int(row[name]):,}" for row in rows)


def _recovery(row: Row | None) -> str:
    return "" if row is None else f"{row['recover_p50_s']:.1f} s, {row['recover_max_s']:.1f} s"
