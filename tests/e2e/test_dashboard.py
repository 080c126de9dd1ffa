"""The dashboard in a real Chromium, through the whole stack. With SHOTS=1 screenshots stay in build/screenshots/: no test looks
at them, and all together they take ten seconds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, Gateway
from tests.support.waiting import HANG_S, wait_for

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

expect.set_options(timeout=HANG_S * 1000)  # five seconds are too few for a run on a machine that is busy

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not Path(CHROMIUM).exists(), reason=f"there is no {CHROMIUM} (Debian: apt-get install chromium)"
    ),
]
SHOTS = ROOT / "build" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened_in(chromium: Browser, url: str) -> Iterator[Page]:
    """A fresh profile. At its end nothing may have been blocked by the pages' own policy, and no script have failed."""
    context = chromium.new_context(viewport={"width": 1180, "height": 860}, base_url=url)
    context.set_default_timeout(HANG_S * 1000)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    assert [text for text in complaints if "status of 4" not in text] == []


@pytest.fixture
def page(chromium: Browser, gateway: Gateway) -> Iterator[Page]:
    with opened_in(chromium, gateway.url) as opened:
        yield opened


def log_in(page: Page, token: str) -> None:
    page.goto("/claude/dashboard/login")
    page.get_by_label("Access token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/claude/dashboard")


def submit(gateway: Gateway, subject: str, prompt: str, tier: str = "pro", **more: Any) -> str:
    """The job's id."""
    with gateway.client(subject, "--tier", tier) as client:
        answer = client.post("/claude/jobs", json={"prompt": prompt} | more, headers={"X-Repo": "org/app"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def shoot(page: Page, name: str) -> None:
    if os.environ.get("SHOTS") != "1":
        return
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def in_all_looks(page: Page, name: str) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shoot(page, f"{name}-{scheme}")
    size = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 844})
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "the page scrolls sideways on a phone"
    shoot(page, f"{name}-phone")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(size or {"width": 1180, "height": 860})


def test_a_job_is_seen_from_waiting_to_done(page: Page, gateway: Gateway) -> None:
    log_in(page, gateway.token("watcher", "--tier", "free"))
    in_all_looks(page, "empty")
    # The tier allows one run at a time: the second job waits for the first, for as long as it takes to look at that.
    words = " ".join(f"word{n}" for n in range(5_000))
    first = submit(gateway, "watcher", f"[[delay 60]] [[say {words}]]", tier="free")
    answer = "The second answer. " * 30 + "That is all."
    second = submit(gateway, "watcher", f"[[delay 60]] [[say {answer}]]", tier="free")
    row = page.get_by_role("row").filter(has=page.locator(f"#job-{second}"))
    expect(row).to_contain_text("queued")
    expect(page.locator(f"#run-{first}")).to_be_visible()
    expect(page.locator(".tail").first).to_contain_text("word")
    in_all_looks(page, "overview-running")
    page.locator(f"#job-{second}").click()
    state = page.locator("#state")
    expect(state).to_have_text("queued")
    page.evaluate(
        """() => {
            window.seen = [];
            const look = () => {
                const now = document.getElementById("state").textContent;
                if (window.seen.at(-1) !== now) window.seen.push(now);
            };
            look();
            new MutationObserver(look).observe(document.getElementById("fragment"), { childList: true, subtree: true });
        }"""
    )
    with gateway.client("watcher", "--tier", "free") as client:
        client.delete(f"/claude/jobs/{first}").raise_for_status()
    expect(page.locator("#output")).to_contain_text("The second")
    expect(state).to_have_text("done")
    assert page.evaluate("window.seen") == ["queued", "running", "done"]
    expect(page.locator("#output")).to_have_text(answer)
    expect(page.locator("#lines")).to_contain_text("finished")
    expect(page.get_by_role("heading", name="Turn 1")).to_be_visible()
    in_all_looks(page, "job-done")
    page.reload()
    expect(page.locator("#output")).to_have_text(answer)


