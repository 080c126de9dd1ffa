"""The bench of the dashboard, which asserts that each page is there: at as many jobs as its figures are of."""

from __future__ import annotations

import pytest

from bench.dashboard import main


@pytest.mark.slow
async def test_each_page_is_there_at_ten_thousand_jobs() -> None:
    found = await main(10_000, 3)
    pages = ("overview", "jobs", "found", "none", "callers", "older", "charts", "limits", "catalog", "approvals", "job")
    assert set(found) == {f"{page}_ms_{which}" for page in pages for which in ("p50", "p99")} | {"worst_ms_p99"}
