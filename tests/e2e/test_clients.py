"""The vendors' own SDKs against the whole stack, as their users have them: `docs/clients.md`."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import anthropic
import httpx
import openai
import pypdf
import pytest

from claude_invoker.api.languages import anthropic_type, openai_type
from tests.clients.test_anthropic import PIXEL, ask
from tests.e2e.conftest import ROOT, Gateway
from tests.e2e.test_passthrough import HAIKU, noted, spend_messages
from tests.invoker.conftest import tool, wait_for
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("e2e")
JS = ROOT / "tests" / "clients" / "js"
NAMES = ["claude-code", "claude-code-haiku", "claude-code-sonnet", "claude-code-opus"]


@pytest.fixture(scope="module")
def tokens(gateway: Gateway) -> dict[str, str]:
    return {
        "good": gateway.token("sdk", "--tier", "pro"),
        "no_role": gateway.token("sdk", "--no-role"),
        "spent": gateway.token("spent", "--tier", "free"),
    }


def spend(gateway: Gateway, token: str) -> None:
    """The tier has ten requests in a minute; these the invoker refuses."""
    with gateway.client() as nobody:
        for _ in range(10):
            nobody.post("/claude/v1/messages", json={}, headers={"x-api-key": token})


def state_of(gateway: Gateway, run: str) -> str:
    with gateway.client("sdk", "--tier", "pro") as api:
        return str(api.get(f"/claude/runs/{run}").json()["state"])


def test_anthropics_python(gateway: Gateway, tokens: dict[str, str]) -> None:
    def made(**key: Any) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=f"{gateway.url}/claude", max_retries=0, timeout=HANG_S, **key)

    client = made(api_key=tokens["good"])
    answer = client.messages.create(model="claude-code", max_tokens=10, messages=ask("[[say Well.]]"))
    assert (answer.content[0].type, answer.stop_reason) == ("text", "end_turn")
    assert answer._request_id
    # What every run has here: the gateway's words before the prompt.
    assert "code review assistant" in json.dumps(gateway.record()[-1]["system"])
    with made(auth_token=tokens["good"]).messages.stream(
        model="claude-code-haiku", max_tokens=10, messages=ask("[[delay 100]] [[say " + "word " * 100 + "]]")
    ) as stream:
        run = stream.response.headers["x-claude-run"]
        next(iter(stream.text_stream))
    wait_for(lambda: state_of(gateway, run) == "cancelled", what="the end of a run whose client has left")
    assert [model.id for model in client.models.list(limit=3)][: len(NAMES)] == NAMES
    older = made(api_key="none", default_headers={"authorization": anthropic.omit, "x-api-key": tokens["good"]})
    assert older.models.retrieve("claude-code").id == "claude-code"

    def refused(kind: type[anthropic.APIStatusError], type_: str, key: str, prompt: str = "hi", **more: Any) -> Any:
        asked: dict[str, Any] = {"model": "claude-code", "max_tokens": 10, "messages": ask(prompt)} | more
        with pytest.raises(kind) as error:
            made(api_key=key).messages.create(**asked)
        assert error.value.type == type_ and error.value.request_id and error.value.api_message
        return error.value

    refused(anthropic.AuthenticationError, "authentication_error", "none")
    assert refused(anthropic.PermissionDeniedError, "permission_error", tokens["no_role"]).error_code
    opus = refused(anthropic.PermissionDeniedError, "permission_error", tokens["good"], model="claude-code-opus")
    assert "haiku, sonnet" in opus.api_message
    spend(gateway, tokens["spent"])
    spent = refused(anthropic.RateLimitError, "rate_limit_error", tokens["spent"])
    assert int(spent.response.headers["retry-after"]) > 0 and spent.error_code == "rate_limited"
    busy = refused(anthropic.ServiceUnavailableError, "overloaded_error", tokens["good"], "[[status 429]]")
    assert busy.response.headers["retry-after"]
    refused(anthropic.BadRequestError, "invalid_request_error", tokens["good"], stop_sequences=["."])


def test_openais_python(gateway: Gateway, tokens: dict[str, str]) -> None:
    def made(key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{gateway.url}/claude/v1", api_key=key, max_retries=0, timeout=HANG_S)

    client = made(tokens["good"])
    prompt: Any = ask(f"{tool('Write', file_path='a.txt', content='b')} [[say Done.]]")
    chunks = client.chat.completions.create(
        model="claude-code", messages=prompt, stream=True, stream_options={"include_usage": True}
    )
    told = list(chunks)
    assert "".join(c.choices[0].delta.content or "" for c in told if c.choices) == "[Write a.txt]\n\nDone."
    assert told[-1].usage is not None
    assert "code review assistant" in json.dumps(gateway.record()[-1]["system"])
    assert [model.id for model in client.models.list()] == NAMES

    def refused(kind: type[openai.APIStatusError], type_: str, key: str, **more: Any) -> Any:
        with pytest.raises(kind) as error:
            made(key).chat.completions.create(**({"model": "claude-code", "messages": ask("hi")} | more))
        assert error.value.type == type_ and error.value.request_id and error.value.code
        return error.value

    refused(openai.AuthenticationError, "authentication_error", "none")
    refused(openai.PermissionDeniedError, "permission_error", tokens["no_role"])
    spend(gateway, tokens["spent"])
    assert refused(openai.RateLimitError, "rate_limit_error", tokens["spent"]).response.headers["retry-after"]
    assert refused(openai.BadRequestError, "invalid_request_error", tokens["good"], temperature=0.5).param
    busy = refused(openai.InternalServerError, "server_error", tokens["good"], messages=ask("[[status 429]]"))
    assert busy.status_code == 503


TABLE = "A one-page PDF of this table: free 1,234 requests, pro 987."
"""What docs/clients.md asks for. The stand-in is told how."""
SCRIPT = f"{tool('Write', file_path='report.md', content='# Week 48: free 1,234, pro 987')} [[skill pdf]]"


def is_the_pdf(content: bytes) -> bool:
    [page] = pypdf.PdfReader(io.BytesIO(content)).pages
    return "1,234" in page.extract_text()


def had(gateway: Gateway, token: str, artifacts: Any) -> bool:
    """By what the answer says, and the token."""
    [href] = [file["href"] for file in artifacts if file["path"] == "report.pdf"]
    answer = httpx.get(f"{gateway.url}{href}", headers={"x-api-key": token})
    return answer.headers["content-type"] == "application/pdf" and is_the_pdf(answer.content)


@pytest.fixture
def with_skills(gateway: Gateway) -> None:
    """Where the stack has them: their libraries come from the invoker's Python, and commands need root here."""
    with gateway.client("sdk", "--tier", "pro") as api:
        pdf = next(each for each in api.get("/claude/catalog").json()["skills"] if each["name"] == "pdf")
    if pdf["obstacle"] and (os.geteuid() != 0 or "as the invoker's" in pdf["obstacle"]):
        pytest.skip(pdf["obstacle"])


