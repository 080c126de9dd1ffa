"""The table of docs/fail-closed.md: what was counted, and nothing by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.chaos.__main__ import failed
from tests.chaos.table import markdown

ROW: dict[str, Any] = {
    "requests": 1200, "valid_refused": 30, "unauthenticated_passes": 0, "wrong_tenant": 0, "unattested_at_upstream": 0,
    "leaked": 0, "recover_p50_s": 1.234, "recover_max_s": 4.0,
}  # fmt: skip
RELOAD = {
    **ROW,
    "requests": 99,
    "valid_refused": 0,
    "missing_in_metrics": 0,
    "recover_p50_s": 0.0,
    "recover_max_s": 0.0,
}


def test_a_row_for_each_fault_with_both_ways_and_a_sentence_with_the_sums() -> None:
    report = {"hang": ROW, "kong reload": RELOAD, "hang pair": {**ROW, "requests": 800, "recover_max_s": 0.04}}
    first, *table = markdown(report).splitlines()
    assert first.startswith("Of 2,099 requests 0 were served ") and "; 0 leases stayed taken; 0 requests" in first
    assert table[3:] == [
        "| `hang` | 1,200 + 800 | 30 + 30 | 0 | 1.2 s, 4.0 s | 1.2 s, 0.0 s |",
        "| `kong reload` | 99 | 0 | 0 | 0.0 s, 0.0 s |  |",
    ]


@pytest.mark.parametrize("name", ["unauthenticated_passes", "wrong_tenant", "unattested_at_upstream"])
def test_whoever_got_in_is_in_the_table_and_fails_the_command(name: str) -> None:
    report = {"hang": ROW, "hang pair": {**ROW, name: 2}}
    assert markdown(report).startswith("Of 2,400 requests 2 were served")
    assert "| 30 + 30 | 2 |" in markdown(report)
    assert [failed(row) for row in report.values()] == [False, True]


@pytest.mark.parametrize("name", ["leaked", "missing_in_metrics"])
def test_what_stays_behind_fails_the_command(name: str) -> None:
    assert failed({**ROW, name: 1})
    assert re.search(r"\b1 (leases|requests of)", markdown({"hang": {**ROW, name: 1}}))
