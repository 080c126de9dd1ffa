"""The parts without I/O: command line, environment, plan, outcome, negotiation, the stand-in's script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_contract.claims import Clamp
from claude_contract.destinations import Destination
from claude_contract.features import FEATURES
from claude_contract.features import parse as features_named
from claude_contract.rules import Rules, parse_all
from claude_invoker.api.border import last_event_id
from claude_invoker.api.negotiation import before_json, preferred
from claude_invoker.cli.command import Deadlines, Given, Shape, command, environment
from claude_invoker.cli.messages import Malformed, Result, parse
from claude_invoker.cli.outcome import denials, failure, stop_reason
from claude_invoker.cli.tree import Tree
from claude_invoker.egress.addresses import is_loopback
from claude_invoker.isolation.strength import USE_EGRESS, Boundary, Strength
from claude_invoker.metering.figures import Figures
from claude_invoker.metering.models import permits
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.problem import TITLES, Problem
from claude_invoker.settings import Settings
from kong_claude_local.standin.script import reply_to
from kong_claude_local.standin.server import _input_tokens

CLI = Path("/opt/claude")
SHAPE = Shape(("Read", "Write"), 7, 0.5)


@pytest.mark.parametrize(
    ("shape", "present", "absent"),
    [
        (
            SHAPE,
            ["--tools=Read,Write", "--allowedTools=Read,Write", "--max-turns=7", "--max-budget-usd=0.5"],
            ["--resume"],
        ),
        (
            SHAPE,
            ["--no-session-persistence", "--restricted", "--setting-sources=", "--strict-mcp-config"],
            ["--session-id"],
        ),
        (Shape((), 1, 1.0), ["--tools="], ["--allowedTools"]),
        (
            Shape((), 1, 1.0, session="new"),
            ["--system-prompt-snapshot=off"],
            ["--no-session-persistence", "--continue", "--session-id"],
        ),
        (Shape((), 1, 1.0, session="begun"), ["--continue"], ["--resume", "--session-id"]),
        (Shape((), 1, 1e-05), ["--max-budget-usd=1e-05"], []),
    ],
)
def test_command_line(shape: Shape, present: list[str], absent: list[str]) -> None:
    arguments = command(CLI, shape)
    assert arguments[0] == "/opt/claude"
    assert set(present) <= set(arguments)
    assert not any(argument.startswith(tuple(absent)) for argument in arguments if absent)
    # Each argument is an option with its value in the same word: nothing can be taken for another option.
    assert all(argument.startswith("--") for argument in arguments[1:])


@pytest.mark.parametrize("shell", [None, Path("/t/bin/bash-x")])
def test_the_environment_is_exact(monkeypatch: pytest.MonkeyPatch, shell: Path | None) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    variables = environment(Tree(Path("/t")), "n", Path("/t/api.sock"), 9, Deadlines(2.5, 1), shell, spare=32)
    boundary = (
        {}
        if shell is None
        else {"CLAUDE_CODE_SHELL": str(shell), "CLAUDE_INVOKER_TREE": "/t", "CLAUDE_INVOKER_SPARE": "32"}
        | {"GIT_CONFIG_NOSYSTEM": "1"}
    )
    assert variables == boundary | {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "HOME": "/t/home",
        "CLAUDE_CONFIG_DIR": "/t/config",
        "TMPDIR": "/t/tmp",
        "CLAUDE_CODE_TMPDIR": "/t/tmp",
        "CLAUDE_INVOKER_PROCESS": "n",
        "ANTHROPIC_UNIX_SOCKET": "/t/api.sock",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR": "9",
        "API_TIMEOUT_MS": "2500",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
    }


def test_a_run_that_reaches_hosts_is_told_of_the_filter_and_of_no_way_around_it() -> None:
    given = (Tree(Path("/t")), "n", Path("/t/api.sock"), 9, Deadlines(2.5, 1), Path("/t/bin/bash-x"))
    added = environment(*given, egress=True).items() - environment(*given).items()
    assert dict(added) == {
        "HTTPS_PROXY": "http://127.0.0.1:3128",
        "https_proxy": "http://127.0.0.1:3128",
        "HTTP_PROXY": "http://127.0.0.1:3128",
        "http_proxy": "http://127.0.0.1:3128",
        "NODE_USE_ENV_PROXY": "1",
    }
    shape = Shape(("WebFetch",), 1, 1.0, egress=(Destination("pypi.org"),))
    assert '--settings={"skipWebFetchPreflight":true}' in command(CLI, shape)
    assert not any("--settings=" in argument for argument in command(CLI, Shape(("WebFetch",), 1, 1.0)))
    assert "pypi.org" not in " ".join(command(CLI, shape)), "what a tier opens is in no list of processes"


OPERATOR = Settings(trust="open", models=(), max_turns=25, max_budget_usd=5.0)
MODELS = st.sampled_from(["haiku", "sonnet", "opus", "claude-haiku-4-5", "claude-sonnet-5-5"])
TOOLS = st.sampled_from(["Read", "Write", "Edit", "Bash", "Glob", "WebFetch", "WebSearch", "Task", "Nope"])


@given(
    body=st.fixed_dictionaries(
        {"prompt": st.text(min_size=1)},
        optional={
            "model": MODELS,
            "tools": st.lists(TOOLS, max_size=5),
            "max_turns": st.integers(1, 1000),
            "max_budget_usd": st.floats(0.001, 1000),
            "timeout_s": st.floats(0.1, 80_000),
        },
    ),
    clamp=st.builds(
        Clamp,
        models=st.none() | st.lists(MODELS, max_size=3).map(tuple),
        tools=st.none() | st.lists(TOOLS, max_size=5).map(tuple),
        max_turns=st.none() | st.integers(1, 50),
        max_usd=st.none() | st.floats(0.001, 10),
        egress=st.lists(st.sampled_from([Destination("pypi.org"), Destination("*.npmjs.org")]), max_size=2).map(tuple),
        model=st.none() | MODELS,
        features=st.none() | st.sets(st.sampled_from(FEATURES)).map(features_named),
    ),
    boundary=st.builds(
        Boundary,
        st.sampled_from(Strength),
        commands_below=st.booleans(),
        egress_obstacle=st.sampled_from([None, "not here"]),
    ),
)
def test_nothing_exceeds_a_clamp(body: dict[str, Any], clamp: Clamp, boundary: Boundary) -> None:
    try:
        chosen = plan(InvokeRequest(**body), clamp, OPERATOR, boundary)
    except Problem as problem:
        assert problem.status == 403
        return
    assert permits(clamp.models, chosen.model)
    assert chosen.models == (clamp.models if clamp.model is None else (clamp.model,))
    assert set(chosen.tools) <= set(OPERATOR.tools_allowed) & set(
        clamp.tools if clamp.tools is not None else chosen.tools
    )
    assert not set(chosen.tools) & set(boundary.left_out)
    if clamp.features is not None:
        assert set(chosen.features) <= set(clamp.features)
        assert "WebSearch" not in chosen.tools or "web_search" in clamp.features
    assert ("web_search" in chosen.features) <= ("WebSearch" in chosen.tools)
    assert set(chosen.egress) <= set(clamp.egress)
    assert not chosen.egress or boundary.egress_obstacle is None
    assert chosen.egress or not clamp.egress or not USE_EGRESS.intersection(chosen.tools)
    assert chosen.max_turns <= min(25, clamp.max_turns or 25)
    assert chosen.max_budget_usd <= min(5.0, clamp.max_usd or 5.0)
    assert chosen.total_s <= OPERATOR.total_s
    if "tools" in body:
        assert set(chosen.tools) == set(body["tools"])
    if clamp.model is not None:
        assert chosen.model == clamp.model
        assert chosen.instead_of in (None, body.get("model", chosen.instead_of)) and chosen.instead_of != chosen.model
    elif "model" in body:
        assert chosen.model == body["model"] and chosen.instead_of is None


FEATURED: list[tuple[dict[str, Any], Clamp, tuple[str, ...] | str]] = [
    # what is asked for, what the tier allows → what the run's requests may have, or why it is 403
    ({}, Clamp(), ("context_1m",)),
    ({"tools": ["WebSearch"]}, Clamp(), ("context_1m", "web_search")),
    ({"tools": ["WebSearch"]}, Clamp(features=("fast_mode", "web_search")), ("fast_mode", "web_search")),
    ({"tools": ["Read"]}, Clamp(features=("fast_mode", "web_search")), ("fast_mode",)),
    ({}, Clamp(features=()), ()),
    (
        {"tools": ["WebSearch"]},
        Clamp(features=("fast_mode",)),
        "tools not allowed by the tier at the gateway: WebSearch",
    ),
    ({"model": "sonnet[1m]"}, Clamp(features=("context_1m",)), ("context_1m",)),
    ({"model": "sonnet[1m]"}, Clamp(features=()), "model sonnet[1m] needs context_1m"),
    ({"model": "claude-opus-5-5-fast"}, Clamp(features=("fast_mode",)), ("fast_mode",)),
    ({"model": "claude-opus-5-5-fast"}, Clamp(), "model claude-opus-5-5-fast needs fast_mode"),
]


@pytest.mark.parametrize(("body", "clamp", "expected"), FEATURED)
def test_what_the_runs_requests_may_have(body: dict[str, Any], clamp: Clamp, expected: tuple[str, ...] | str) -> None:
    operator = Settings(trust="open", models=(), tools_allowed=("Read", "WebSearch"))
    if isinstance(expected, str):
        with pytest.raises(Problem) as refused:
            plan(InvokeRequest(prompt="x", **body), clamp, operator, Boundary(Strength.NAMESPACES))
        assert refused.value.status == 403 and str(refused.value.detail).startswith(expected)
    else:
        chosen = plan(InvokeRequest(prompt="x", **body), clamp, operator, Boundary(Strength.NAMESPACES))
        assert chosen.features == expected


def test_a_run_asks_about_what_its_tier_and_its_caller_want() -> None:
    tier, wanted = Rules(parse_all(["Bash"]), four_eyes=True), ["Edit(/src/**)"]
    operator = Settings(trust="open", tools_allowed=("Bash", "Edit", "Read", "Write"), approval_timeout_s=7)
    body = InvokeRequest(prompt="x", tools=["Bash", "Edit", "Read", "Write"], ask=wanted)
    chosen = plan(body, Clamp(rules=tier), operator, Boundary(Strength.NAMESPACES))
    assert chosen.rules == (tier, Rules(ask=parse_all(wanted)))
    assert chosen.asked == ("Bash", "Edit", "Write") and chosen.approval_timeout_s == 7
    plain = plan(InvokeRequest(prompt="x"), Clamp(), operator, Boundary(Strength.NAMESPACES))
    assert plain.rules == () and plain.asked == ()


@pytest.mark.parametrize(
    ("rules", "check", "why"),
    [
        (Rules(parse_all(["Bash"])), "make test", "Bash is asked about"),
        (Rules(deny=parse_all(["Bash(git push:*)"])), "git push", "Bash(git push:*) is denied"),
        (Rules(parse_all(["Bash(git push:*)"])), "make $TARGET", "it cannot be told that it is not Bash(git push:*)"),
        (Rules(parse_all(["Bash"]), allow=parse_all(["Bash(make test)"])), "make test", None),
        (Rules(parse_all(["Edit"])), "make test", None),
        (Rules(), "make $TARGET", None),
    ],
)
def test_a_check_that_would_be_asked_about(rules: Rules, check: str, why: str | None) -> None:
    operator = Settings(trust="open", tools_allowed=("Bash", "Read"))
    body = InvokeRequest(prompt="x", tools=["Read"], check=check)
    if why is None:
        assert plan(body, Clamp(rules=rules), operator, Boundary(Strength.NAMESPACES)).check is not None
        return
    with pytest.raises(Problem) as refused:
        plan(body, Clamp(rules=rules), operator, Boundary(Strength.NAMESPACES))
    assert refused.value.status == 403 and refused.value.detail.endswith(why)


def test_what_is_asked_about_is_not_allowed_at_the_start() -> None:
    words = command(CLI, Shape(("Bash", "Read"), 1, 1.0, asked=("Bash",)))
    assert "--tools=Bash,Read" in words and "--allowedTools=Read" in words
    words = command(CLI, Shape(("Bash",), 1, 1.0, asked=("Bash",)))
    assert not [word for word in words if word.startswith("--allowedTools")]
    given = Given(skills=(Path("/s/pdf"),), agents=(Path("/a/reviewer"),))
    words = command(CLI, Shape(("Read",), 1, 1.0, given=given, asked=("Agent",)))
    assert "--tools=Read,Skill,Agent" in words and "--allowedTools=Read,Skill(catalog:pdf)" in words


CHEAPER: list[tuple[str | None, tuple[str, ...], str, tuple[str, str | None] | None]] = [
    # asked for, allowed by the operator, the gateway's choice → the run's model and what it would have been, or 403
    ("sonnet", (), "haiku", ("haiku", "sonnet")),
    (None, (), "haiku", ("haiku", "sonnet")),  # INVOKER_MODEL
    ("haiku", (), "haiku", ("haiku", None)),
    ("opus", (), "haiku", None),  # not in the tier, whatever is left of the budget
    ("sonnet", ("sonnet",), "haiku", None),  # the operator has no such model
]


@pytest.mark.parametrize(("asked", "models", "instead", "expected"), CHEAPER)
def test_where_the_budget_is_used_up_the_gateways_model_runs(
    asked: str | None, models: tuple[str, ...], instead: str, expected: tuple[str, str | None] | None
) -> None:
    request = InvokeRequest(prompt="x", model=asked)
    clamp = Clamp(("haiku", "sonnet"), model=instead)
    operator = Settings(trust="open", models=models)
    if expected is None:
        with pytest.raises(Problem) as refused:
            plan(request, clamp, operator, Boundary(Strength.LANDLOCK))
        assert refused.value.status == 403
        return
    chosen = plan(request, clamp, operator, Boundary(Strength.LANDLOCK))
    assert (chosen.model, chosen.instead_of) == expected and chosen.models == (instead,)


@pytest.mark.parametrize(
    ("allowed", "model", "expected"),
    [
        (None, "anything", True),
        ((), "haiku", False),
        (("haiku",), "haiku", True),
        (("haiku",), "claude-haiku-4-5-20251001", True),
        (("haiku",), "claude-haikuish-1", False),
        (("claude-haiku-4-5",), "claude-haiku-4-5-20251001", True),
        (("claude-haiku-4-5",), "claude-haiku-4-5-evil", False),
        (("claude-haiku-4",), "claude-haiku-4-5", False),
        (("claude-haiku-4-5",), "haiku", False),
        (("sonnet",), "claude-opus-5-5", False),
    ],
)
def test_names_of_models(allowed: tuple[str, ...] | None, model: str, expected: bool) -> None:
    assert permits(allowed, model) is expected


@pytest.mark.parametrize(
    ("result", "grant", "expected"),
    [
        ({"subtype": "success", "is_error": False}, {}, None),
        ({"subtype": "error_max_turns", "is_error": True}, {}, None),
        ({"subtype": "error_max_budget_usd", "is_error": True}, {}, None),
        ({"subtype": "success", "is_error": True, "stop_reason": "refusal"}, {}, None),
        ({"subtype": "success", "is_error": True, "api_error_status": 401}, {}, (502, "api-auth")),
        ({"subtype": "success", "is_error": True, "api_error_status": 403}, {"refused": "x"}, (403, "forbidden")),
        (
            {"subtype": "success", "is_error": True, "api_error_status": 429},
            {"retry_after": "7"},
            (503, "api-overloaded"),
        ),
        ({"subtype": "success", "is_error": True, "api_error_status": 529}, {}, (503, "api-overloaded")),
        ({"subtype": "success", "is_error": True, "api_error_status": 400}, {}, (422, "prompt-rejected")),
        ({"subtype": "success", "is_error": True, "result": "Prompt is too long"}, {}, (422, "prompt-rejected")),
        ({"subtype": "success", "is_error": True, "api_error_status": 500}, {}, (502, "api-error")),
        (
            {"subtype": "success", "is_error": True, "api_error_status": 502},
            {"unreachable": True},
            (504, "api-unreachable"),
        ),
        ({"subtype": "success", "is_error": True, "api_error_status": None}, {}, (504, "api-unreachable")),
        ({"subtype": "error_during_execution", "is_error": True, "errors": ["x"]}, {}, (502, "cli-failed")),
    ],
)
def test_outcomes(result: dict[str, Any], grant: dict[str, Any], expected: tuple[int, str] | None) -> None:
    problem = failure(Result.model_validate(result), Figures(**grant))
    assert (problem and (problem.status, problem.kind)) == expected
    if problem:
        assert problem.kind in TITLES
        if problem.kind == "api-overloaded":
            assert problem.headers["Retry-After"] == (grant.get("retry_after") or "5")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["usage", "permission_denials", "stop_reason", "subtype", "is_error", "result", "errors", "total_cost_usd"]
        ),
        JSON,
    )
)
@settings(max_examples=50)
def test_a_strange_result_is_no_crash(document: dict[str, Any]) -> None:
    try:
        result = parse(orjson.dumps({"subtype": "success"} | document | {"type": "result"}))
    except (Malformed, TypeError):  # TypeError: an integer of more than 64 bits, which we do not write
        return
    assert isinstance(result, Result)
    failure(result, Figures())
    assert stop_reason(result, Figures())
    assert denials(result) is not None
    assert 0 <= result.used.costUSD < float("inf")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/problem+json, application/json", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("application/json, text/event-stream;q=0.5", "application/json"),
        ("application/json;q=0.1, application/pdf", "application/pdf"),
        ("TEXT/Event-Stream", "text/event-stream"),
        ("nonsense, ;;q=x, a/b;q=zero", "application/json"),
        ("image/*", "image/*"),
        ("application/json;q=0, */*", "text/event-stream"),
        ("application/json; q=0.0, *", "text/event-stream"),
        ("application/json;q=0, */*;q=0.1, application/pdf", "application/pdf"),
        ("application/json;q=0, application/json", "application/json"),
        ("application/*;q=0, */*", "text/event-stream"),
    ],
)
def test_negotiation(accept: str | None, expected: str) -> None:
    assert preferred(accept) == expected


@pytest.mark.parametrize(
    ("accept", "kinds"),
    [
        (None, ()),
        ("*/*", ()),
        ("application/json, application/pdf", ()),
        ("application/json, application/*+json", ()),
        ("text/html, image/gif, image/jpeg, */*; q=0.2", ("text/html", "image/gif", "image/jpeg")),
        ("image/png;q=0.5, application/pdf, application/json;q=0.1", ("application/pdf", "image/png")),
        ("application/pdf;q=0, image/svg+xml", ("image/svg+xml",)),
        ("application/pdf, */*;q=0.9, image/png;q=0.5", ("application/pdf",)),
        ("nonsense, ;;, q=1", ()),
    ],
)
def test_what_a_client_likes_more_than_json(accept: str | None, kinds: tuple[str, ...]) -> None:
    assert before_json(accept) == kinds


@given(st.text())
def test_negotiation_never_fails(text: str) -> None:
    assert "/" in preferred(text)
    assert last_event_id(text) >= 0


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_settings_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from-a-file\n")
    (tmp_path / "key").chmod(0o400)
    monkeypatch.setenv("INVOKER_WEBHOOK_SECRET_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("INVOKER_TOOLS", "Read, Glob,")
    found = Settings()
    assert found.webhook_secret is not None
    assert found.webhook_secret.get_secret_value() == "from-a-file"
    assert "from-a-file" not in repr(found)
    assert found.tools == ("Read", "Glob")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def result_of(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": text}]}


def test_the_stand_ins_script() -> None:
    script = '[[tool Read {"a": "]]"}]] [[tool Bash {"b": 2}]]'
    first = reply_to({"messages": [user(script)]})
    assert first.tools == (("Read", {"a": "]]"}),) and first.stop_reason == "tool_use"
    second = reply_to({"messages": [user(script), result_of("one")]})
    assert second.tools == (("Bash", {"b": 2}),)
    both = script.replace("[[tool Bash", "[[beside Bash")
    assert reply_to({"messages": [user(both)]}).tools == (*first.tools, *second.tools)
    assert reply_to({"messages": [user(both), result_of("one"), result_of("two")]}).text.endswith("two")
    last = reply_to({"messages": [user(script), result_of("one"), result_of("two")]})
    assert last.tools == () and last.text == "Tool results:\none\n---\ntwo"
    assert reply_to({"messages": [user("[[say a b]] c")]}).text == "a b"
    assert reply_to({"messages": [user("[[status 529]]")]}).error_type == "overloaded_error"
    assert len(reply_to({"messages": [user("[[large 1000]]")]}).text) == 1000
    assert reply_to({"messages": [user("<system-reminder>[[hang]]"), user("x")]}).hang is False


def test_the_stand_in_does_what_a_skill_says_where_it_is_told() -> None:
    """A step that no skill has is a tool that nobody has."""
    text = "Base directory for this skill: /s\n```bash\nfirst\n```\nthen\n```bash\nsecond\n```\n```bash\nthird\n```\n"
    launched = {"role": "user", "content": [*result_of("Launching")["content"], {"type": "text", "text": text}]}
    done = [result_of("done")] * 5

    def calls(script: str) -> list[Any]:
        turns = [[user(script)], *([user(script), launched, *done[:number]] for number in range(6))]
        replies = [next(iter(reply_to({"messages": messages}).tools), None) for messages in turns]
        return [each and (each[1].get("command") or each[0]).strip() for each in replies]

    middle = '[[tool Write {"a": 1}]]'
    assert calls(f"[[skill x]] {middle}") == ["Skill", "Write", "first", "second", "third", None, None]
    assert calls(f"[[skill x]] [[step]] {middle} [[step]]") == [
        "Skill",
        "first",
        "Write",
        "second",
        "third",
        None,
        None,
    ]
    assert calls("[[skill x]]" + "[[step]]" * 4) == ["Skill", "first", "second", "third", "", None, None]


@given(JSON)
def test_the_stand_in_answers_anything(messages: Any) -> None:
    reply_to({"messages": messages if isinstance(messages, list) else [messages]})
    reply_to({"messages": [user(json.dumps(messages))]})


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_the_stand_in_counts_no_less_than_it_charges(fresh: int, cached: int, scripted: bool) -> None:
    """As the API, whose count is a bound of what a request is billed: a script of 5,000 tokens was counted as 2,300."""
    usage = {"input_tokens": fresh, "cache_read_input_tokens": cached}
    body = {"messages": [{"role": "user", "content": f"[[usage {json.dumps(usage)}]]" if scripted else "hi"}]}
    assert _input_tokens(body, 400) == (max(1, fresh + cached) if scripted else 100)