def test_a_running_job_is_cancelled_with_the_keyboard(page: Page, gateway: Gateway) -> None:
    log_in(page, gateway.token("stopper", "--tier", "pro"))
    job = submit(gateway, "stopper", "[[hang]] never ends")
    cancel = page.locator(f"#cancel-{job}")
    expect(cancel).to_be_visible()
    cancel.focus()
    page.wait_for_timeout(2500)  # the page has been replaced meanwhile: the focus must have stayed
    assert page.evaluate("document.activeElement.id") == f"cancel-{job}"
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{job}")
    expect(page.locator("#state")).to_have_text("cancelled")
    expect(page.locator("#cancel")).to_have_count(0)


def test_a_job_is_tried_again_and_counted(page: Page, gateway: Gateway) -> None:
    """By the button and by the API: each is one more of the tier's, as what begins a job anywhere, and looking is none."""
    with gateway.client("again", "--tier", "pro") as client:

        def used() -> int:
            (minute,) = [each for each in client.get("/claude/limits").json()["windows"] if each["name"] == "minute"]
            return int(minute["limit"] - minute["remaining"])

        def told() -> list[str]:
            """What the model has been asked for these jobs."""
            return [text for text in map(json.dumps, gateway.record()) if "once more" in text]

        job = submit(gateway, "again", "[[hang]] once more", tags=["nightly"])
        log_in(page, gateway.token("again", "--tier", "pro"))
        page.goto(f"/claude/dashboard/jobs/{job}")
        expect(page.locator("#state")).to_have_text("running")
        expect(page.locator("#retry")).to_have_count(0)
        wait_for(lambda: len(told()) == 1, what="the model's being asked")
        page.locator("#cancel").click()
        expect(page.locator("#state")).to_have_text("cancelled")
        in_all_looks(page, "job-cancelled")
        before = used()
        assert before == 1
        page.locator("#retry").focus()
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(rf"/jobs/job_(?!{job[4:]})"))
        assert used() == before + 1
        new = page.url.rpartition("/")[2]
        expect(page.locator("#state")).to_have_text("running")
        expect(page.locator("#tags")).to_contain_text("nightly")
        wait_for(lambda: len(told()) == 2, what="its being asked again")
        # What the gateway has put before the first request is not put before what that has become again.
        assert [text.count("You are a code review assistant.") for text in told()] == [1, 1]
        page.locator("#cancel").click()
        page.locator("#before").click()
        page.get_by_role("link", name=new).click()
        expect(page.locator("#state")).to_have_text("cancelled")
        answer = client.post(f"/claude/jobs/{job}/retry")
        assert answer.status_code == 202, answer.text
        assert used() == before + 2
        assert client.delete(answer.json()["links"]["self"]).status_code == 202
        for body in ({"prompt": "another"}, {}):
            assert client.post(f"/claude/jobs/{job}/retry", json=body).status_code == 422
    with gateway.client("stranger", "--tier", "pro") as client:
        assert client.post(f"/claude/jobs/{job}/retry").status_code == 404
    with gateway.client("fallen", "--tier", "free") as client:  # a tier that has fewer models
        opus = f"/claude/jobs/{submit(gateway, 'fallen', '[[hang]]', tier='team', model='opus')}"
        assert client.delete(opus).status_code == 202
        wait_for(lambda: client.get(opus).json()["state"] == "cancelled", what="its end")
        refused = client.post(f"{opus}/retry")
        assert refused.status_code == 403 and "model opus" in refused.json()["detail"], refused.text


def test_a_timeline_keeps_what_is_open_and_a_run_is_cancelled(page: Page, gateway: Gateway) -> None:
    """A run that is no job, while its caller waits for it."""
    call = json.dumps({"file_path": "plan.md", "content": EVIL})
    prompt = f"[[tool Write {call}]] [[delay 200]] [[say {'word ' * 3000}]]"
    log_in(page, gateway.token("waiter", "--tier", "pro"))
    with gateway.client("waiter", "--tier", "pro") as client:
        asked, headers = {"prompt": prompt, "tools": ["Write"]}, {"Accept": "text/event-stream", "X-Repo": "org/app"}
        with client.stream("POST", "/claude/invoke", json=asked, headers=headers) as answer:
            assert answer.status_code == 200
            page.goto(f"/claude/dashboard/runs/{answer.headers['x-claude-run']}")
            first = page.locator("#brief-1-1")
            expect(first).to_contain_text("plan.md")
            first.focus()
            page.keyboard.press("Enter")
            expect(page.locator("#output")).to_contain_text("word word word")
            expect(page.locator("#call-1-1 pre").first).to_be_visible()
            expect(page.locator("#call-1-1 pre").first).to_contain_text("<script>")
            assert page.evaluate("document.activeElement.id") == "brief-1-1"
            expect(page.get_by_role("heading", name="Turn 2")).to_be_visible()
            in_all_looks(page, "run-running")
            page.get_by_role("button", name="Cancel").click()
            expect(page.locator("#state")).to_have_text("cancelled")
            expect(page.locator("#again")).to_be_visible()
    assert page.title() != "owned"


