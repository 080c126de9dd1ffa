"""What a run has done is in the log, and the log in its store, when the invoker has ended."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import httpx

from claude_invoker.audit import person, shipping
from claude_invoker.audit.verify import verify
from claude_invoker.store.place import Place
from claude_invoker.store.store import Store
from tests.invoker.conftest import Invoker, tool


def test_the_store_has_what_a_run_has_done(start_invoker: Callable[..., Invoker], tmp_path: Path) -> None:
    place = f"file://{tmp_path}/audit-store"
    invoker = start_invoker(audit_store=place)
    given = {"file_path": "report.md", "content": "# what nobody is to read in a log"}
    with invoker.client() as api:
        answer: httpx.Response = api.post("/invoke", json={"prompt": tool("Write", **given), "tools": ["Write"]})
    assert answer.status_code == 200, answer.text
    invoker.stop()

    async def look() -> None:
        async with shipping.fetched(Store(Place.parse(place), None)) as places:
            (directory,) = places.values()
            assert verify(directory, await shipping.heads_in(Store(Place.parse(place), None))).findings == []
            ends = [row for row in person.export(directory, "developer") if row["kind"] == "run.end"]
            assert [row["details"]["run"] for row in ends] == [answer.headers["x-claude-run"]]
            details = ends[0]["details"]
            assert details["artifacts"] == [
                {
                    "path": "report.md",
                    "size": len(given["content"]),
                    "sha256": hashlib.sha256(given["content"].encode()).hexdigest(),
                }
            ]
            (call,) = details["calls"]
            assert call["tool"] == "Write" and details["calls_in_all"] == 1
            assert "nobody is to read" not in json.dumps(details)

    asyncio.run(look())
