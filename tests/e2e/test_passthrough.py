"""People's own Claude Code and SDKs through the whole stack, with models themselves: `docs/clients.md`."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from claude_invoker.cli.binary import find_cli
from tests.clients.test_anthropic import PIXEL, ask
from tests.e2e.conftest import ROOT, Gateway
from tests.invoker.conftest import tool, wait_for
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("e2e")
HAIKU = "claude-haiku-4-5"
DOCUMENT = ROOT / "docs" / "clients.md"


def limits_of(gateway: Gateway, token: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(
        f"{gateway.url}/claude/limits", headers={"authorization": f"Bearer {token}"}, timeout=HANG_S
    ).json()
    return found


def noted(gateway: Gateway, subject: str) -> list[dict[str, Any]]:
    """What the audit log says of a caller's messages."""
    folder = gateway.home / "runs" / "audit"
    lines = [json.loads(line) for path in folder.glob("audit-*") for line in path.read_text().splitlines()]
    details = [json.loads(line) for path in folder.glob("details-*") for line in path.read_text().splitlines()]
    mine = {line["seq"] for line in lines if (line["kind"], line["subject"]) == ("message.end", subject)}
    return [line["details"] for line in details if line["seq"] in mine]


def settled(gateway: Gateway, token: str) -> dict[str, Any]:
    """A caller's limits, when nothing of his is under way."""
    wait_for(lambda: limits_of(gateway, token)["messages"]["concurrent"]["running"] == 0, what="the last booking")
    return limits_of(gateway, token)


