"""Runs for OpenAI's own SDK, asked of the invoker itself. Through the gateway: `tests/e2e/test_clients.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.clients.test_anthropic import PIXEL
from tests.invoker.conftest import Invoker, StandInProcess, tool, wait_for
from tests.support.waiting import HANG_S

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clients")]  # their invoker is started once


@pytest.fixture
def client(invoker: Invoker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{invoker.url}/v1", api_key="none", max_retries=0, timeout=HANG_S) as made:
        yield made


def ask(prompt: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": prompt}]


def test_a_run_answers_with_one_completion(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="claude-code", messages=ask("[[say Well.]]"))
    assert (answer.object, answer.model) == ("chat.completion", "claude-code")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Well.", "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 12
    assert answer.usage.total_tokens == 12 + answer.usage.completion_tokens


def test_a_stream_tells_progress_and_the_usage_where_it_is_asked_for(client: openai.OpenAI) -> None:
    prompt = f"{tool('Write', file_path='a.txt', content='hello')} [[say It is done.]]"
    chunks = list(
        client.chat.completions.create(
            model="claude-code", messages=ask(prompt), stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "[Write a.txt]\n\nIt is done."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage.prompt_tokens for chunk in chunks if chunk.usage] == [24]
    without = list(client.chat.completions.create(model="claude-code", messages=ask("hi"), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in without)


def test_a_conversation_with_an_image_and_instructions_reaches_the_model(
    client: openai.OpenAI, stand_in: StandInProcess
) -> None:
    before = len(stand_in.lines())
    client.chat.completions.create(
        model="claude-code-haiku",
        user="u-1",
        messages=[
            {"role": "system", "content": "Answer in verse."},
            {"role": "developer", "content": [{"type": "text", "text": "And in French."}]},
            {"role": "user", "content": "earlier words"},
            {"role": "assistant", "content": "my words"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
                ],
            },
        ],
    )
    asked = [line for line in stand_in.lines()[before:] if line["path"] == "/v1/messages"][-1]
    said = str(asked["messages"])
    assert "Answer in verse." in str(asked["system"]) and "And in French." in str(asked["system"])
    assert "earlier words" in said and "my words" in said and PIXEL in said and "haiku" in asked["model"]


class Verdict(BaseModel):
    good: bool


def test_a_response_format_is_the_runs_schema(client: openai.OpenAI) -> None:
    messages = ask(tool("StructuredOutput", good=True))
    answer = client.chat.completions.parse(model="claude-code", messages=messages, response_format=Verdict)
    assert answer.choices[0].message.parsed == Verdict(good=True)
    with client.chat.completions.stream(model="claude-code", messages=messages, response_format=Verdict) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == Verdict(good=True)


ROLE = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tools": [{"type": "function", "function": {"name": "mine"}}]}, "tools"),
        ({"temperature": 0.2}, "temperature"),
        ({"max_completion_tokens": 100}, "max_completion_tokens"),
        ({"seed": 1}, "seed"),
        ({"n": 2}, "n"),
        ({"extra_body": {"prompts": "?"}}, "prompts"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"other": 1}}, "stream_options.other"),
        ({"model": "gpt-5"}, "model"),
        ({"messages": [{"role": "user", "content": "hi"}, ROLE]}, "messages[1].role"),
        ({"messages": [ROLE, {"role": "tool", "content": "4", "tool_call_id": "1"}]}, "messages[1].role"),
        ({"messages": [ROLE, {"role": "robot", "content": "hi"}]}, "messages[1].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_a_run_cannot_honour_is_an_error_that_names_it(
    client: openai.OpenAI, more: dict[str, Any], named: str
) -> None:
    asked: dict[str, Any] = {"model": "claude-code", "messages": ask("hi")} | more
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked)
    assert (refused.value.type, refused.value.param, refused.value.code) == ("invalid_request_error", named, "invalid")


def test_values_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    neutral: dict[str, Any] = {"temperature": 1, "n": 1, "stop": None, "presence_penalty": 0, "logprobs": False}
    answer = client.chat.completions.create(model="claude-code", messages=ask("hi"), **neutral)
    assert answer.choices[0].finish_reason == "stop"


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()][:2] == ["claude-code", "claude-code-haiku"]
    assert client.models.retrieve("claude-code").object == "model"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt")
    assert missing.value.code == "not_found"


def test_a_run_that_fails_is_an_error_before_a_stream_begins_and_one_within(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as busy:
        client.chat.completions.create(model="claude-code", messages=ask("[[status 429]]"), stream=True)
    assert (busy.value.type, busy.value.code) == ("server_error", "api_overloaded")
    prompt = ask("[[stall 3]] one two three four five")
    with pytest.raises(openai.APIError) as broken:
        list(client.chat.completions.create(model="claude-code", messages=prompt, stream=True))
    assert broken.value.type == "server_error"


def test_a_client_that_leaves_ends_the_run(client: openai.OpenAI, invoker: Invoker) -> None:
    prompt = ask("[[delay 200]] [[say " + "word " * 200 + "]]")
    with client.chat.completions.create(model="claude-code", messages=prompt, stream=True) as stream:
        run = stream.response.headers["x-claude-run"]
        next(stream)
        assert httpx.get(f"{invoker.url}/runs/{run}").json()["state"] == "running"
    wait_for(lambda: httpx.get(f"{invoker.url}/runs/{run}").json()["state"] == "cancelled", what="the run's end")