@pytest.mark.usefixtures("with_skills")
def test_anthropics_python_has_skills_and_what_they_make(gateway: Gateway, tokens: dict[str, str]) -> None:
    client = anthropic.Anthropic(
        base_url=f"{gateway.url}/claude", api_key=tokens["good"], max_retries=0, timeout=HANG_S
    )
    asked: dict[str, Any] = {"model": "claude-code", "max_tokens": 10}
    answer = client.messages.create(**asked, messages=ask(SCRIPT), extra_body={"skills": ["pdf"]})
    assert "report.pdf: pages: 1" in answer.content[0].text
    assert had(gateway, tokens["good"], answer.artifacts)
    with client.messages.stream(**asked, messages=ask(SCRIPT), extra_body={"skills": ["pdf"]}) as stream:
        [ended] = [event for event in stream if event.type == "message_delta"]
    assert had(gateway, tokens["good"], cast("Any", ended).artifacts)
    remember = ask(tool("mcp__memory__remember", text="by an SDK") + tool("mcp__memory__export"))
    answer = client.messages.create(**asked, messages=remember, extra_body={"mcp": ["memory"]})
    assert "by an SDK" in answer.content[0].text and answer.artifacts == []
    # A body asks for no more than its tier has, and names are names.
    for more, kind, says in (
        ({"skills": ["house-style"]}, anthropic.PermissionDeniedError, "skills not allowed by the tier"),
        ({"agents": ["reviewer"]}, anthropic.PermissionDeniedError, "agents not allowed by the tier"),
        ({"mcp": ["tickets"]}, anthropic.PermissionDeniedError, "servers not allowed by the tier"),
        ({"skills": ["pdf", "*"]}, anthropic.BadRequestError, "skills[1]"),
        ({"skills": "pdf"}, anthropic.BadRequestError, "skills"),
        ({"container": {"skills": [{"type": "anthropic", "skill_id": "pdf"}]}}, anthropic.BadRequestError, "container"),
    ):
        with pytest.raises(kind) as refused:
            client.messages.create(**asked, messages=ask("hi"), extra_body=more)
        assert says in str(cast("Any", refused.value).api_message)


