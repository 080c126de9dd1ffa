"""Which skills a run has, and what is refused: the decision by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from claude_contract.claims import Clamp
from claude_contract.destinations import parse
from claude_invoker.catalog.catalog import Catalog
from claude_invoker.catalog.entry import Entry, Needs
from claude_invoker.cli.command import NOTHING, Given, Shape, command
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import Plan, plan
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings

KEY = SecretStr("k" * 32)
SETTINGS = Settings(attestation_key=KEY)
HOLDS = Boundary(Strength.NAMESPACES, egress_obstacle=None)
ALL = ("Read", "Write", "Edit", "Glob", "Grep", "Bash")


def skill(name: str, *tools: str, hosts: tuple[str, ...] = ()) -> Entry:
    return Entry("skill", name, name, Needs(tools, tuple(map(parse, hosts))), (), "", name)


def agent(name: str, *tools: str, model: str | None = None) -> Entry:
    return Entry("agent", name, name, Needs(tools, model=model), (), "", name)


CATALOG = Catalog(
    (
        skill("words"),
        skill("pdf", "Bash", "Read"),
        skill("fetch", "Bash", hosts=("pypi.org",)),
        skill("broken"),
        agent("reviewer", "Read", model="haiku"),
        agent("worker", "Bash"),
        agent("reader", model="sonnet[1m]"),
    ),
    obstacles={("skill", "broken"): "it needs the program x, which is not installed"},
)
SKILLS = ("broken", "fetch", "gone", "pdf", "words")


def decide(body: dict[str, Any], boundary: Boundary = HOLDS, **clamp: Any) -> Plan:
    given = {"skills": SKILLS, "agents": ("gone", "reader", "reviewer", "worker"), "tools": ALL} | clamp
    return plan(InvokeRequest(prompt="x", **body), Clamp(**given), SETTINGS, boundary, catalog=CATALOG)


USUAL = ("Read", "Write", "Edit", "Glob", "Grep")


@pytest.mark.parametrize(
    ("body", "clamp", "skills", "tools"),
    [
        ({}, {}, (), USUAL),
        ({"skills": []}, {"default_skills": ("pdf",)}, (), USUAL),
        ({}, {"default_skills": ("words",)}, ("words",), USUAL),
        ({}, {"default_skills": ("pdf",)}, ("pdf",), (*USUAL, "Bash")),
        ({"tools": ["Read"]}, {"default_skills": ("pdf", "words")}, ("words",), ("Read",)),
        ({"tools": ["Read", "Bash"]}, {"default_skills": ("pdf", "words")}, ("pdf", "words"), ("Bash", "Read")),
        ({"skills": ["words", "pdf", "words"]}, {}, ("pdf", "words"), (*USUAL, "Bash")),
        ({"skills": ["pdf"], "tools": ["Read", "Bash"]}, {}, ("pdf",), ("Bash", "Read")),
        ({"skills": ["fetch"]}, {"egress": (parse("pypi.org"),)}, ("fetch",), (*USUAL, "Bash")),
        ({"skills": ["words"]}, {"tools": ()}, ("words",), ()),
    ],
)
def test_a_run_has_what_it_asks_for(
    body: dict[str, Any], clamp: dict[str, Any], skills: tuple[str, ...], tools: tuple[str, ...]
) -> None:
    found = decide(body, **clamp)
    assert (found.skills, found.tools) == (skills, tools)


@pytest.mark.parametrize(
    ("body", "clamp", "status", "says"),
    [
        ({"skills": ["pdf"]}, {"skills": ()}, 403, "skills not allowed by the tier at the gateway: pdf; allowed: none"),
        ({"skills": ["pdf", "words"]}, {"skills": ("words",)}, 403, "at the gateway: pdf; allowed: words"),
        ({"skills": ["gone"]}, {}, 403, "there is no skill gone in this invoker's catalog (INVOKER_CATALOG)"),
        ({"skills": ["broken"]}, {}, 403, "skill broken cannot be used here: it needs the program x"),
        (
            {"skills": ["pdf"]},
            {"tools": USUAL},
            403,
            "skill pdf needs the tool Bash, which is not allowed; allowed: Read, W",
        ),
        ({"skills": ["pdf"], "tools": ["Read"]}, {}, 422, "skill pdf needs the tool Bash: name it among tools, too"),
        ({"skills": ["fetch"]}, {}, 403, "skill fetch needs the host pypi.org, which is not open (egress); open: none"),
        ({"skills": ["fetch"]}, {"egress": (parse("npmjs.org"),)}, 403, "not open (egress); open: npmjs.org"),
        ({}, {"default_skills": ("pdf",), "tools": USUAL}, 403, "skill pdf needs the tool Bash"),
        ({}, {"default_skills": ("pdf",), "skills": ()}, 403, "not allowed by the tier at the gateway: pdf"),
    ],
)
def test_what_is_refused_names_the_need(body: dict[str, Any], clamp: dict[str, Any], status: int, says: str) -> None:
    with pytest.raises(Problem) as refused:
        decide(body, **clamp)
    assert refused.value.status == status and says in str(refused.value.detail)
    assert refused.value.kind == {403: "forbidden", 422: "invalid"}[status]


def test_agents_come_with_their_tools_and_models() -> None:
    assert decide({}).agents == ()
    found = decide({"agents": ["worker", "reviewer"]})
    assert (found.agents, found.tools) == (("reviewer", "worker"), (*USUAL, "Bash"))
    assert decide({"agents": ["reviewer"]}, models=("sonnet", "haiku")).agents == ("reviewer",)


def test_the_tool_that_calls_agents_is_asked_about_where_there_are_any() -> None:
    assert decide({"agents": ["reviewer"], "ask": ["Agent"]}).asked == ("Agent",)
    assert decide({"ask": ["Agent"]}).asked == ()
    assert decide({"agents": ["reviewer"], "ask": ["Bash"]}).asked == ()


@pytest.mark.parametrize(
    ("body", "clamp", "says"),
    [
        (
            {"agents": ["reviewer"]},
            {"agents": ()},
            "agents not allowed by the tier at the gateway: reviewer; allowed: none",
        ),
        ({"agents": ["gone"]}, {}, "there is no agent gone in this invoker's catalog"),
        (
            {"agents": ["worker"]},
            {"tools": ("Read",)},
            "agent worker needs the tool Bash, which is not allowed; allowed: Read",
        ),
        (
            {"agents": ["reviewer"]},
            {"models": ("sonnet",)},
            "agent reviewer needs the model haiku, which is not allowed",
        ),
        # The budget is used up: there is one model for everything.
        ({"agents": ["reviewer"]}, {"model": "sonnet"}, "agent reviewer needs the model haiku, which is not allowed"),
        # A model that costs more than its price is a matter of the tier's features.
        ({"agents": ["reader"]}, {"features": ()}, "agent reader needs the model sonnet[1m], which is not allowed"),
        ({"agents": ["pdf"]}, {}, "agents not allowed by the tier at the gateway: pdf"),
        ({"skills": ["reviewer"]}, {}, "skills not allowed by the tier at the gateway: reviewer"),
    ],
)
def test_an_agent_that_is_refused_says_why(body: dict[str, Any], clamp: dict[str, Any], says: str) -> None:
    with pytest.raises(Problem) as refused:
        decide(body, **clamp)
    assert (refused.value.status, refused.value.kind) == (403, "forbidden") and says in str(refused.value.detail)


def test_where_no_run_may_have_commands_a_skill_that_needs_them_is_refused() -> None:
    with pytest.raises(Problem, match="no run of this invoker may have Bash"):
        decide({"skills": ["pdf"]}, Boundary(Strength.NONE))


@pytest.mark.parametrize(
    "name", ["PDF", "catalog:pdf", "*", "../pdf", "", "pdf ", "pdf\n", "-pdf", "pdf-", "p--f", "é", "x" * 65]
)
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(ValidationError):
        InvokeRequest(prompt="x", skills=[name])


NAMES = st.lists(st.sampled_from(("words", "pdf", "fetch", "broken", "gone", "never")), max_size=4)


@given(NAMES | st.none(), NAMES, NAMES, st.none() | st.lists(st.sampled_from((*ALL, "WebFetch")), max_size=6))
def test_no_body_widens_what_its_tier_allows(
    asked: list[str] | None, allowed: list[str], default: list[str], tools: list[str] | None
) -> None:
    body = {"skills": asked, "tools": tools}
    clamp: dict[str, Any] = {"skills": tuple(allowed), "default_skills": tuple(default), "tools": ("Read", "Bash")}
    try:
        found = decide({name: value for name, value in body.items() if value is not None}, **clamp)
    except Problem as problem:
        assert problem.status in (403, 422)
        return
    assert set(found.skills) <= set(allowed) & set(default if asked is None else asked) & CATALOG.of("skill").keys()
    assert set(found.tools) <= {"Read", "Bash"}
    assert all(set(CATALOG.of("skill")[name].needs.tools) <= set(found.tools) for name in found.skills)


def test_the_tool_comes_with_skills_only() -> None:
    with pytest.raises(ValidationError, match="Skill is no tool by itself"):
        Settings(attestation_key=KEY, tools_allowed=("Read", "Skill"))
    with pytest.raises(Problem, match="tools not allowed by"):
        decide({"tools": ["Skill"]}, tools=("Skill",))


def test_the_command_line_names_them_and_no_others() -> None:
    folders = (Path("/c/pdf"), Path("/c/words"))
    arguments = command(Path("/cli"), Shape(("Read",), 1, 1.0, given=Given(folders, (), Path("/c/.libraries"))))
    assert {"--tools=Read,Skill", "--allowedTools=Read,Skill(catalog:pdf),Skill(catalog:words)"} <= set(arguments)
    assert [each for each in arguments if each.startswith(("--plugin-dir", "--add-dir"))] == [
        *("--plugin-dir=/c/pdf", "--plugin-dir=/c/words"),
        *("--add-dir=/c/pdf", "--add-dir=/c/words"),
    ]
    assert "--disable-slash-commands" not in arguments
    assert any('"disableBundledSkills":true' in each for each in arguments)
    assert all(each.startswith("--") for each in arguments[1:])
    arguments = command(Path("/cli"), Shape(("Read",), 1, 1.0, given=Given((), (Path("/c/.agents/reviewer"),))))
    assert {"--tools=Read,Agent", "--allowedTools=Read,Agent(catalog:reviewer)", "--disable-slash-commands"} <= set(
        arguments
    )
    assert "--plugin-dir=/c/.agents/reviewer" in arguments and not any("--add-dir" in each for each in arguments)
    plain = command(Path("/cli"), Shape(("Read",), 1, 1.0, given=NOTHING))
    assert "--disable-slash-commands" in plain and not any("Skill" in each for each in plain)
