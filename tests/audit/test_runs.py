"""What the log says of a run: by digests what it did and what it left, whatever the run calls itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from claude_contract.rules import Rules, parse_all
from claude_invoker.audit import line, runs
from claude_invoker.audit.line import Entry
from claude_invoker.cli.messages import Heard, HookCall, Said, ToolCall
from claude_invoker.model import Artifact, PermissionAnswer
from claude_invoker.plan import Plan
from claude_invoker.runs.run import MOST_CALLS, Run, digest_of
from claude_invoker.runs.translate import Translator

PLAN = Plan((), None, "sonnet", None, ("Bash",), 3, 1.0, None, None, 60.0)


def run_with(*calls: ToolCall, artifacts: int = 0, path: str = "report.md") -> Run:
    run = Run("run_1", "alice", PLAN, Path("/nowhere"), 60.0, route="route-1", request_id="req-1")
    translator = Translator(run)
    for call in calls:
        translator.take(Said((call,)))
        translator.take(Heard(()))
    run.artifacts = [Artifact(path=path, size=3, type="text/plain", sha256="ab" * 32) for _ in range(artifacts)]
    return run


def test_a_call_is_its_tool_and_the_digest_of_its_input() -> None:
    secret = {"command": "curl -H 'X-Key: s3cret' https://example.com", "b": [1, {"z": None, "a": "ü"}]}
    same = dict(reversed(secret.items()))
    details = runs.ended(run_with(ToolCall("1", "Bash", secret), ToolCall("2", "Bash", same), artifacts=1)).details
    written = json.dumps(secret, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(written).hexdigest()
    assert details["calls"] == [{"tool": "Bash", "input": digest}] * 2, "in whatever order the members came"
    assert details["artifacts"] == [{"path": "report.md", "size": 3, "sha256": "ab" * 32}]
    assert (details["route"], details["request_id"]) == ("route-1", "req-1")
    assert "s3cret" not in json.dumps(details)


async def test_a_decision_says_what_it_was_about_and_what_ran() -> None:
    """By digests: who allows something else than was asked about cannot say afterwards that it was that."""
    rules = (Rules(ask=parse_all(["Bash"])),)
    run = Run("run_1", "alice", replace(PLAN, rules=rules, approval_timeout_s=60), Path("/nowhere"), 60.0)
    entries: list[Entry] = []
    run.permissions.on_decided = lambda decision, given: entries.append(runs.decided(run, decision, given))
    asked, ran = {"command": "make s3cret"}, {"command": "make other"}
    for given in (None, ran):
        await run.permissions.take(HookCall("r", "Bash", asked, "t", None), lambda path: None, lambda answer: None)
        run.permissions.answer(run.permissions.waiting[0].id, PermissionAnswer(decision="allow", input=given), "bob")
    digests = [(entry.details["input"], entry.details["instead"]) for entry in entries]
    assert digests == [(digest_of(asked), None), (digest_of(asked), digest_of(ran))]
    assert [(entry.actor, entry.subject) for entry in entries] == [("bob", "alice")] * 2
    assert "s3cret" not in json.dumps([dict(entry.details) for entry in entries])


def test_a_run_cannot_make_its_entry_too_long_to_be_kept() -> None:
    calls = [ToolCall(str(number), "\U0001f600" * 256, {"n": number}) for number in range(MOST_CALLS + 50)]
    run = run_with(*calls, artifacts=1000, path="\U0001f600" * 1024)
    run.egress = [f"{number:03}.{'a' * 240}:443" for number in range(100)]
    entry = runs.ended(run)
    details = json.loads(line.written(entry, 1, line.BEGIN)[1])["details"]
    assert "too_long_bytes" not in details
    assert len(details["calls"]) == MOST_CALLS and details["calls_in_all"] == MOST_CALLS + 50
    assert len(details["artifacts"]) == runs.MOST_FILES and details["artifacts_in_all"] == 1000
