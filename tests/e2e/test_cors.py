"""Pages of other origins, as `docs/clients.md` lets them in; on a real Kong, since minikong has no `cors`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kong_claude.doctor import rules, view
from tests.cli.test_doctor import environment_of_compose
from tests.e2e.conftest import ROOT, Gateway, standing
from tests.support.waiting import HANG_S

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(not os.environ.get("KONG"), reason="KONG=/path/to/kong: a real one"),
]
PAGE, OTHER = "https://app.example.com", "https://elsewhere.example"


def with_pages(text: str) -> str:
    """kong.yml with what the document shows, where it says that it belongs."""
    document = (ROOT / "docs" / "clients.md").read_text().partition("## From a browser")[2]
    plugin, route = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)[:2]
    head, marker, rest = text.partition("- name: claude-errors")
    return f"{head}{plugin}{marker}{rest}{route}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "kong.yml"
    path.write_text(with_pages((ROOT / "kong.yml").read_text()))
    return path


@pytest.fixture(scope="module")
def open_to_pages(config: Path) -> Iterator[Gateway]:
    with standing(config.parent / "state", config=config) as found:
        yield found


def preflight(gateway: Gateway, path: str, origin: str, method: str = "POST") -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,x-repo",
    }
    return httpx.options(f"{gateway.url}{path}", headers=headers, timeout=HANG_S)


def let_in(answer: httpx.Response, origin: str) -> bool:
    """As a browser decides it."""
    return answer.headers.get("access-control-allow-origin") in (origin, "*")


@pytest.mark.parametrize(
    "path", ["/claude/invoke", "/claude/jobs/job_0", "/claude/v1/messages", "/claude/openapi.json"]
)
def test_the_named_page_may_ask_and_no_other(open_to_pages: Gateway, path: str) -> None:
    mine, other = (preflight(open_to_pages, path, origin) for origin in (PAGE, OTHER))
    assert mine.status_code == 200 and let_in(mine, PAGE)
    assert "authorization" in mine.headers["access-control-allow-headers"].lower()
    assert not let_in(other, OTHER)


def test_answers_and_refusals_can_be_read_by_the_page_alone(open_to_pages: Gateway) -> None:
    body = {"prompt": "hi"}
    with open_to_pages.client("paul", "--tier", "pro") as paul, open_to_pages.client() as nobody:
        for client, status in ((paul, 200), (nobody, 401)):
            answer = client.post("/claude/invoke", json=body, headers={"Origin": PAGE})
            assert answer.status_code == status and let_in(answer, PAGE)
            assert "X-Claude-Run" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
            assert not let_in(client.post("/claude/invoke", json=body, headers={"Origin": OTHER}), OTHER)


def test_who_asks_with_options_runs_nothing(open_to_pages: Gateway) -> None:
    before = len(open_to_pages.record())
    plain = httpx.request("OPTIONS", f"{open_to_pages.url}/claude/invoke", json={"prompt": "hi"}, timeout=HANG_S)
    assert (plain.status_code, plain.content) == (204, b"")
    assert preflight(open_to_pages, "/claude/invoke", PAGE).content == b""
    assert len(open_to_pages.record()) == before


def test_the_doctor_finds_no_opening(config: Path) -> None:
    seen = view.from_file(config, environment_of_compose(config.parent))
    assert list(rules.examine(seen)) == []