def test_an_artifact_is_opened(page: Page, gateway: Gateway) -> None:
    log_in(page, gateway.token("maker", "--tier", "pro"))
    call = json.dumps({"file_path": "notes & plans.md", "content": "# Plans\n\n- none"})
    job = submit(gateway, "maker", f"[[tool Write {call}]] [[say written]]", tools=["Write"])
    page.locator(f"#job-{job}").click()
    expect(page.locator("#state")).to_have_text("done")
    link = page.get_by_role("link", name="notes & plans.md")
    expect(link).to_be_visible()
    in_all_looks(page, "job-artifact")
    opened = page.request.get(link.get_attribute("href") or "")
    assert opened.text() == "# Plans\n\n- none"
    assert "sandbox" in opened.headers["content-security-policy"]


def test_what_users_write_stays_text(page: Page, gateway: Gateway) -> None:
    evil_file = "<b onclick=x>.md"
    call = json.dumps({"file_path": evil_file, "content": EVIL})
    job = submit(
        gateway,
        "mallory",
        f"{EVIL} [[tool Write {call}]] [[say {EVIL}]]",
        tools=["Write"],
        context={"repository": EVIL, "branch": EVIL},
    )
    log_in(page, gateway.token("root", "--role", "claude:invoke", "--role", "admin"))
    expect(page.locator(f"#job-{job}")).to_contain_text("<script>")
    page.locator(f"#job-{job}").click()
    expect(page.locator("#state")).to_have_text("done")
    expect(page.locator("#output")).to_contain_text("<script>")
    expect(page.get_by_role("link", name=evil_file)).to_be_visible()
    expect(page.locator("main img, main script, main b")).to_have_count(0)
    assert page.title() != "owned"
    page.reload()
    expect(page.locator("#output")).to_contain_text("<script>")
    expect(page.locator("main img, main script, main b")).to_have_count(0)
    assert page.title() != "owned"


def test_admins_see_all_and_others_their_own(page: Page, gateway: Gateway) -> None:
    job = submit(gateway, "private-person", "[[say secret]]")
    log_in(page, gateway.token("somebody", "--tier", "pro"))
    expect(page.locator(f"#job-{job}")).to_have_count(0)
    assert page.request.get(f"/claude/dashboard/jobs/{job}").status == 404
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    assert page.request.get("/claude/dashboard").status == 401
    log_in(page, gateway.token("root", "--role", "claude:invoke", "--role", "admin"))
    expect(page.locator(f"#job-{job}")).to_be_visible()
    with gateway.client("root", "--tier", "pro") as client:
        around = client.post("/claude/invoke", json={"prompt": "hi"}).json()["isolation"]
    expect(page.locator("#boundary")).to_have_text(f"Boundary around a run: {around}")
    in_all_looks(page, "overview-admin")


def test_the_login_says_what_is_wrong_and_the_cookie_is_out_of_reach(page: Page, gateway: Gateway) -> None:
    page.goto("/claude/dashboard/login")
    in_all_looks(page, "login")
    for token, said in (("nonsense", "not a token"), ("e30.e30.e30", "does not accept")):
        page.get_by_label("Access token").fill(token)
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text(said)
    log_in(page, gateway.token("somebody", "--tier", "pro"))
    assert page.evaluate("document.cookie") == ""
    (cookie,) = page.context.cookies()
    assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("claude_token", True, "Strict")
    assert cookie["path"] == "/claude/dashboard"


