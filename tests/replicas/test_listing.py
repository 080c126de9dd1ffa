"""Lists of a subject's runs: each once and none of others, whatever begins, ends, lapses or dies meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_invoker.api import listing
from claude_invoker.caller import Caller
from claude_invoker.holding import Bounds
from claude_invoker.model import RunList
from claude_invoker.place import Place
from claude_invoker.replicas import register as of_register
from claude_invoker.replicas.register import Register
from claude_invoker.runs import summary
from claude_invoker.runs.run import Run, new_id
from claude_invoker.runs.summary import Filter, Summary, summary_of
from tests.rate_tiers.servers import RedisProcess
from tests.replicas.test_attacks import request
from tests.replicas.test_held import SIZE, over, write
from tests.support.waiting import until

ANY = Filter()


def begun(subject: str = "alice", created_at: float = 5.0, **more: Any) -> Run:
    run = over(new_id(), subject, created_at=created_at)
    vars(run).update({"state": "running", "finished_at": None} | more)
    return run


async def begin(register: Register, *runs: Run) -> None:
    for run in runs:
        register.began(run)
        await register.written(run)
    assert register.unwritten == 0


async def listed(
    subject: str = "alice", wanted: Filter = ANY, before: Place | None = None, limit: int = 20, **parts: Any
) -> RunList:
    """As the API answers, of a replica or (`runs`) of a process that has no Redis."""
    register, runs = parts.get("register"), parts.get("runs", ())
    engine = SimpleNamespace(runs={run.id: run for run in runs})
    replicas = None if register is None else SimpleNamespace(register=register)
    asked = request(replicas=replicas, engine=engine, settings=SimpleNamespace(prefix=""))
    return await listing.listed(asked, Caller(subject), wanted, before, limit)


def ids(found: RunList) -> list[str]:
    return [run.id for run in found.runs]


def in_index(server: RedisProcess, subject: str = "alice") -> tuple[int, int]:
    """How many runs are in each of the two keys."""
    known: Any = server.client()
    return known.zcard(f"claude:{{runs}}:of:{subject}"), known.hlen(f"claude:{{runs}}:summaries:{subject}")


TIMES = st.lists(st.sampled_from([1.0, 1.0000002, 2.5, 3.0]), min_size=1, max_size=12)


@pytest.mark.parametrize("with_redis", [True, False])
def test_page_by_page_each_is_there_once_whatever_begins_meanwhile(
    redis_server: RedisProcess, with_redis: bool
) -> None:
    async def pages(times: list[float], limit: int, looked_at: int) -> None:
        redis_server.client().flushall()
        runs = [begun(created_at=at, owner="") for at in times]
        async with Register(redis_server.url, "http://a") as one, Register(redis_server.url, "http://b") as other:
            for number, run in enumerate(runs):
                await begin((one, other)[number % 2], run)
            parts: Any = {"register": one, "runs": runs} if with_redis else {"runs": runs}
            found, before = list[str](), None
            while True:
                page = await listed(before=before, limit=limit, **parts)
                found += ids(page)
                assert len(page.runs) <= limit and len(found) <= len(runs)
                later = begun(created_at=9.0)
                await begin(other, later)
                parts["runs"] = [*parts["runs"], later]
                if page.next is None:
                    break
                before = Place.parse(page.next)
        assert found == [run.id for run in sorted(runs, key=lambda run: (run.created_at, run.id), reverse=True)]

    @given(TIMES, st.integers(1, 5), st.sampled_from([2, 200]))
    def all_of_them(times: list[float], limit: int, looked_at: int) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(listing, "LOOKED_AT", looked_at)
            asyncio.run(pages(times, limit, looked_at))

    all_of_them()


FILTERS: dict[str, tuple[Filter, str]] = {
    "nothing": (ANY, "abc"),
    "what goes on": (Filter(state="running"), "c"),
    "what has failed": (Filter(state="failed"), ""),
    "what is over": (Filter(state="succeeded"), "ab"),
    "since": (Filter(since=2.0), "bc"),
    "until": (Filter(until=2.0), "a"),
    "a span": (Filter(since=1.5, until=3.0), "b"),
    "no span": (Filter(since=3.0, until=1.0), ""),
    "a session": (Filter(session="s1"), "ac"),
    "a repository": (Filter(repository="acme/app"), "b"),
    "a repository by its beginning": (Filter(repository="acme"), ""),
    "a model": (Filter(model="claude-haiku-4-5"), "a"),
    "an alias": (Filter(model="haiku"), "a"),
    "no model": (Filter(model=""), ""),
    "a tag": (Filter(tag="billing"), "bc"),
    "a tag that is not the first": (Filter(tag="nightly"), "c"),
    "a tag by its beginning": (Filter(tag="bill"), ""),
    "no tag": (Filter(tag=""), ""),
    "two of them": (Filter(session="s1", state="running"), "c"),
}


def some() -> dict[str, Run]:
    """Two that are over and one that goes on, of which the last has only what it was begun with."""
    a, b, c = (begun(created_at=float(at)) for at in (1, 2, 3))
    ended = {"state": "succeeded", "finished_at": 4.0, "cost_usd": 0.5}
    vars(a).update(ended | {"session": "s1", "model": "claude-haiku-4-5-20251001"})
    at_work_on = SimpleNamespace(
        session="new", model="sonnet", repository=SimpleNamespace(name="acme/app"), tags=("billing",)
    )
    vars(b).update(ended | {"plan": at_work_on, "model": "claude-sonnet-5-5"})
    vars(c).update(
        model="",
        plan=SimpleNamespace(session="s1", model="claude-opus-5-5", repository=None, tags=("nightly", "billing")),
    )
    return {"a": a, "b": b, "c": c}


@pytest.mark.parametrize(("wanted", "names"), FILTERS.values(), ids=FILTERS)
async def test_what_is_asked_for(redis_server: RedisProcess, wanted: Filter, names: str) -> None:
    runs = some()
    async with Register(redis_server.url, "http://a") as one, Register(redis_server.url, "http://b") as other:
        await begin(one, *runs.values())
        await write(one, runs["a"], runs["b"])
        by_one = await listed(wanted=wanted, register=one, runs=runs.values())
        by_other = await listed(wanted=wanted, register=other)
    alone = await listed(wanted=wanted, runs=runs.values())
    assert by_one == by_other == alone
    assert ids(alone) == [runs[name].id for name in reversed(names)]


async def test_what_a_list_says_of_a_run() -> None:
    runs = some()
    at_work, _, first = (await listed(runs=runs.values())).runs
    assert first.model_dump() == {
        "id": runs["a"].id,
        "state": "succeeded",
        "created_at": 1.0,
        "finished_at": 4.0,
        "model": "claude-haiku-4-5-20251001",
        "session": "s1",
        "repository": None,
        "cost_usd": 0.5,
        "tags": [],
        "links": {"self": f"/runs/{runs['a'].id}"},
    }
    assert (at_work.state, at_work.model, at_work.session) == ("running", "claude-opus-5-5", "s1")
    assert at_work.tags == ["nightly", "billing"]


SUBJECTS = ("alice", "alice:x", "", "of:alice", "*", "}", "alice ", "ålice", "al\nice")


async def test_no_subject_sees_anothers(redis_server: RedisProcess) -> None:
    """Jobs, of which there is another list, are nobody's here."""
    runs = {subject: begun(subject) for subject in SUBJECTS}
    job = begun(is_job=True)
    async with Register(redis_server.url, "http://a") as one:
        await begin(one, *runs.values(), job)
        for subject in SUBJECTS:
            for parts in ({"register": one, "runs": runs.values()}, {"runs": [*runs.values(), job]}):
                assert ids(await listed(subject, **parts)) == [runs[subject].id], subject
        assert ids(await listed("bob", register=one)) == []


