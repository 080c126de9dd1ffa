"""What the log says that was spent, by whom."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from claude_invoker.audit import cli, person
from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, pairs
from claude_invoker.audit.spent import By, spent, table

NOW = datetime.now(UTC)


def ended(subject: str, usd: float, hours_ago: float = 0, kind: str = "run.end", **more: object) -> Entry:
    details = {"tier": "team", "model": "sonnet", "cost_usd": usd, **more}
    return Entry(kind, subject, subject, details, NOW - timedelta(hours=hours_ago))


ENTRIES = [
    Entry("run.start", "alice", "alice", {"tier": "team", "cost_usd": 100}),  # not yet
    ended("alice", 0.1, 30, repository="org/app"),
    ended("alice", 0.2, 2, repository="org/lib"),
    ended("bob", 0.7, 1, tier="pro"),
    ended("alice", 0.000001, 0, kind="message.end", session="s1"),
    ended("carol", 0.0),
]


@pytest.fixture
def log(tmp_path: Path) -> Log:
    made = Log(tmp_path / "audit", rotate_bytes=700)
    made.open()
    for entry in ENTRIES:
        made.append([entry])
    assert len(pairs(made.directory)) > 1
    return made


def found(log: Log, by: By, hours: float | None = None) -> dict[str, tuple[str, int, int]]:
    rows, unknown = spent([log.directory], by, None if hours is None else NOW - timedelta(hours=hours))
    assert unknown == 0 and [row.usd for row in rows] == sorted((row.usd for row in rows), reverse=True)
    return {row.name: (str(row.usd), row.runs, row.messages) for row in rows}


@pytest.mark.parametrize(
    ("by", "hours", "expected"),
    [
        ("subject", None, {"bob": ("0.7", 1, 0), "alice": ("0.300001", 2, 1), "carol": ("0.0", 1, 0)}),
        ("subject", 3, {"bob": ("0.7", 1, 0), "alice": ("0.200001", 1, 1), "carol": ("0.0", 1, 0)}),
        ("tier", None, {"pro": ("0.7", 1, 0), "team": ("0.300001", 3, 1)}),
        ("repository", None, {"": ("0.700001", 2, 1), "org/lib": ("0.2", 1, 0), "org/app": ("0.1", 1, 0)}),
        ("session", 1.5, {"": ("0.7", 2, 0), "s1": ("0.000001", 0, 1)}),
    ],
)
def test_what_was_spent(log: Log, by: By, hours: float | None, expected: dict[str, tuple[str, int, int]]) -> None:
    assert {name: (Decimal(usd), *more) for name, (usd, *more) in found(log, by, hours).items()} == {
        name: (Decimal(usd), *more) for name, (usd, *more) in expected.items()
    }


def test_a_job_that_was_put_away_is_one_run(tmp_path: Path) -> None:
    made = Log(tmp_path / "audit")
    made.open()
    made.append(
        [ended("alice", 0.1, end="deferred"), ended("alice", 0.2, end="deferred"), ended("alice", 0.3, end="succeeded")]
    )
    assert found(made, "subject") == {"alice": ("0.6", 1, 0)}


def test_what_was_deleted_is_told(log: Log) -> None:
    person.forget(log.directory, "alice", "root")
    rows, unknown = spent([log.directory], "subject")
    assert ([row.name for row in rows], unknown) == (["bob", "carol"], 3)


def test_a_name_moves_nothing_on_a_terminal(tmp_path: Path) -> None:
    made = Log(tmp_path / "audit")
    made.open()
    made.append([ended("\x1b[2Jeve\u202e", 1.5)])
    shown = table(spent([made.directory], "subject")[0], "subject")
    assert "\\u001b[2Jeve\\u202e" in shown and "\x1b" not in shown and "      1.500000" in shown


def test_the_command(log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INVOKER_AUDIT_DIR", str(log.directory))
    assert cli.main(["spent", "--since", "3h"]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.endswith("subject") and first.split()[:3] == ["0.700000", "1", "0"] and first.endswith("bob")
    assert cli.main(["spent", "--by", "tier", "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [(row["name"], row["usd"]) for row in rows] == [("pro", "0.7"), ("team", "0.300001")]
    assert cli.main(["spent", "--store"]) == 2 and "INVOKER_AUDIT_STORE is not set" in capsys.readouterr().err
    assert cli.main(["spent", "--dir", str(log.directory / "none")]) == 2
    assert "none is not there: --dir or INVOKER_AUDIT_DIR" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["spent", "--since", "yesterday"])
    assert "yesterday is no length of time such as 30m" in capsys.readouterr().err
