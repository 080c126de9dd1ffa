"""Jobs are found by what is asked for: each once, the newest first, page after page, and never another's."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest

from claude_contract.claims import Repository
from claude_invoker.caller import Caller
from claude_invoker.dashboard import lists
from claude_invoker.jobs import finding
from claude_invoker.jobs.finding import Wanted, find
from claude_invoker.jobs.record import Job, JobRequest
from claude_invoker.jobs.store import Store
from claude_invoker.place import Place
from tests.jobs.conftest import Gateway, serving
from tests.rate_tiers.servers import RedisProcess

HOME = "/claude/dashboard"
ADMIN = {"roles": ["admin"]}


def made(n: int, *, subject: str, tier: str, repository: str, prompt: str, tags: list[str]) -> Job:
    """Two in each second, at the very same time."""
    caller = Caller(subject, tier=tier, repository=Repository(repository) if repository else None)
    return Job.new(JobRequest(prompt=prompt, tags=tags), caller, 1_700_000_000.123456 + n // 2)


@pytest.fixture
async def known(store: Store) -> list[Job]:
    """The newest first; every fifth is cancelled."""
    jobs = []
    for n in range(40):
        job = made(
            n,
            subject="alice" if n % 2 else "bob",
            tier="pro" if n % 3 else "team",
            repository=("", "org/App", "org/lib")[n % 3],
            tags=[[], ["nightly"], ["a.b-c_1", "night"], ["night", "nightly"]][n % 4],
            prompt=f"Fix 100% of [it] {n}" if n % 4 else f"Write Ümlauts {n}",
        )
        await store.add(job)
        if n % 5 == 0:
            assert await store.cancel(job, 60)
            job.state = "cancelled"
        jobs.append(job)
    return sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)


ASKED: tuple[tuple[str | None, Wanted], ...] = (
    (None, Wanted()),
    ("alice", Wanted()),
    ("nobody", Wanted()),
    (None, Wanted(state="cancelled")),
    (None, Wanted(state="running")),
    (None, Wanted(tier="team")),
    (None, Wanted(repository="org/app")),
    (None, Wanted(repository="ORG/")),
    (None, Wanted(repository="org/app/x")),
    (None, Wanted(text="WRITE Ümlauts")),
    (None, Wanted(text="100% of [it]")),
    (None, Wanted(text="%d")),
    (None, Wanted(tag="nightly")),
    (None, Wanted(tag="night")),
    (None, Wanted(tag="Night")),
    (None, Wanted(tag="a.b-c_1")),
    (None, Wanted(tag="a.b")),
    (None, Wanted(tag="night nightly")),
    (None, Wanted(text="fix", tag="nightly")),
    ("bob", Wanted(state="queued", tier="pro", repository="lib", text="fix")),
)


def meets(job: Job, subject: str | None, wanted: Wanted) -> bool:
    return (
        subject in (None, job.subject)
        and wanted.state in ("", job.state)
        and wanted.tier in ("", job.tier)
        and wanted.repository.lower() in job.repository.lower()
        and wanted.text.lower() in job.title.lower()
        and (not wanted.tag or wanted.tag in job.tags)
    )


@pytest.mark.parametrize("looked_at", [3, 2000])
async def test_all_are_found_page_by_page(
    store: Store, known: list[Job], looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a page looks at fewer than there are, and where its edge is between two of the same time."""
    monkeypatch.setattr(finding, "LOOKED_AT", looked_at)
    for subject, wanted in ASKED:
        for count in (1, 2, 7, 100):
            found: list[str] = []
            after: Place | None = None
            while True:
                page, after = await find(store, subject, wanted, after, count)
                assert len(page) <= count
                found += [job.id for job in page]
                if after is None:
                    break
                assert Place.parse(str(after)) == after
            assert found == [job.id for job in known if meets(job, subject, wanted)], (subject, wanted, count)


def rows(page: str) -> list[str]:
    return re.findall(r'id="job-(job_[0-9a-f]{24})"', page)


async def shown(gateway: Gateway, subject: str = "root", **asked: str) -> str:
    claims = ADMIN if subject == "root" else {}
    answer = await gateway.ask("GET", f"{HOME}/jobs?{urlencode(asked)}", subject, claims=claims)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_a_list_is_an_address(redis_server: RedisProcess, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody's for admins, one's own for others, whatever they ask; pages follow each other by links."""
    monkeypatch.setattr(lists, "SHOWN", 2)
    async with serving(redis_server, state, worker="none") as gateway:
        of_alice = [(await gateway.create(f"word {n}"))["id"] for n in range(3)]
        of_bob = (await gateway.create("other words", "bob"))["id"]
        assert rows(await shown(gateway, "bob")) == [of_bob]
        assert rows(await shown(gateway, "bob", caller="alice")) == [of_bob]
        assert 'name="caller"' not in await shown(gateway, "bob")
        assert rows(await shown(gateway, caller="bob")) == [of_bob]
        assert rows(await shown(gateway, caller="bob", state="done")) == []
        first = await shown(gateway, text="word", caller="alice", state="queued")
        assert rows(first) == of_alice[:0:-1]
        assert all(each in first for each in ('value="word"', 'value="alice"', '<option value="queued" selected>'))
        (older,) = re.findall(r'id="older" rel="next" href="([^"]*)"', first)
        second = (await gateway.ask("GET", unescape(older), "root", claims=ADMIN)).text
        assert rows(second) == of_alice[:1] and 'id="older"' not in second and 'value="alice"' in second
        assert rows((await gateway.ask("GET", unescape(older), "bob")).text) == []
        (newest,) = re.findall(r'id="newest" href="([^"]*)"', second)
        assert rows((await gateway.ask("GET", unescape(newest), "root", claims=ADMIN)).text) == rows(first)
        by_id = await gateway.ask("GET", f"{HOME}/jobs?text=+{of_bob}+", "root", claims=ADMIN)
        assert (by_id.status_code, by_id.headers["location"]) == (303, f"{HOME}/jobs/{of_bob}")
        for wrong in ("state=x", "cursor=x", "cursor=1.0-job_", f"text={'x' * 200}"):
            assert (await gateway.ask("GET", f"{HOME}/jobs?{wrong}")).status_code == 422, wrong
        assert 'id="unknown"' not in first
        for place in ("jobs", "runs"):
            page = (
                await gateway.ask("GET", f"{HOME}/{place}?tags=x&utm_source=<b>&caller=bob", "root", claims=ADMIN)
            ).text
            (said,) = re.findall(r'id="unknown">(.*?)</p>', page)
            assert "names <code>tags</code>, <code>utm_source</code>, which is not known here" in said
            assert ", tag, " in said and "<b>" not in page
        for junk in ("text=%ff%00", "caller=%22%3E%3Cscript%3E&text=%27", "tier=%e2%80%ae"):
            page = (await gateway.ask("GET", f"{HOME}/jobs?{junk}", "root", claims=ADMIN)).text
            assert 'id="none"' in page and "<script>" not in page
