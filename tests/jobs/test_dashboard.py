"""The dashboard's doors: who may open which page, where a change must come from, what the login keeps."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from claude_invoker.caller import Caller
from claude_invoker.dashboard.live import event
from claude_invoker.dashboard.overview import SUBJECTS, Tier, _limits
from claude_invoker.dashboard.render import _billed
from claude_invoker.dashboard.routes import STATIC
from claude_invoker.jobs.record import Asks, Job, JobRequest
from claude_invoker.jobs.store import Store
from claude_invoker.ledger import Ledger
from claude_invoker.model import Permission
from claude_invoker.runs.deferral import Deferral
from tests.jobs.conftest import lease, serving, terms
from tests.rate_tiers.servers import RedisProcess

TOKEN = "eyJh.eyJz.c2ln"
HOME = "/claude/dashboard"
VISITOR = {"chk": ["rate-tiers"]}
OURS = {"Sec-Fetch-Site": "same-origin"}


FROM: tuple[tuple[dict[str, str], int], ...] = (
    (OURS, 303),
    ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403),
    ({"Sec-Fetch-Site": "none"}, 403),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://invoker"}, 403),
    ({}, 403),
    ({"Origin": "http://invoker"}, 303),
    ({"Origin": "http://invoker:8000"}, 303),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://evil.test"}, 403),
    ({"Origin": "http://invoker.evil.test"}, 403),
    ({"Origin": "https://gateway.example", "X-Forwarded-Host": "gateway.example"}, 303),
    ({"Origin": "https://gateway.example:8443", "X-Forwarded-Host": "gateway.example"}, 303),
    ({"Origin": "http://invoker", "X-Forwarded-Host": "gateway.example"}, 403),
    ({"Origin": "http://[::1]:8000", "X-Forwarded-Host": "[::1]"}, 303),
)


async def test_changes_come_from_our_pages(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        for headers, status in FROM:
            created = await gateway.create()
            for path, claims in (
                (f"{HOME}/login", VISITOR),
                (f"{HOME}/login/out", VISITOR),
                (f"{HOME}/jobs/{created['id']}/cancel", {}),
            ):
                subject = None if claims else "alice"
                answer = await gateway.ask("POST", path, subject, claims=claims, data={"token": TOKEN}, headers=headers)
                assert answer.status_code == status, (headers, path, answer.text)
            found = await gateway.ask("GET", created["links"]["self"])
            assert found.json()["state"] == ("cancelled" if status == 303 else "queued"), headers


async def test_a_visitor_sees_the_login_and_nothing_else(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        for path in (HOME, f"{HOME}/live", f"{HOME}/jobs", f"{HOME}/jobs/job_{'0' * 24}"):
            assert (await gateway.ask("GET", path, None, claims=VISITOR)).status_code == 401
            assert (await gateway.ask("GET", path, "alice", claims=VISITOR)).status_code == 401
            assert (await gateway.client.get(path)).status_code == 401
        for open_path in (f"{HOME}/login", *(f"{HOME}/static/{name}" for name in STATIC)):
            assert (await gateway.client.get(open_path)).status_code == 401  # past the gateway there is nothing
            answer = await gateway.ask("GET", open_path, None, claims=VISITOR)
            assert answer.status_code == 200
            assert (await gateway.ask("GET", open_path, None, claims={"chk": []})).status_code == 401
        for wrong in ("x.css", "..%2froutes.py", "%2e%2e/routes.py", "../routes.py"):
            answer = await gateway.ask("GET", f"{HOME}/static/{wrong}", None, claims=VISITOR)
            assert answer.status_code in (401, 404), wrong
            assert "import" not in answer.text


WITH_SLASH = (
    ("/", ""),
    ("//", ""),
    ("/?utm_source=x", "?utm_source=x"),
    ("/jobs/", "/jobs"),
    ("/jobs/?tag=a&state=done", "/jobs?tag=a&state=done"),
    ("/limits/", "/limits"),
    ("/jobs/job_" + "0" * 24 + "/", "/jobs/job_" + "0" * 24),
    ("//evil.example/", "/evil.example"),
    ("/%0dX-Evil:%201/", "/%0DX-Evil%3A%201"),
)


async def test_an_address_with_a_slash_at_its_end_leads_to_the_page(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        for path, leads in WITH_SLASH:
            answer = await gateway.ask("GET", HOME + path)
            assert (answer.status_code, answer.headers.get("location")) == (303, HOME + leads), path
            assert (await gateway.ask("GET", HOME + path, None, claims=VISITOR)).status_code == 401, path
        for path in (HOME, f"{HOME}/jobs"):
            assert (await gateway.ask("GET", path)).status_code == 200
        for outside in ("/..%2f..%2fother/", "/jobs/%2e%2e%2f..%2fother/", "/.%2Fjobs/"):
            answer = await gateway.ask("GET", HOME + outside)
            assert (answer.status_code, answer.headers.get("location")) == (404, None), outside
        answer = await gateway.ask("GET", f"{HOME}/login/", None, claims=VISITOR)
        assert (answer.status_code, answer.headers["location"]) == (303, f"{HOME}/login")


LOST = (
    ("/jobs/job_" + "0" * 24, "text/html,*/*;q=0.8", 404, True),
    ("/nowhere", "text/html", 404, True),
    ("/jobs?state=x%22%3E%3Cscript%3E", "text/html", 422, True),
    ("/jobs/job_" + "0" * 24, "*/*", 404, False),
    ("s", "text/html", 404, False),  # the dashboard's neighbour
)


async def test_a_browser_is_told_by_a_page_what_it_cannot_have(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        for path, accept, status, is_page in LOST:
            answer = await gateway.ask("GET", HOME + path, "alice", headers={"Accept": accept})
            assert answer.status_code == status, path
            kind = answer.headers["content-type"]
            if not is_page:
                assert kind == "application/problem+json", path
                continue
            assert kind.startswith("text/html"), path
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert f'<a href="{HOME}">To the overview</a>' in answer.text
            assert "<script>" not in answer.text
            assert "literal" not in answer.text, "no words of a library's"
        job = await gateway.create()
        for sent, status, heading in (
            ({"Sec-Fetch-Site": "cross-site"}, 403, "This is not allowed"),
            (OURS, 409, "This cannot be done now"),
        ):
            path = f"{HOME}/jobs/{job['id']}/retry"
            answer = await gateway.ask("POST", path, headers={"Accept": "text/html", **sent})
            assert (answer.status_code, re.findall("<h1>(.*?)</h1>", answer.text)) == (status, [heading])
            for todo in ("press its button there", "ask whoever runs this gateway", f'href="{HOME}/login"'):
                assert (todo in answer.text) == (status == 403), todo
        refused = await gateway.ask("GET", HOME, None, claims=VISITOR, headers={"Accept": "text/html"})
        assert (refused.status_code, refused.headers["content-type"][:9]) == (401, "text/html")
        assert refused.headers["www-authenticate"].startswith("X-Claude-Attestation")


TYPED = (
    (TOKEN, 303),
    (f"  Bearer {TOKEN}\n", 303),
    ("", 422),
    ("x", 422),
    ("a.b.c; Domain=x", 422),
    ("a.b." + "c" * 4000, 422),
)


async def test_the_login_keeps_only_tokens(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:

        async def post(path: str, headers: dict[str, str], **data: str) -> httpx.Response:
            return await gateway.ask("POST", path, None, claims=VISITOR, data=data, headers=headers)

        for token, status in TYPED:
            answer = await post(f"{HOME}/login", OURS, token=token)
            assert answer.status_code == status, token
            if status == 303:
                assert answer.headers["location"] == HOME
                cookie = answer.headers["set-cookie"]
                assert cookie == f"claude_token={TOKEN}; HttpOnly; Path={HOME}; SameSite=strict"
                answer = await post(f"{HOME}/login", OURS | {"X-Forwarded-Proto": "https"}, token=token)
                assert answer.headers["set-cookie"].endswith("; Secure")
                out = await post(f"{HOME}/login/out", OURS)
                assert "Max-Age=0" in out.headers["set-cookie"]


async def test_every_page_carries_the_policy_and_no_inline_code(redis_server: RedisProcess, state: Path) -> None:
    async with serving(redis_server, state, worker="none") as gateway:
        evil = '"><script>alert(1)</script>{{ 7*7 }}'
        created = await gateway.create(evil, context={"repository": evil})
        pages = [
            await gateway.ask("GET", HOME),
            await gateway.ask("GET", f"{HOME}/jobs"),
            await gateway.ask("GET", f"{HOME}/jobs/{created['id']}"),
            await gateway.ask("GET", f"{HOME}/login", None, claims=VISITOR),
        ]
        for page in pages:
            assert page.status_code == 200
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert page.headers["cache-control"] == "no-store"
            assert re.findall(r"<script(?![^>]* src=)|<style| style=| on\w+=", page.text) == []
            assert "alert(1)</script>" not in page.text
            assert re.findall(r"(?:src|href|action)=\"(?!/claude/dashboard|#)", page.text) == []


def test_an_event_cannot_be_broken_out_of() -> None:
    assert event("x", "a\rdata: b\r\nevent: y\n\nid: 1", "1-1") == (
        "id: 1-1\nevent: x\ndata: a\ndata: data: b\ndata: event: y\ndata: \ndata: id: 1\n\n"
    )


async def test_with_many_callers_each_tier_has_its_own(store: Store, redis_server: RedisProcess) -> None:
    """Of more callers than are asked for, one tier's were counted as another's."""
    jobs: list[Job] = []
    for n in range(SUBJECTS + 10):
        tier = "old" if n < 20 else "new"
        subject = f"s{n}"
        places = terms(concurrent=1 if tier == "old" else 3)
        caller = Caller(subject, tier=tier, lease=lease(subject), slot=places, queued=True)
        each = Job.new(JobRequest(prompt="hi"), caller, 1000.0 + n)
        await store.add(each)
        jobs.insert(0, each)
    tiers = {name: Tier(name) for name in ("old", "new")}
    limits = Ledger(redis_server.url)
    await _limits(store, limits, jobs, [], tiers)
    await limits.close()
    assert (tiers["old"].callers, tiers["old"].concurrent) == (10, 10)
    assert (tiers["new"].callers, tiers["new"].concurrent) == (40, 120)


async def test_the_queue_of_what_waits(redis_server: RedisProcess, state: Path) -> None:
    """Shown to whom it concerns, with buttons for who may decide; and it is decided there."""
    async with serving(redis_server, state, worker="none") as gateway:
        store: Store = gateway.app.state.services.jobs.store
        created = await gateway.create("[[say hi]]", ask=["Bash"])
        found = await store.claim("ticket", "worker")
        assert found is not None
        asked = Permission(
            id="perm_1", tool="Bash", input={"command": "</pre><script>\u202e"}, why="w", asked_at=1, expires_at=9e9
        )
        assert await store.defer(found[0], Asks(waiting=[asked]), Deferral(session="s", permission=asked)) == "put away"
        page, approver = f"{HOME}/approvals", {"roles": ["claude:approve"]}
        for subject, claims, sees, decides in (
            ("alice", {}, True, True),
            ("bob", approver, True, True),
            ("root", {"roles": ["admin"]}, True, False),
            ("mallory", {}, False, False),
        ):
            shown = (await gateway.ask("GET", page, subject, claims=claims)).text
            assert ("May it call Bash?" in shown, 'value="allow"' in shown) == (sees, decides), subject
            assert "<script>\u202e" not in shown and ("&lt;script&gt;\\u202e" in shown) == sees
        form = f"{HOME}/jobs/{created['id']}/permissions/perm_1"
        given = {"decision": "deny", "message": "no", "back": "approvals"}
        assert (await gateway.ask("POST", form, "mallory", data=given, headers=OURS)).status_code == 404
        decided = await gateway.ask("POST", form, "bob", claims=approver, data=given, headers=OURS)
        assert decided.status_code == 303 and decided.headers["location"] == page, decided.text
        assert "Nothing waits for you." in (await gateway.ask("GET", page)).text
        seen = (await gateway.ask("GET", created["links"]["self"])).json()
        assert (seen["state"], seen["decisions"][0]["by"], seen["decisions"][0]["message"]) == ("queued", "bob", "no")


async def test_a_run_has_a_page_for_whom_it_concerns(redis_server: RedisProcess, state: Path) -> None:
    """With what it cost to the micro-dollar; and it is cancelled by a page of ours alone."""
    async with serving(redis_server, state, worker="none") as gateway:
        answer = await gateway.ask("POST", "/claude/invoke", json={"prompt": "hi"})
        assert answer.status_code == 200, answer.text
        done = answer.json()
        run = answer.headers["x-claude-run"]
        for subject, claims, status in (("alice", {}, 200), ("root", {"roles": ["admin"]}, 200), ("mallory", {}, 404)):
            page = await gateway.ask("GET", f"{HOME}/runs/{run}", subject, claims=claims)
            assert page.status_code == status, page.text
            assert (f'<dd id="cost">{_billed(done["cost_usd"])}</dd>' in page.text) == (status == 200)
            cancelled = await gateway.ask(
                "POST", f"{HOME}/runs/{run}/cancel", subject, claims=claims, headers=OURS, data={}
            )
            assert cancelled.status_code == (303 if status == 200 else 404)
        assert (await gateway.ask("POST", f"{HOME}/runs/{run}/cancel", data={})).status_code == 403
        for query, subject, claims, sees in (
            ("", "alice", {}, True),
            ("?state=succeeded", "alice", {}, True),
            ("?state=failed", "alice", {}, False),
            ("?caller=alice", "mallory", {}, False),
            ("", "mallory", {}, False),
            ("", "root", {"roles": ["admin"]}, True),
            ("?caller=alice&model=&repository=", "root", {"roles": ["admin"]}, True),
            ("?caller=mallory", "root", {"roles": ["admin"]}, False),
        ):
            listed = await gateway.ask("GET", f"{HOME}/runs{query}", subject, claims=claims)
            assert listed.status_code == 200 and (run in listed.text) == sees, (query, subject)
        for wrong in ("state=x", "cursor=x"):
            assert (await gateway.ask("GET", f"{HOME}/runs?{wrong}")).status_code == 422, wrong
        live = await gateway.ask("GET", f"{HOME}/runs/{run}/live")
        assert live.text.endswith("event: end\ndata: {}\n\n") and 'id="lines"' in live.text
        assert (await gateway.ask("GET", f"{HOME}/runs/{run}/artifacts/none")).status_code == 404
        for path in (f"{HOME}/runs/{run}", f"{HOME}/runs/{run}/live"):
            assert (await gateway.ask("GET", path, None, claims=VISITOR)).status_code == 401