async def everybodys(limit: int = 20, **parts: Any) -> list[Summary]:
    """As an admin's page asks, page by page."""
    engine = SimpleNamespace(runs={run.id: run for run in parts.get("runs", ())})
    replicas = SimpleNamespace(register=parts["register"]) if "register" in parts else None
    asked = request(replicas=replicas, engine=engine, settings=SimpleNamespace(prefix=""))
    found, before = list[Summary](), None
    while True:
        page, before = await listing.summaries(asked, None, ANY, before, limit)
        found += page
        if before is None:
            return found


@pytest.mark.parametrize("limit", [1, 4, 100])
async def test_all_subjects_runs_are_there_once(redis_server: RedisProcess, limit: int) -> None:
    """Whose they are is said; several begin at the same moment."""
    runs = [begun(subject, created_at=float(n // 3), tier="pro") for n, subject in enumerate(SUBJECTS)]
    async with Register(redis_server.url, "http://a") as one:
        await begin(one, *runs)
        by_redis = await everybodys(limit, register=one, runs=runs)
    alone = await everybodys(limit, runs=runs)
    expected = [(run.id, run.subject, "pro") for run in sorted(runs, key=lambda r: (r.created_at, r.id), reverse=True)]
    for found in (by_redis, alone):
        assert [(each.id, each.subject, each.tier) for each in found] == expected


async def test_what_is_kept_no_more_is_in_nobodys_list(redis_server: RedisProcess) -> None:
    known: Any = redis_server.client()
    async with Register(redis_server.url, "http://a") as one:
        for number in range(20):
            run = begun(f"s{number}", created_at=float(number))
            await begin(one, run)
            known.delete(f"claude:{{runs}}:run:{run.id}")
        assert known.zcard("claude:{runs}:all") <= 2, "those that begin take the lapsed ones out"
        kept = over(new_id(), "bob", created_at=30.0)
        await write(one, kept)
        assert [each.id for each in await everybodys(register=one)] == [kept.id]
        assert known.zcard("claude:{runs}:all") == 1


async def test_one_that_is_kept_no_more_is_listed_no_more(redis_server: RedisProcess) -> None:
    async with Register(redis_server.url, "http://a") as one:
        short, kept = (over(new_id(), "alice", retention_s=seconds) for seconds in (1, 600))
        await begin(one, short)
        await write(one, kept, short)
        assert len((await listed(register=one)).runs) == 2, "the control"

        async def is_alone() -> bool:
            return ids(await listed(register=one)) == [kept.id]

        await until(is_alone, "the end of what it was kept for")
    assert in_index(redis_server) == (1, 1)


async def test_of_runs_that_nobody_ends_no_more_are_listed_than_have_a_record(redis_server: RedisProcess) -> None:
    """Nobody lists them, either: those of the subject that begin take its lapsed ones out, though others' are older."""
    known: Any = redis_server.client()
    async with Register(redis_server.url, "http://a") as one:
        await begin(one, *(begun("cyd", created_at=at) for at in (-2.0, -1.0)))
        for number in range(20):
            run = begun(created_at=float(number))
            await begin(one, run)
            known.delete(f"claude:{{runs}}:run:{run.id}")
        assert max(in_index(redis_server)) <= 2
        for key in ("of", "summaries"):  # and where nobody runs anything any more, Redis does
            assert known.ttl(f"claude:{{runs}}:{key}:alice") > of_register._LONGEST_RUN_S - 600
        for number in range(5):
            run = begun(created_at=float(100 + number))
            await begin(one, run)
            known.delete(f"claude:{{runs}}:run:{run.id}")
        later = [begun(created_at=float(200 + number)) for number in range(4)]
        await begin(one, *later)
        assert set(known.zrange("claude:{runs}:of:alice", 0, -1)) == {run.id.encode() for run in later}
        assert in_index(redis_server) == (4, 4)
        await write(one, over(new_id(), "bob", retention_s=60))
        assert 0 < known.ttl("claude:{runs}:of:bob") <= 60


async def test_what_has_to_go_for_others_is_listed_no_more(redis_server: RedisProcess) -> None:
    async with Register(redis_server.url, "http://a", Bounds(per_subject=3 * SIZE + SIZE // 2)) as one:
        runs = [over(new_id(), "alice", created_at=float(number)) for number in range(6)]
        await write(one, *runs)
        assert ids(await listed(register=one)) == [run.id for run in reversed(runs[3:])]
        assert in_index(redis_server) == (3, 3)
    async with Register(redis_server.url, "http://a", Bounds(in_all=SIZE // 2)) as one:
        await write(one, over(new_id(), "bob"))
    assert in_index(redis_server) == (0, 0)


async def test_one_whose_beginning_was_not_written_is_there_at_its_end_and_once(redis_server: RedisProcess) -> None:
    async with Register(redis_server.url, "http://a") as one:
        run = over(new_id(), "alice")
        await write(one, run, run)
        assert ids(await listed(register=one)) == [run.id]


async def test_those_of_a_replica_that_is_gone_have_failed(
    redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for such a run by its id is told the same."""
    monkeypatch.setattr(of_register, "_HEARD_S", 0.1)
    async with Register(redis_server.url, "http://b") as other:
        async with Register(redis_server.url, "http://a") as gone:
            runs = [begun(created_at=float(number), session="s") for number in range(3)]
            await begin(gone, *runs)
            assert [run.state for run in (await listed(register=other)).runs] == ["running"] * 3, "the control"
        found = (await listed(wanted=Filter(state="failed"), register=other)).runs
        assert [(run.state, run.session) for run in found] == [("failed", "s")] * 3
        record = await other.find(runs[0].id)
        assert record is not None and record.state == "failed"
        assert (await listed(wanted=Filter(state="running"), register=other)).runs == []


async def test_one_that_this_process_has_lost_is_listed_as_little_as_it_is_found(redis_server: RedisProcess) -> None:
    async with Register(redis_server.url, "http://a") as one:
        run = begun()
        await begin(one, run)
        assert ids(await listed(register=one, runs=[run])) == [run.id], "the control"
        assert ids(await listed(register=one)) == []


async def test_another_releases_summaries_are_left_out(redis_server: RedisProcess) -> None:
    known: Any = redis_server.client()
    key = "claude:{runs}:summaries:alice"
    async with Register(redis_server.url, "http://a") as one:
        runs = [over(new_id(), "alice", created_at=float(number)) for number in range(4)]
        await write(one, *runs)
        other = msgspec.msgpack.encode((summary.VERSION + 1, ("another", "shape")))
        for run, stored in zip(runs, (other, b"\xc1", b""), strict=False):
            known.hset(key, run.id, stored)
        assert ids(await listed(register=one)) == [runs[3].id]
        record = await one.find(runs[0].id)
        assert record is not None
        await one.give_up(record)
        assert known.hget(key, runs[0].id) == other


@given(
    st.builds(
        Summary,
        st.just("run_" + "0" * 24),
        st.sampled_from(["running", "failed"]),
        st.floats(0, 1e11),
        st.text(max_size=9),
        st.none() | st.floats(0, 1e11),
        st.text(max_size=9),
        st.none() | st.text(max_size=9),
        st.none() | st.text(max_size=9),
        st.floats(0, 1e6),
    )
)
def test_a_summary_comes_back(short: Summary) -> None:
    assert summary.known([summary.encode(short)]) == [short]


def test_a_run_without_a_model_yet_has_that_which_was_decided() -> None:
    run = begun(model="", plan=SimpleNamespace(session="new", model="opus", repository=None, tags=()))
    assert (summary_of(run).model, summary_of(run).session) == ("opus", None)


CURSORS = (
    "",
    "5.0",
    "5.0-",
    "-5.0-run_" + "0" * 24,
    "nan-run_" + "0" * 24,
    "1e9-run_" + "0" * 24,
    "5.0-me_" + "0" * 24,
)


@pytest.mark.parametrize("text", [*CURSORS, "5.0-run_" + "0" * 25, "5.0-run_" + "0" * 24 + "\n", "٥.0-run_" + "0" * 24])
def test_cursors_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="no place"):
        Place.parse(text)


@given(st.floats(0, 1e11).filter(lambda at: "e" not in repr(at) and len(repr(at).partition(".")[2]) < 10))
def test_a_cursor_comes_back(at: float) -> None:
    place = Place(at, new_id())
    assert Place.parse(str(place)) == place
