"""The recorded frames of a real Kong 3.9.1 (`lifecycle.jsonl`, `wire/*` of `pdk-calls.jsonl`) against our server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.golden import Probes, frames, probes

DATA = Path(__file__).parents[1] / "conformance" / "data"


def cases() -> Iterator[Any]:
    for name, prefix in (("lifecycle", ""), ("pdk-calls", "wire/")):
        for line in (DATA / f"{name}.jsonl").read_text().splitlines():
            case = json.loads(line)
            if case["id"].startswith(prefix) and any(f["from"] == "kong" for f in frames(case)):
                yield pytest.param(case, id=case["id"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probes]:
    with probes(tmp_path_factory.mktemp("golden")) as running:
        yield running


@pytest.mark.parametrize("case", cases())
def test_recorded_frames(server: Probes, case: dict[str, Any]) -> None:
    assert server.replay(case) is None
