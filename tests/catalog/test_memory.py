"""What runs remember: in a real Redis, by the real CLI, and of one caller never in another's run."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from claude_contract.identity import Identity
from claude_invoker.caller import Caller
from claude_invoker.mcp import memory
from claude_invoker.mcp.memory import Memories, MemoryServer, Remembered, owner_of, ranked
from claude_invoker.mcp.relay import Failed, Message
from tests.interop.deployments import started
from tests.invoker.conftest import Invoker, as_root, tool
from tests.jobs.conftest import SECRET
from tests.rate_tiers.servers import RedisProcess
from tests.replicas.test_replicas import client

MONTH = 30 * 24 * 3600


@pytest.fixture
async def memories(redis_server: RedisProcess) -> AsyncIterator[Memories]:
    found = Memories(redis_server.url, MONTH)
    yield found
    await found.close()


async def call(server: MemoryServer, tool: str, **arguments: Any) -> Any:
    answer: Message = await server.call(tool, arguments)
    [block] = answer["content"]
    return (block["text"], True) if answer["isError"] else json.loads(block["text"])


async def test_what_is_remembered_is_recalled_forgotten_and_exported(memories: Memories) -> None:
    alice, bob = MemoryServer(memories, "alice"), MemoryServer(memories, "bob")
    first = await call(alice, "remember", text="Reports are in English.", tags=["reports"])
    await call(alice, "remember", text="Week 48: 1,234 requests, twice as many as in week 47.")
    await call(bob, "remember", text="Reports are in French.")
    found = await call(alice, "recall", query="which language have REPORTS?")
    assert [each["text"] for each in found] == ["Reports are in English."] and found[0]["tags"] == ["reports"]
    assert [each["text"][:7] for each in await call(alice, "recall", limit=1)] == ["Week 48"]
    assert await call(alice, "recall", query="nothing of that") == []
    assert len(await call(alice, "export")) == 2
    other = (await call(bob, "export"))[0]["id"]
    assert await call(alice, "forget", id=other) == {"forgotten": 0}, "it is another's"
    assert await call(alice, "forget", id=first["id"]) == {"forgotten": 1}
    assert (await call(alice, "forget"))["forgotten"] == 0
    assert await call(alice, "forget", all=True) == {"forgotten": 1}
    assert await call(alice, "export") == [] and len(await call(bob, "export")) == 1


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("remember", {}),
        ("remember", {"text": ""}),
        ("remember", {"text": "x" * (memory.MAX_TEXT + 1)}),
        ("remember", {"text": "x", "tags": ["t"] * 17}),
        ("remember", {"text": "x", "owner": "bob"}),
        ("recall", {"query": "x", "subject": "bob"}),
        ("recall", {"limit": 1000}),
        ("export", {"of": "bob"}),
        ("forget", {"id": ["x"]}),
        ("drop", {}),
    ],
)
async def test_other_arguments_are_an_error(memories: Memories, tool: str, arguments: dict[str, Any]) -> None:
    said, is_error = await call(MemoryServer(memories, "alice"), tool, **arguments)
    assert is_error and said.startswith(tool)


async def test_a_memory_is_bounded(memories: Memories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_ENTRIES", 3)
    server = MemoryServer(memories, "bounded")
    said = [await call(server, "remember", text=f"fact {number}") for number in range(5)]
    assert [each.get("forgotten_for_it", 0) for each in said] == [0, 0, 0, 1, 1]
    assert [each["text"] for each in await call(server, "export")] == ["fact 2", "fact 3", "fact 4"]
    monkeypatch.setattr(memory, "MAX_BYTES", 3 * 4096)
    await call(server, "remember", text="x" * 4096)
    assert (await call(server, "remember", text="y" * 4096))["forgotten_for_it"] >= 1
    assert sum(len(each["text"]) for each in await call(server, "export")) <= 3 * 4096
    monkeypatch.setattr(memory, "MAX_BYTES", 10)
    assert (await call(server, "remember", text="more than there may be"))["forgotten_for_it"] >= 1
    assert await call(server, "export") == []


async def test_what_is_old_goes(redis_server: RedisProcess) -> None:
    now = time.time()
    clock = [now - 200]
    memories = Memories(redis_server.url, 100, lambda: clock[0])
    server = MemoryServer(memories, "old")
    assert (await call(server, "remember", text="long ago"))["forgotten_for_it"] == 1
    clock[0] = now - 50
    await call(server, "remember", text="lately")
    assert [each["text"] for each in await call(server, "export")] == ["lately"]
    clock[0] = now + 60
    assert await call(server, "export") == []
    await memories.close()
    held: Any = redis.Redis.from_url(redis_server.url)
    keys = list(held.scan_iter("claude:*memory:*"))
    assert keys and all(0 < held.ttl(key) <= MONTH for key in keys)
    assert not any(b"old" in key for key in keys), "nobody's name is in a key"


async def test_without_redis_it_is_said() -> None:
    memories = Memories("redis://127.0.0.1:9/0", MONTH)
    with pytest.raises(Failed, match="cannot be had now: ConnectionError"):
        await call(MemoryServer(memories, "alice"), "export")
    await memories.close()


WORDS = st.lists(st.sampled_from(["red", "blue", "green", "Grün", "a-b"]), max_size=4).map(" ".join)


@given(st.lists(WORDS, max_size=8), WORDS, st.integers(1, 5))
def test_what_has_more_of_the_words_comes_first(texts: list[str], query: str, limit: int) -> None:
    entries = [Remembered(f"{number:013d}", text) for number, text in enumerate(texts)]
    found = ranked(entries, query, limit)
    assert len(found) <= limit and len(set(found)) == len(found)
    if query:
        asked = set(query.casefold().replace("-", " ").split())
        scores = [len(asked & set(each.text.casefold().replace("-", " ").split())) for each in found]
        assert scores == sorted(scores, reverse=True) and 0 not in scores
        assert len(found) == min(limit, sum(bool(asked & set(t.casefold().replace("-", " ").split())) for t in texts))
    else:
        assert found == entries[::-1][:limit]


def test_whose_memory_it_is() -> None:
    def owner(subject: str, claim: str | None = "team", **claims: Any) -> str:
        return owner_of(Caller(subject, claims=Identity(subject, claims=claims).claims), claim)

    assert owner("alice", team="core") == owner("bob", team="core") != owner("alice", team="edge")
    assert owner("alice", None, team="core") == owner("alice", None, team="edge") == owner("alice")
    different = [
        owner("alice"),
        owner("claim:team:core"),
        owner("x", team="core"),
        owner("x", team=["core"]),
        owner("x", team=""),
    ]
    assert len(set(different)) == 4, "a list and an empty text are no team"


@pytest.mark.parametrize("claims", [{}, {"team": "core"}])
def test_another_issuers_people_and_teams_have_other_memories(claims: dict[str, Any]) -> None:
    def owner(issuer: str) -> str:
        return owner_of(Caller("alice", issuer=issuer, claims=claims), "team")

    assert owner("https://a.example") == owner("https://a.example") != owner("https://b.example")


# --- by the real CLI -------------------------------------------------------------------------------------------------

CLAMP = {"clamp": {"mcp": ["memory"], "skills": ["memory"]}}


@pytest.fixture(scope="module")
def invoker(start_invoker: Callable[..., Invoker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Invoker]:
    server = started()  # no other test's: its worker would run their jobs
    catalog = tmp_path_factory.mktemp("catalog")
    (catalog / "mcp").mkdir()
    mine = {"name": "mine", "description": "x", "tools": ["x"], "url": "http://127.0.0.1:9/mcp", "credential": "caller"}
    (catalog / "mcp/mine.json").write_text(json.dumps(mine))
    found = start_invoker(
        attestation_key=SECRET,
        trust="attested",
        redis_url=server.url,
        required_checks_run="jwt-claims",
        memory_claim="team",
        catalog=catalog,
    )
    yield found
    found.stop()
    server.close()


@pytest.fixture
def alice(invoker: Invoker) -> Iterator[httpx.Client]:
    with client(invoker, "alice", **CLAMP) as api:
        yield api


def run(api: httpx.Client, prompt: str, **more: Any) -> str:
    answer = api.post("/claude/invoke", json={"prompt": prompt, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["result"])


@as_root
@pytest.mark.xdist_group("catalog")
def test_the_skill_keeps_and_finds_by_its_own_text(alice: httpx.Client) -> None:
    """The stand-in calls what it finds in the SKILL.md that came over the API: recall, then remember."""
    assert "Tool results:" in run(alice, "[[skill memory]]", skills=["memory"])
    found = run(alice, "[[skill memory]]", skills=["memory"])
    assert "Decision of week 48: reports are in English" in found.partition("---")[2]
    assert "No such tool" not in found and "error" not in found.lower()


@as_root
@pytest.mark.xdist_group("catalog")
def test_nobodys_memory_is_in_anothers_answer(invoker: Invoker, alice: httpx.Client) -> None:
    run(alice, tool("mcp__memory__remember", text="the secret of alice"), mcp=["memory"])
    everything = tool("mcp__memory__export") + tool("mcp__memory__recall", query="secret of alice")
    assert run(alice, everything, mcp=["memory"]).count("the secret of alice") == 2
    other = tool("mcp__memory__export", owner="alice") + tool("mcp__memory__forget", all=True)
    with client(invoker, "bob", **CLAMP) as bob:
        assert "the secret of alice" not in run(bob, everything + other, mcp=["memory"])
    team = {"who": {"claims": {"team": "core"}}}
    with client(invoker, "carol", **CLAMP, **team) as carol, client(invoker, "dan", **CLAMP, **team) as dan:
        run(carol, tool("mcp__memory__remember", text="known to the team"), mcp=["memory"])
        found = run(dan, everything, mcp=["memory"])
        assert "known to the team" in found and "the secret of alice" not in found
    assert run(alice, everything, mcp=["memory"]).count("the secret of alice") == 2, "bob has forgotten his own"


@as_root
@pytest.mark.xdist_group("catalog")
def test_a_skill_whose_server_is_not_allowed_is_refused(invoker: Invoker) -> None:
    with client(invoker, "eve", clamp={"skills": ["memory"]}) as eve:
        answer = eve.post("/claude/invoke", json={"prompt": "x", "skills": ["memory"]})
        assert answer.status_code == 403
        assert answer.json()["detail"] == "skill memory needs the server memory, which is not allowed; allowed: none"


@as_root
@pytest.mark.xdist_group("catalog")
@pytest.mark.parametrize(("path", "more"), [("jobs", {}), ("invoke", {"Prefer": "respond-async"})])
def test_a_token_of_a_callers_is_kept_for_no_job(invoker: Invoker, path: str, more: dict[str, str]) -> None:
    token = {"X-Claude-MCP-mine": "t0ken-of-a-caller"}
    with client(invoker, "alice", clamp={"mcp": ["mine"]}) as alice:
        answer = alice.post(f"/claude/{path}", json={"prompt": "x", "mcp": ["mine"]}, headers=token | more)
        assert answer.status_code == 422, answer.text
        said = "server mine wants a token of your own (header X-Claude-MCP-mine), which is kept for no job"
        assert answer.json()["detail"] == said
        [shown] = alice.get("/claude/catalog").json()["mcp"]
        assert shown["token_header"] == "X-Claude-MCP-mine" and shown["obstacle"] is None