def test_without_scripts_it_works(chromium: Browser, gateway: Gateway) -> None:
    job = submit(gateway, "plain", "[[hang]]")
    context = chromium.new_context(base_url=gateway.url, java_script_enabled=False)
    opened = context.new_page()
    log_in(opened, gateway.token("plain", "--tier", "pro"))
    opened.locator(f"#job-{job}").click()
    opened.locator("#cancel").click()
    opened.wait_for_load_state()
    for _ in range(40):
        opened.reload()
        if opened.locator("#state").inner_text() == "cancelled":
            break
        opened.wait_for_timeout(250)
    assert opened.locator("#state").inner_text() == "cancelled"
    context.close()


def test_a_job_is_found_without_scripts_by_the_keyboard(chromium: Browser, gateway: Gateway) -> None:
    """And the address of what was found shows the same to somebody else."""
    sought = submit(gateway, "seeker", "[[say a]] the very words")
    submit(gateway, "seeker", "[[say b]] others")
    submit(gateway, "finder", "[[say c]] the very words")
    context = chromium.new_context(base_url=gateway.url, java_script_enabled=False)
    opened = context.new_page()
    log_in(opened, gateway.token("root", "--role", "claude:invoke", "--role", "admin"))
    opened.get_by_role("link", name="Jobs", exact=True).focus()
    opened.keyboard.press("Enter")
    opened.get_by_role("searchbox").focus()
    opened.keyboard.type("the VERY words")
    opened.keyboard.press("Tab")
    opened.keyboard.type("seeker")
    opened.keyboard.press("Enter")
    expect(opened.locator("tbody .title")).to_have_count(1)
    expect(opened.locator(f"#job-{sought}")).to_be_visible()
    opened.goto(opened.url)
    expect(opened.locator("tbody .title")).to_have_count(1)
    opened.get_by_role("link", name="All jobs").click()
    expect(opened.locator(f"#job-{sought}")).to_be_visible()
    context.close()


def test_what_waits_is_decided_with_the_keyboard(page: Page, gateway: Gateway) -> None:
    """Shown whole and as text, while another page of it changes; allowed, and denied with a reason that is read."""
    spoofed = f"x {EVIL} \u202e"
    bodies = [{"file_path": "one.txt", "content": spoofed}, {"file_path": "two.txt", "content": "y"}]
    prompt = "".join(f"[[tool Write {json.dumps(body)}]]" for body in bodies)
    log_in(page, gateway.token("decider", "--tier", "pro"))
    link = page.get_by_role("link", name="Approvals")
    for _ in range(10):
        page.keyboard.press("Tab")
        if link.evaluate("link => link === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#nothing")).to_be_visible()
    job = submit(gateway, "decider", prompt, tools=["Write"], ask=["Write"])
    card = page.locator(".asked")
    expect(card).to_have_count(1)
    expect(card.locator("pre")).to_contain_text("<script>document.title='owned'</script>")
    expect(card.locator("pre")).to_contain_text("\\u202e")
    assert page.title() != "owned"
    in_all_looks(page, "approvals")
    page.keyboard.press("j")
    page.keyboard.press("a")
    expect(card.get_by_role("button", name="Allow")).to_be_focused()
    page.keyboard.press("Enter")
    expect(card.locator("pre")).to_contain_text("two.txt")
    page.keyboard.press("d")
    page.keyboard.type("not today")
    other = submit(gateway, "decider", prompt, tools=["Write"], ask=["Write"])
    expect(card).to_have_count(2)
    expect(card.filter(has_text="two.txt").get_by_label("Why not")).to_have_value("not today")
    page.keyboard.press("Enter")  # where the reason is written: it denies
    expect(card).to_have_count(1)
    expect(card.locator("pre")).to_contain_text("one.txt")
    page.keyboard.press("j")
    page.keyboard.press("d")
    page.keyboard.press("Enter")
    expect(card.locator("pre")).to_contain_text("two.txt")
    page.keyboard.press("k")
    page.keyboard.press("d")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#nothing")).to_be_visible()
    with gateway.client("decider", "--tier", "pro") as client:
        assert [each["decision"] for each in client.get(f"/claude/jobs/{other}").json()["decisions"]] == [
            "deny",
            "deny",
        ]
    page.goto(f"/claude/dashboard/jobs/{job}")
    expect(page.locator("#state")).to_have_text("done")
    expect(page.locator("#lines")).to_contain_text("not today")
    expect(page.get_by_role("link", name="one.txt")).to_be_visible()