@pytest.mark.usefixtures("with_skills")
def test_openais_python_has_skills_and_what_they_make(gateway: Gateway, tokens: dict[str, str]) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/claude/v1", api_key=tokens["good"], max_retries=0, timeout=HANG_S)
    asked: dict[str, Any] = {"model": "claude-code", "messages": ask(SCRIPT), "extra_body": {"skills": ["pdf"]}}
    assert had(gateway, tokens["good"], client.chat.completions.create(**asked).artifacts)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert had(gateway, tokens["good"], chunks[-1].artifacts)
    assert not any(hasattr(chunk, "artifacts") for chunk in chunks[:-1])
    with pytest.raises(openai.PermissionDeniedError, match="skills not allowed by the tier"):
        client.chat.completions.create(**asked | {"extra_body": {"skills": ["house-style"]}})
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**asked | {"extra_body": {"mcp": ["Memory"]}})
    assert wrong.value.param == "mcp[0]"


def test_what_claude_code_asks_first_is_answered_without_a_token(gateway: Gateway) -> None:
    with gateway.client() as nobody:
        assert nobody.head("/claude/api/hello").status_code == 200
        assert nobody.get("/claude/api/hello").status_code == 404
        unknown = nobody.get("/claude/v1/responses")
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")


def shown(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.DOTALL)


def asking(gateway: Gateway, tokens: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "GATEWAY": gateway.url, "TOKEN": tokens["good"]}


def test_the_document_shows_python_that_works(gateway: Gateway, tokens: dict[str, str]) -> None:
    programs = [program for program in shown("python") if TABLE not in program]
    assert len(programs) == 2
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=asking(gateway, tokens),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for program in programs
    ]
    for process in started:
        said, _ = process.communicate(timeout=100)
        assert "canned answer" in said


