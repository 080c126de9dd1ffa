"""Every page of the dashboard in both themes and on a phone, by axe: no finding that keeps somebody from using it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from claude_invoker.dashboard.routes import ROUTERS
from docsite import screenshots
from tests.e2e.conftest import Gateway

dashboard = pytest.importorskip("tests.e2e.test_dashboard", reason="playwright is not installed")
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect  # noqa: E402

chromium = dashboard.chromium
pytestmark = [*dashboard.pytestmark]
HOME = "/claude/dashboard"
NO_PAGES = {"live", "static", "artifacts"}


@pytest.fixture
def page(chromium: Browser, gateway: Gateway) -> Iterator[Page]:
    with dashboard.opened_in(chromium, gateway.url) as opened:
        yield opened


def findings(page: Page) -> list[str]:
    """The serious and the critical, where they are."""
    found = Axe().run(page).response["violations"]
    return [
        f"{page.url}: {each['id']}: {node['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def templates() -> set[str]:
    """The paths of all pages, below the dashboard's; what ends in a slash leads to one."""
    routes = [route for router in ROUTERS for route in router.routes]
    found = {route.path for route in routes if isinstance(route, Route) and "GET" in (route.methods or ())}
    pages = {path for path in found if not path.endswith("/")}
    return {path.removeprefix("/dashboard") for path in pages if not set(path.split("/")) & NO_PAGES}


def test_each_page_can_be_used_in_each_look(page: Page, gateway: Gateway) -> None:
    page.goto(f"{HOME}/login")
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<input>')")
    assert findings(page), "the control: an input without a label is found"
    call = json.dumps({"file_path": "a.md", "content": "x"})
    done = dashboard.submit(gateway, "reader", f"[[tool Write {call}]] [[say done]]", tools=["Write"])
    asks = dashboard.submit(gateway, "reader", f"[[tool Write {call}]] [[say so]]", tools=["Write"], ask=["Write"])
    with gateway.client("reader", "--tier", "pro") as client:
        answer = client.post("/claude/invoke", json={"prompt": "[[say hi]]"}, headers={"X-Repo": "org/app"})
    assert answer.status_code == 200, answer.text
    dashboard.log_in(page, gateway.token("reader", "--tier", "pro", "--role", "claude:invoke", "--role", "admin"))
    page.goto(f"{HOME}/jobs/{done}")
    expect(page.locator("#state")).to_have_text("done")
    page.goto(f"{HOME}/jobs/{asks}")
    expect(page.locator(".asked")).to_have_count(1)
    pages = {
        "login": "login",
        "overview": "",
        "jobs": "jobs?caller=reader",
        "no-jobs": "jobs?text=nobody+asked+for+this",
        "jobs-by-a-wrong-name": "jobs?tags=x",
        "runs": "runs",
        "charts": "charts?span=1h",
        "approvals": "approvals",
        "limits": "limits",
        "limits-of-another": "limits?sub=reader&tier=pro",
        "catalog": "catalog",
        "job-done": f"jobs/{done}",
        "job-asks": f"jobs/{asks}",
        "run-done": f"runs/{answer.headers['x-claude-run']}",
        "nothing-there": "nothing/there",
    }
    visited, found = set(), list[str]()
    for name, path in pages.items():
        page.goto(f"{HOME}/{path}".rstrip("/"))
        visited.add(page.url.partition(HOME)[2].partition("?")[0])
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        dashboard.in_all_looks(page, f"page-{name}")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found += findings(page)
    assert found == []
    patterns = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) for path in templates()]
    assert [each for each in patterns if not any(re.fullmatch(each, seen) for seen in visited)] == [], (
        "all were visited"
    )


def test_pictures_for_the_site_are_of_the_pages_that_there_are(
    chromium: Browser, gateway: Gateway, tmp_path: Path
) -> None:
    """What `make screenshots` does, at a stack that is there already: two of its pages, of all that it has let run."""
    ids = screenshots.fill(gateway.url, gateway.token)
    token = gateway.token("ada", "--tier", "pro", "--role", "claude:invoke", "--role", "admin")
    screenshots.shoot(chromium, gateway.url, token, ids, tmp_path, ("job", "limits"))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {f"{name}-{theme}.png" for name in ("job", "limits") for theme in screenshots.THEMES}
    assert min(sizes.values()) > 10_000 and len({path.read_bytes() for path in tmp_path.iterdir()}) == 4
    assert screenshots.page(tmp_path) is None, "the others are missing: the site does without"
    with gateway.client("ada", "--tier", "pro") as client:
        client.delete(f"/claude/jobs/{ids['asking']}")
    addresses = {path.partition("/")[0].partition("?")[0] for path, _ in screenshots.PAGES.values()}
    assert addresses == {path.strip("/").partition("/")[0] for path in templates()} - {"login", "runs"}
