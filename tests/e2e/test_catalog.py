"""Skills through the gateway, as kong.yml gives them to its tiers: pro may, free may not."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Any

import docx
import httpx
import PIL.Image
import pypdf
import pypdfium2
import pytest

from tests.catalog.mcp_servers import SECRET, described, tickets_server
from tests.catalog.support import skip_where_python_differs
from tests.e2e.conftest import ROOT, Gateway, standing
from tests.invoker.conftest import tool

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="which users runs have is tested as root"),
]
TABLE = "# Week 48\n\n| Tier | Requests |\n|---|---:|\n| free | 1,234 |\n| pro | 987 |\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With a server of an operator's besides, which wants each caller's own token."""
    home = tmp_path_factory.mktemp("catalog")
    text = (ROOT / "kong.yml").read_text()
    assert "mcp: &mcp [memory]" in text
    (home / "kong.yml").write_text(text.replace("mcp: &mcp [memory]", "mcp: &mcp [memory, mine]"))
    (home / "operator/mcp").mkdir(parents=True)
    with tickets_server() as tickets:
        mine = described("mine", ["search"], url=tickets.url, credential="caller")
        (home / "operator/mcp/mine.json").write_text(json.dumps(mine))
        with standing(home, config=home / "kong.yml", INVOKER_CATALOG=str(home / "operator")) as found:
            yield found


def ask(client: httpx.Client, skill: str, path: str, content: str) -> dict[str, Any]:
    """A run whose model writes a file, calls a skill, and does what its SKILL.md says."""
    write = json.dumps({"file_path": path, "content": content})
    answer = client.post(
        "/claude/invoke", json={"prompt": f"[[tool Write {write}]] [[skill {skill}]]", "skills": [skill]}
    )
    skip_where_python_differs(answer)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def artifact(client: httpx.Client, run: dict[str, Any], path: str) -> io.BytesIO:
    href = next((each["href"] for each in run["artifacts"] if each["path"] == path), None)
    assert href is not None, run["result"]
    return io.BytesIO(client.get(href).content)


def test_tier_pro_gets_documents_and_pictures(gateway: Gateway) -> None:
    with gateway.client("ada", "--tier", "pro") as client:
        run = ask(client, "pdf", "report.md", TABLE)
        content = artifact(client, run, "report.pdf")
        [page] = pypdf.PdfReader(content).pages
        assert all(word in page.extract_text() for word in ("Week 48", "free", "1,234", "pro", "987"))
        shown = pypdfium2.PdfDocument(content)[0].render(scale=1).to_pil().convert("L")
        assert shown.getextrema() == (0, 255) and shown.size == (596, 842)
        run = ask(client, "docx", "document.md", TABLE)
        [table] = docx.Document(artifact(client, run, "document.docx")).tables
        assert [cell.text for cell in table.rows[1].cells] == ["free", "1,234"]
        run = ask(client, "canvas-design", "design.typ", "#set page(width: 100pt, height: 50pt, fill: red)\nWeek 48")
        assert PIL.Image.open(artifact(client, run, "design.png")).size == (200, 100)


def test_tier_free_is_told_which_skill_it_may_not_have(gateway: Gateway) -> None:
    before = len(gateway.record())
    with gateway.client("bob", "--tier", "free") as client:
        answer = client.post("/claude/invoke", json={"prompt": "a report", "skills": ["pdf"]})
        assert answer.status_code == 403
        assert answer.json()["detail"] == "skills not allowed by the tier at the gateway: pdf; allowed: none"
        assert client.get("/claude/catalog").json()["skills"] == []
        # A header of its own changes nothing, nor does another spelling.
        for skills, status in ((["PDF"], 422), (["catalog:pdf"], 422), (["*"], 422), ("pdf", 422)):
            answer = client.post("/claude/invoke", json={"prompt": "a report", "skills": skills})
            assert answer.status_code == status, skills
        forged = {"X-Claude-Attestation": "e30.e30.e30"}
        assert client.post("/claude/invoke", json={"prompt": "x", "skills": ["pdf"]}, headers=forged).status_code == 403
    assert len(gateway.record()) == before


def test_callers_see_what_they_may_use(gateway: Gateway) -> None:
    with gateway.client("ada", "--tier", "pro") as client:
        found = client.get("/claude/catalog").json()
    skills = ["canvas-design", "docx", "frontend-design", "memory", "pdf", "tdd"]
    assert [each["name"] for each in found["skills"]] == skills
    assert all(each["obstacle"] is None for each in found["skills"] + found["mcp"]), found
    assert found["mcp"][0]["tools"] == [f"mcp__memory__{name}" for name in ("remember", "recall", "forget", "export")]


def test_what_is_remembered_is_the_callers_own(gateway: Gateway) -> None:
    """Also by a job; by the skill's own text."""
    export = {"prompt": "[[tool mcp__memory__export {}]]", "mcp": ["memory"]}
    with gateway.client("ada", "--tier", "pro") as client:
        answer = client.post("/claude/invoke", json={"prompt": "[[skill memory]]", "skills": ["memory"]})
        assert answer.status_code == 200, answer.text
        job = client.post("/claude/jobs", json=export)
        client.get(f"{job.headers['location']}/events", headers={"Accept": "text/event-stream"}).read()
        assert "Decision of week 48" in json.dumps(client.get(job.headers["location"]).json())
    with gateway.client("carol", "--tier", "pro") as client:
        assert client.post("/claude/invoke", json=export).json()["result"] == "Tool results:\n[]"
    with gateway.client("bob", "--tier", "free") as client:
        answer = client.post("/claude/invoke", json=export)
        assert answer.status_code == 403
        assert answer.json()["detail"] == "servers not allowed by the tier at the gateway: memory; allowed: none"


def test_a_callers_own_token_comes_through_the_gateway(gateway: Gateway) -> None:
    body = {"prompt": tool("mcp__mine__search", text="x"), "mcp": ["mine"]}
    with gateway.client("ada", "--tier", "pro") as client:
        answer = client.post("/claude/invoke", json=body, headers={"X-Claude-MCP-mine": SECRET})
        assert "found: x" in answer.json()["result"], answer.text
        assert client.post("/claude/invoke", json=body).status_code == 422
        job = client.post("/claude/jobs", json=body, headers={"X-Claude-MCP-mine": SECRET})
        assert job.status_code == 422 and SECRET not in job.text


def test_a_job_has_the_skills_of_its_tier(gateway: Gateway) -> None:
    write = json.dumps({"file_path": "report.md", "content": TABLE})
    body = {"prompt": f"[[tool Write {write}]] [[skill pdf]]", "skills": ["pdf"]}
    with gateway.client("ada", "--tier", "pro") as client:
        job = client.post("/claude/jobs", json=body)
        assert job.status_code == 202, job.text
        events = client.get(f"{job.headers['location']}/events", headers={"Accept": "text/event-stream"}).text
        assert "report.pdf: pages: 1" in events
        run = client.get(job.headers["location"]).json()
        assert "report.pdf" in json.dumps(run)
    with gateway.client("bob", "--tier", "free") as client:
        assert client.post("/claude/jobs", json={"prompt": "x", "skills": ["pdf"]}).status_code == 403
