"""The recordings of a real Kong, replayed. The cases with real processes take longer: `make conformance`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.match import match

ROOT = Path(__file__).parents[2]


def _replay(out: Path, *options: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance", "-v", "--out", str(out), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert out.exists(), done.stderr
    summary: dict[str, dict[str, Any]] = json.loads(out.read_text())
    failed = {name for found in summary.values() for name in found["failed_ids"]}
    assert not failed, done.stdout
    return summary


@pytest.mark.xdist_group("conformance")
@pytest.mark.parametrize("name", ["schema-validation", "pdk-phase-matrix", "pdk-calls", "http-behaviour"])
def test_recorded_cases(name: str, tmp_path: Path) -> None:
    summary = _replay(tmp_path / "out.json", "--file", name)
    rows = (ROOT / "tests" / "conformance" / "data" / f"{name}.jsonl").read_text().splitlines()
    assert summary[f"{name}.jsonl"]["total"] == len(rows)


@pytest.mark.xdist_group("conformance")
def test_recorded_lifecycles_in_short(tmp_path: Path) -> None:
    kinds = ("dump/", "serverpid/", "conn/", "noserver/", "instance/lost", "instance/reload")
    options = [option for kind in kinds for option in ("--only", kind)]
    summary = _replay(tmp_path / "out.json", "--file", "lifecycle", *options)
    assert summary["lifecycle.jsonl"]["passed"] == summary["lifecycle.jsonl"]["total"]


@pytest.mark.xdist_group("conformance")
def test_what_was_tried_beside_the_recording(tmp_path: Path) -> None:
    tried = Path(__file__).with_name("tried")
    summary = _replay(tmp_path / "out.json", str(tried))
    rows = sum(len(file.read_text().splitlines()) for file in tried.glob("*.jsonl"))
    assert sum(found["passed"] for found in summary.values()) == rows > 100


@pytest.mark.slow
def test_every_recorded_case(tmp_path: Path) -> None:
    summary = _replay(tmp_path / "out.json")
    assert sum(int(str(found["passed"])) for found in summary.values()) > 1200


def test_a_replay_can_fail(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    source = ROOT / "tests" / "conformance" / "data"
    row = (source / "schema-validation.jsonl").read_text().splitlines()[0]
    wrong = row.replace('"s_def": "dflt"', '"s_def": "other"').replace('"s_def":"dflt"', '"s_def":"other"')
    assert wrong != row
    (data / "schema-validation.jsonl").write_text(wrong + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "tests.conformance", str(data), "--out", str(tmp_path / "out.json")],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert json.loads((tmp_path / "out.json").read_text())["schema-validation.jsonl"] == {
        "passed": 0,
        "total": 1,
        "failed_ids": [json.loads(row)["id"]],
    }


@pytest.mark.parametrize(
    ("got", "want", "same"),
    [
        (1, 1, True),
        (1, 1.0, False),
        (True, 1, False),
        ({"a": 1}, {"a": {"$volatile": 7}}, True),
        ("x", {"$volatile": 7}, False),
        ('{"a": [1]}', {"$json_string": {"a": [1]}}, True),
        ("id " + "0" * 32, "id {{request_id:2}}", True),
        ("id 0", "id {{request_id}}", False),
        ([1], [1, 2], False),
        ([], {}, False),
    ],
)
def test_match(got: object, want: object, same: bool) -> None:
    assert match(got, want) is same