@pytest.mark.usefixtures("with_skills")
@pytest.mark.parametrize("language", ["python", "sh"])
def test_the_document_shows_how_a_file_is_had(
    gateway: Gateway, tokens: dict[str, str], tmp_path: Path, language: str
) -> None:
    """With what the stand-in is to do in the place of what a model is asked for."""
    (program,) = [each for each in shown(language) if TABLE in each]
    words = json.dumps(SCRIPT)[1:-1]  # within quotes, in Python as in JSON
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    command.append(program.replace(TABLE, words))
    done = subprocess.run(
        command, env=asking(gateway, tokens), cwd=tmp_path, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert is_the_pdf((tmp_path / "report.pdf").read_bytes())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_document_shows_javascript_that_works(gateway: Gateway, tokens: dict[str, str]) -> None:
    folder = _installed()
    programs = [program.replace(TABLE, json.dumps(SCRIPT)[1:-1]) for program in shown("js")]
    assert len(programs) == 3
    for number, program in enumerate(programs):
        (folder / f"shown{number}.mjs").write_text(program)
        done = subprocess.run(
            ["node", f"shown{number}.mjs"],
            cwd=folder,
            env=asking(gateway, tokens),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ("report.pdf: pages: 1" if "skills" in program else "canned answer") in done.stdout, done.stderr
    assert is_the_pdf((folder / "report.pdf").read_bytes())


def test_the_document_shows_the_tables_that_hold() -> None:
    rows = [row.split(" | ") for row in (ROOT / "docs" / "clients.md").read_text().splitlines() if "_error` |" in row]
    assert len(rows) >= 8
    for statuses, *types in rows:
        for status in map(int, re.findall(r"\b[45]\d\d\b(?! elsewhere)", statuses)):
            assert [anthropic_type(status), openai_type(status)] == [kind.strip("` |") for kind in types], status


def _installed() -> Path:
    """A folder with the SDKs, kept from run to run."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("the vendors' JavaScript SDKs need node and npm")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kong-claude-tests"
    wanted = (JS / "package.json").read_text()
    kept = home / "clients-js"
    if not (kept / "done").exists() or (kept / "done").read_text() != wanted:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        shutil.copy(JS / "package.json", kept)
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=kept, check=True, timeout=300)
        (kept / "done").write_text(wanted)
    return kept


def _told_by(program: str, gateway: Gateway, tokens: dict[str, str], folder: Path, **more: str) -> dict[str, Any]:
    for name in (program, "errors.mjs"):
        shutil.copy(JS / name, folder)
    environment = {
        "PATH": os.environ["PATH"],
        "BASE": f"{gateway.url}/claude",
        "TOKEN": tokens["good"],
        "NO_ROLE": tokens["no_role"],
        "SPENT": tokens["spent"],
        "PIXEL": PIXEL,
        **more,
    }
    done = subprocess.run(
        ["node", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def told(kind: str, status: int, type_: str) -> dict[str, Any]:
    return {"name": kind, "status": status, "type": type_, "request": True}


ERRORS = {
    "e400": ("BadRequestError", 400, "invalid_request_error"),
    "e401": ("AuthenticationError", 401, "authentication_error"),
    "e403": ("PermissionDeniedError", 403, "permission_error"),
    "e429": ("RateLimitError", 429, "rate_limit_error"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_anthropics_javascript(gateway: Gateway, tokens: dict[str, str]) -> None:
    said = _told_by("anthropic.mjs", gateway, tokens, _installed())
    assert said["plain"]["content"][0]["text"] == "Well." and said["plain"]["stop_reason"] == "end_turn"
    assert said["bearer"] == said["header"] == "claude-code" and said["models"][: len(NAMES)] == NAMES
    assert [block["text"] for block in said["streamed"]["content"]] == ["[Write a.txt]\n\n", "Done."]
    assert said["streamed"]["usage"]["input_tokens"] == 24 and said["image"][0]["text"] == "Seen."
    assert said["counted"]["input_tokens"] > 0
    assert "No such tool" not in said["left"]["content"][0]["text"]
    assert [file["path"] for file in said["left"]["artifacts"]] == ["a.txt"]
    assert said["leftAtTheEnd"][0]["href"].startswith("/claude/runs/run_")
    assert said["aborted"]["name"] == "APIUserAbortError"
    wait_for(lambda: state_of(gateway, said["run"]) == "cancelled", what="the end of an aborted run")
    own = {
        "e404": ("NotFoundError", 404, "not_found_error"),
        "e503": ("ServiceUnavailableError", 503, "overloaded_error"),
    }
    for name, (kind, status, type_) in (ERRORS | own).items():
        assert said[name] == told(kind, status, type_), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_anthropics_javascript_with_a_model_itself(gateway: Gateway, tokens: dict[str, str]) -> None:
    """In Python: `test_passthrough.py`."""
    spent = gateway.token("spent-by-models", "--tier", "free")
    spend_messages(gateway, spent)
    said = _told_by("model.mjs", gateway, tokens | {"spent": spent}, _installed(), MODEL=HAIKU, OTHER="claude-opus-5-5")
    assert said["plain"]["content"][0]["text"] == "Well." and said["plain"]["model"] == said["model"] == HAIKU
    assert said["streamed"] == "One two." and said["image"][0]["text"] == "Seen." and PIXEL in str(gateway.record())
    assert said["counted"]["input_tokens"] > 0
    assert said["aborted"]["name"] == "APIUserAbortError"
    wait_for(lambda: "left" in {line["end"] for line in noted(gateway, "sdk")}, what="the end of an aborted message")
    own = {
        "ofTheTier": ("PermissionDeniedError", 403, "permission_error"),
        "api429": ("RateLimitError", 429, "rate_limit_error"),
        "api503": ("ServiceUnavailableError", 503, "api_error"),
        "api529": ("OverloadedError", 529, "overloaded_error"),
    }
    for name, (kind, status, type_) in (ERRORS | own).items():
        assert said[name] == told(kind, status, type_), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_openais_javascript(gateway: Gateway, tokens: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    said = _told_by("openai.mjs", gateway, tokens, _installed())
    assert said["plain"]["choices"][0]["message"]["content"] == "Well." and said["models"] == NAMES
    assert said["streamed"] == "[Write a.txt]\n\nDone." and said["usage"]["prompt_tokens"] == 24
    assert [file["path"] for file in said["left"]] == ["a.txt"]
    assert said["image"] == "Seen." and json.loads(said["parsed"]) == {"good": True}
    wait_for(lambda: state_of(gateway, said["run"]) == "cancelled", what="the end of an aborted run")
    own = {
        "e404": ("NotFoundError", 404, "invalid_request_error"),
        "e503": ("InternalServerError", 503, "server_error"),
    }
    for name, (kind, status, type_) in (ERRORS | own).items():
        assert said[name].pop("code"), name
        assert said[name] == told(kind, status, type_), name
