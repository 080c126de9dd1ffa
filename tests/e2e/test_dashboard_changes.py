"""What a job has changed in its repository, as the dashboard shows it in a real Chromium."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Gateway
from tests.e2e.test_workspace import CALLER
from tests.support.git_server import GitServer

dashboard = pytest.importorskip("tests.e2e.test_dashboard", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

chromium = dashboard.chromium
pytestmark = [*dashboard.pytestmark]
FORGED = "<script>document.title='owned'</script>"


@pytest.fixture
def page(chromium: Browser, stack: Gateway) -> Iterator[Page]:
    with dashboard.opened_in(chromium, stack.url) as opened:
        yield opened


def test_a_difference_is_read_file_by_file(page: Page, stack: Gateway, served: GitServer) -> None:
    served.create("org/shown")
    served.commit("org/shown", {"a.txt": "one\ntwo\n", "gone.txt": "x\n"})
    command = f"sed -i s/two/zwei/ a.txt; rm gone.txt; echo {shlex.quote(FORGED)} > new.html; printf '\\0' > image"
    asked = {"prompt": f"[[tool Bash {json.dumps({'command': command})}]]", "tools": ["Bash"]}
    with stack.client("ada", *CALLER) as client:
        job = client.post("/claude/jobs", json=asked, headers={"X-Repo": "org/shown", "X-Branch": "main"})
        while client.get(job.headers["location"]).json()["state"] not in ("done", "failed"):
            time.sleep(0.1)
        found = client.get(job.headers["location"]).json()
    assert {change["path"] for change in found["result"]["changes"]} == {"a.txt", "gone.txt", "image", "new.html"}
    dashboard.log_in(page, stack.token("ada", *CALLER))
    page.goto(f"/claude/dashboard/jobs/{job.json()['id']}")
    changes = page.get_by_role("region", name="Changes")
    expect(changes.locator("summary code")).to_have_text(["a.txt", "gone.txt", "image", "new.html"])
    expect(changes.locator(".removed")).to_have_text(["-two\n", "-x\n"])
    expect(changes.locator(".added")).to_have_text(["+zwei\n", f"+{FORGED}\n"])
    expect(changes).to_contain_text("org/shown at")
    assert page.title() != "owned"
    colours = [
        changes.locator(kind).first.evaluate("e => getComputedStyle(e).color") for kind in (".added", ".removed")
    ]
    assert len(set(colours)) == 2
    dashboard.in_all_looks(page, "job-changes")
