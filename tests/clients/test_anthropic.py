"""Runs for Anthropic's own SDK, asked of the invoker itself. Through the gateway: `tests/e2e/test_clients.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import MessageParam
from pydantic import BaseModel

from tests.invoker.conftest import Invoker, StandInProcess, tool, wait_for
from tests.support.waiting import HANG_S

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clients")]  # their invoker is started once

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def client(invoker: Invoker) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=invoker.url, api_key="none", max_retries=0, timeout=HANG_S) as made:
        yield made


def ask(prompt: str) -> list[MessageParam]:
    return [{"role": "user", "content": prompt}]


def texts(message: anthropic.types.Message) -> list[str]:
    return [block.text for block in message.content if block.type == "text"]


def test_a_run_answers_with_one_message(client: anthropic.Anthropic) -> None:
    answer = client.messages.create(model="claude-code", max_tokens=100, messages=ask("[[say Well.]]"))
    assert texts(answer) == ["Well."]
    assert (answer.role, answer.stop_reason, answer.model) == ("assistant", "end_turn", "claude-code")
    assert answer.usage.input_tokens == 12 and answer.usage.output_tokens > 0
    assert answer.id.startswith("msg_")


def test_a_stream_tells_progress_and_ends_with_the_same_message(client: anthropic.Anthropic) -> None:
    prompt = f"{tool('Write', file_path='a.txt', content='hello')} [[say It is done.]]"
    with client.messages.stream(model="claude-code-sonnet", max_tokens=100, messages=ask(prompt)) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_message()
    assert texts(answer) == ["[Write a.txt]\n\n", "It is done."]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", 24)


def test_a_conversation_with_an_image_and_a_system_prompt_reaches_the_model(
    client: anthropic.Anthropic, stand_in: StandInProcess
) -> None:
    before = len(stand_in.lines())
    client.messages.create(
        model="claude-code-haiku",
        max_tokens=10,
        metadata={"user_id": "u-1"},
        system=[{"type": "text", "text": "Answer in verse.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "earlier words"},
            {"role": "assistant", "content": [{"type": "text", "text": "my words"}]},
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                    {"type": "text", "text": "What is it?", "cache_control": {"type": "ephemeral"}},
                ],
            },
        ],
    )
    asked = [line for line in stand_in.lines()[before:] if line["path"] == "/v1/messages"][-1]
    said = str(asked["messages"])
    assert "Answer in verse." in str(asked["system"]) and "haiku" in asked["model"]
    assert "earlier words" in said and "my words" in said and PIXEL in said


class Verdict(BaseModel):
    good: bool


def test_an_output_format_is_the_runs_schema(client: anthropic.Anthropic) -> None:
    messages = ask(tool("StructuredOutput", good=True))
    answer = client.messages.parse(model="claude-code", max_tokens=10, messages=messages, output_format=Verdict)
    assert answer.parsed_output == Verdict(good=True)
    with client.messages.stream(model="claude-code", max_tokens=10, messages=messages, output_format=Verdict) as stream:
        assert stream.get_final_message().parsed_output == Verdict(good=True)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tools": [{"name": "mine", "input_schema": {"type": "object"}}]}, "tools"),
        ({"extra_body": {"temperature": 0.2}}, "temperature"),
        ({"extra_body": {"prompts": "?"}}, "prompts"),
        ({"stop_sequences": ["."]}, "stop_sequences"),
        ({"thinking": {"type": "adaptive"}}, "thinking"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "assistant", "content": "Sure:"}]}, "the last message"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_a_run_cannot_honour_is_an_error_that_names_it(
    client: anthropic.Anthropic, more: dict[str, Any], named: str
) -> None:
    asked: dict[str, Any] = {"model": "claude-code", "max_tokens": 10, "messages": ask("hi")} | more
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**asked)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.api_message is not None and named in refused.value.api_message


def test_values_that_ask_for_nothing_are_taken(client: anthropic.Anthropic) -> None:
    neutral = {"temperature": 1, "top_p": 1.0, "stop_sequences": [], "tools": [], "thinking": None}
    answer = client.messages.create(model="claude-code", max_tokens=1, messages=ask("hi"), extra_body=neutral)
    assert answer.stop_reason == "end_turn"


def test_the_models_are_listed_page_by_page(client: anthropic.Anthropic, invoker: Invoker) -> None:
    names = [model.id for model in client.models.list(limit=2)]
    assert names[:4] == ["claude-code", "claude-code-haiku", "claude-code-sonnet", "claude-code-opus"]
    assert len(set(names)) == len(names) and not any(name.startswith("claude-code") for name in names[4:])
    assert client.models.retrieve("claude-code-opus").lifecycle == "active"
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.models.retrieve("gpt")
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        client.models.list(limit=0)
    # Without this header it is OpenAI's list.
    assert httpx.get(f"{invoker.url}/v1/models").json()["object"] == "list"


def test_a_run_that_fails_is_an_error_before_a_stream_begins_and_an_event_within(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.ServiceUnavailableError) as busy:
        client.messages.create(model="claude-code", max_tokens=9, messages=ask("[[status 429]]"), stream=True)
    assert busy.value.type == "overloaded_error"
    assert busy.value.response.headers["retry-after"] == "1"
    with pytest.raises(anthropic.APIStatusError) as broken:
        with client.messages.stream(
            model="claude-code", max_tokens=9, messages=ask("[[stall 3]] one two three four five")
        ) as stream:
            for _ in stream:
                pass
    assert broken.value.type in ("timeout_error", "api_error"), broken.value.body


def test_an_error_after_a_run_has_begun_is_not_asked_again(invoker: Invoker, stand_in: StandInProcess) -> None:
    def asked() -> int:
        return sum("[[status 500]] once" in str(line["messages"]) for line in stand_in.lines())

    with anthropic.Anthropic(base_url=invoker.url, api_key="none", max_retries=2, timeout=HANG_S) as client:
        with pytest.raises(anthropic.InternalServerError) as failed:
            client.messages.create(model="claude-code", max_tokens=9, messages=ask("[[status 500]] once"))
    assert failed.value.response.headers["x-should-retry"] == "false"
    seen = asked()
    # The control: the same client does ask again where nobody forbids it.
    posted = httpx.post(
        f"{invoker.url}/v1/messages",
        json={"model": "claude-code", "max_tokens": 9, "messages": ask("[[status 500]] once")},
    )
    assert asked() == 2 * seen and posted.status_code == 502


def test_a_client_that_leaves_ends_the_run(client: anthropic.Anthropic, invoker: Invoker) -> None:
    prompt = ask("[[delay 200]] [[say " + "word " * 200 + "]]")
    with client.messages.stream(model="claude-code", max_tokens=9, messages=prompt) as stream:
        run = stream.response.headers["x-claude-run"]
        next(iter(stream.text_stream))
        assert httpx.get(f"{invoker.url}/runs/{run}").json()["state"] == "running"
    wait_for(lambda: httpx.get(f"{invoker.url}/runs/{run}").json()["state"] == "cancelled", what="the run's end")


def test_tokens_are_counted_by_the_api_without_a_run(
    client: anthropic.Anthropic, invoker: Invoker, stand_in: StandInProcess
) -> None:
    before = len(stand_in.lines())
    counted = client.messages.count_tokens(model="claude-code-haiku", system="Be brief.", messages=ask("hi"))
    assert counted.input_tokens > 0
    (asked,) = stand_in.lines()[before:]
    assert asked["path"] == "/v1/messages/count_tokens"
    assert asked["model"].startswith("claude-haiku-") and asked["system"] == "Be brief."
    with pytest.raises(anthropic.BadRequestError):
        client.messages.count_tokens(model="claude-code", messages=ask("hi"), tool_choice={"type": "any"})


def test_a_client_that_leaves_before_the_stream_begins_ends_the_run(invoker: Invoker) -> None:
    def cancelled() -> float:
        lines = httpx.get(f"{invoker.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if 'runs_total{outcome="cancelled"}' in line)

    before = cancelled()
    asked = {"model": "claude-code", "max_tokens": 9, "stream": True, "messages": ask("[[hang]]")}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{invoker.url}/v1/messages", json=asked, timeout=1)
    wait_for(lambda: cancelled() == before + 1, what="the run's end")