def claude(gateway: Gateway, token: str, home: Path, prompt: str) -> dict[str, Any]:
    """What somebody's own Claude Code says at its end, started as the document shows it."""
    for folder in ("bin", "config", "work"):
        (home / folder).mkdir()
    (home / "bin" / "claude").symlink_to(find_cli(None))
    (shown,) = re.findall(r"^ANTHROPIC_BASE_URL=.* claude .*$", DOCUMENT.read_text(), re.MULTILINE)
    assert HAIKU in shown
    environment = {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / "config"),
        "GATEWAY": gateway.url,
        "TOKEN": token,
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
        "IS_SANDBOX": "1",
    }
    command = f"{shown} -p --output-format json --dangerously-skip-permissions {shlex.quote(prompt)}"
    done = subprocess.run(
        ["sh", "-c", command],
        env=environment,
        cwd=home / "work",
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_claude_code_with_its_tools_and_two_subagents_in_tier_free(gateway: Gateway, tmp_path: Path) -> None:
    before = len(gateway.record())
    agents = [
        tool("Task", description=name, prompt=f"[[say {name}]]", subagent_type="general-purpose")
        for name in ("one", "two")
    ]
    token = gateway.token("coder", "--tier", "free")
    told = claude(gateway, token, tmp_path, " ".join([*agents, "[[say Both.]]"]))
    assert (told["subtype"], told["result"], told["subagent_stats"]["completed"]) == ("success", "Both.", 2)
    # It is not told to try again: each request that it made was answered, and is a line of its session.

    def asked_for() -> list[dict[str, Any]]:
        return [line for line in gateway.record()[before:] if line["path"] == "/v1/messages"]

    wait_for(lambda: len(noted(gateway, "coder")) == len(asked_for()), what="the lines of the audit log")
    spent = settled(gateway, token)["usd"]["day"]["spent"]
    asked = asked_for()
    lines = noted(gateway, "coder")
    assert {line["end"] for line in lines} == {"complete"} and len(asked) >= 5
    assert any(line["tools"] for line in asked)
    assert {line["session"] for line in lines} == {told["session_id"]}
    assert len({line["agent"] for line in lines} - {None}) == 2
    assert sum(line["cost_usd"] for line in lines) == pytest.approx(spent) == pytest.approx(told["total_cost_usd"])


def passes(client: anthropic.Anthropic) -> bool:
    """Whether a message is answered; the one reason for which it may not be is that all places are taken."""
    try:
        client.messages.create(model=HAIKU, max_tokens=9, messages=ask("[[say Well.]]"))
    except anthropic.RateLimitError as error:
        assert "'limit': 'concurrent', 'of': 'messages'" in str(error), error
        return False
    return True


@pytest.mark.slow  # it has a run in it; the ledger's own tests are quick
def test_messages_have_windows_and_places_of_their_own(gateway: Gateway) -> None:
    """Tier free has 10 runs in a minute, one at a time."""
    token = gateway.token("busy", "--tier", "free")
    with anthropic.Anthropic(base_url=f"{gateway.url}/claude", api_key=token, max_retries=0, timeout=HANG_S) as client:
        with client.messages.stream(model=HAIKU, max_tokens=99, messages=ask("[[stall 1]] [[say a b]]")) as stalled:
            next(iter(stalled.text_stream))
            for _ in range(11):
                wait_for(lambda: passes(client), what="a place for a message, where those before it are not booked yet")
            assert client.messages.create(model="claude-code", max_tokens=9, messages=ask("hi")).model == "claude-code"
    after = settled(gateway, token)
    assert after["windows"][0]["remaining"] == 9 and after["messages"]["windows"][0]["remaining"] == 108


def spend_messages(gateway: Gateway, token: str) -> None:
    """Until there are no more in this minute: the API refuses them, so that they cost nothing."""
    body = {"model": HAIKU, "max_tokens": 9, "messages": ask("[[status 400]]")}
    with gateway.client(timeout=HANG_S) as client:

        def is_spent() -> bool:
            answer = client.post("/claude/v1/messages", json=body, headers={"x-api-key": token})
            return answer.status_code == 429 and answer.json()["error"]["details"]["limit"] == "minute"

        wait_for(is_spent, what="the end of what tier free has in a minute")


def sdk(gateway: Gateway, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"{gateway.url}/claude", api_key=key, max_retries=0, timeout=HANG_S)


def test_anthropics_sdk_with_a_model_itself(gateway: Gateway) -> None:
    """In JavaScript: `test_clients.py`."""
    client = sdk(gateway, gateway.token("sdk-2", "--tier", "free"))
    answer = client.messages.create(
        model=HAIKU, max_tokens=50, messages=ask("[[say Well.]]"), extra_body={"temperature": 0.2}
    )
    assert (answer.content[0].type, answer.model) == ("text", HAIKU) and answer._request_id
    # The gateway's words are those of runs.
    assert gateway.record()[-1]["system"] is None
    with client.messages.stream(model=HAIKU, max_tokens=50, messages=ask("[[say One two.]]")) as stream:
        assert stream.get_final_text() == "One two."
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    shown: Any = [{"role": "user", "content": [image, {"type": "text", "text": "[[say Seen.]]"}]}]
    assert "Seen." in str(client.messages.create(model=HAIKU, max_tokens=50, messages=shown).content)
    assert PIXEL in str(gateway.record()[-1]["messages"])
    assert client.messages.count_tokens(model="claude-opus-5-5", messages=ask("hi")).input_tokens > 0
    assert client.models.retrieve(HAIKU).id == HAIKU
    slowly = ask("[[delay 200]] [[say " + "word " * 30 + "]]")
    with client.messages.stream(model=HAIKU, max_tokens=50, messages=slowly) as stream:
        next(iter(stream.text_stream))
    wait_for(lambda: "left" in {line["end"] for line in noted(gateway, "sdk-2")}, what="the end of what was left")


def test_anthropics_sdk_is_told_what_is_wrong_with_a_request_to_a_model(gateway: Gateway) -> None:
    good, spent = (gateway.token(name, "--tier", "free") for name in ("sdk-2", "spent-by-models"))

    def refused(
        kind: type[anthropic.APIStatusError], type_: str, key: str, prompt: str = "hi", model: str = HAIKU
    ) -> Any:
        with pytest.raises(kind) as error:
            sdk(gateway, key).messages.create(model=model, max_tokens=9, messages=ask(prompt))
        assert (error.value.type, bool(error.value.request_id)) == (type_, True)
        return error.value

    refused(anthropic.AuthenticationError, "authentication_error", "none")
    refused(anthropic.PermissionDeniedError, "permission_error", gateway.token("sdk-2", "--no-role"))
    refused(anthropic.PermissionDeniedError, "permission_error", good, model="claude-opus-5-5")
    spend_messages(gateway, spent)
    ours = refused(anthropic.RateLimitError, "rate_limit_error", spent)
    assert ours.error_code == "rate_limited" and int(ours.response.headers["retry-after"]) > 0
    # What the API says goes on as it is.
    refused(anthropic.BadRequestError, "invalid_request_error", good, "[[status 400]]")
    theirs = refused(anthropic.RateLimitError, "rate_limit_error", good, "[[status 429]]")
    assert theirs.response.headers["retry-after"] == "1" and "stand-in" in str(theirs)
    refused(anthropic.ServiceUnavailableError, "api_error", good, "[[status 503]]")
    refused(anthropic.OverloadedError, "overloaded_error", good, "[[status 529]]")


def test_no_header_of_a_client_names_another_payer(gateway: Gateway) -> None:
    body = {"model": HAIKU, "max_tokens": 9, "messages": ask("[[say Well.]]")}
    victim, thief = (gateway.token(name, "--tier", "free") for name in ("victim", "thief"))
    forged = {
        "X-Claude-Attestation": "e30.e30.x",
        "X-Consumer-Username": "victim",
        "X-Authenticated-Userid": "victim",
        "X-Claude-Subject": "victim",
        "X-Claude-Code-Session-Id": "of-the-victim",
    }

    def asked(headers: dict[str, str]) -> int:
        url = f"{gateway.url}/claude/v1/messages"
        return httpx.post(url, json=body, headers=headers, timeout=HANG_S).status_code

    assert asked(forged | {"authorization": f"Bearer {thief}"}) == 200
    # Two tokens are none: nobody pays by another's beside his own.
    assert asked({"authorization": f"Bearer {thief}", "x-api-key": victim}) == 401
    assert settled(gateway, thief)["usd"]["day"]["spent"] > 0
    assert settled(gateway, victim)["usd"]["day"]["spent"] == 0
    # The control: who has the token is who pays.
    assert asked({"x-api-key": victim}) == 200
    assert settled(gateway, victim)["usd"]["day"]["spent"] > 0
