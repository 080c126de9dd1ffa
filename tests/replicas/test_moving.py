"""What a bad moment does to a session that moves: an answer of Redis that is lost, a kill between two writes, a disk that
is full, a store that crawls or has something else. Real Redis, real stores; the conversation is a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from claude_invoker.cli.tree import Discarded
from claude_invoker.problem import Problem
from claude_invoker.runs import moving, turns
from claude_invoker.runs.moving import Moving
from claude_invoker.runs.sessions import Away as LeftBehind
from claude_invoker.runs.sessions import Sessions, line_of, record_name
from claude_invoker.runs.turns import Turns
from claude_invoker.store import store as of_store
from claude_invoker.store.place import Place
from claude_invoker.store.store import Away, Store
from tests.invoker.conftest import as_root
from tests.rate_tiers.servers import RedisProcess
from tests.support.disk import disk, fill
from tests.support.waiting import HANG_S, until

pytestmark = pytest.mark.timeout(120)


class Machine:
    """An invoker's sessions, without its runs."""

    def __init__(self, folder: Path, redis_url: str, store: Store) -> None:
        for part in ("trees", "records", "discarded"):
            (folder / part).mkdir(parents=True)
        self.notes = folder / "moved"
        self.sessions = Sessions(folder / "trees", folder / "records", Discarded(folder / "discarded"), 3600)
        self.moving = Moving(self.sessions, self.notes, Turns(redis_url, 3600), store)

    async def turn(self, session: str, text: str = "") -> str:
        """Adds to the conversation. What it was before; raises as `Moving.hold`."""
        async with self.moving.hold("alice", session, lambda: None) as held:
            held.tree.work.mkdir(exist_ok=True)
            said = sorted(held.tree.work.glob("said-*"))
            before = "".join(path.read_text() for path in said)
            if text:
                (held.tree.work / f"said-{len(said)}").write_text(text)
            return held.id if session == "new" else before

    async def begun(self, text: str) -> str:
        """A new session."""
        return await self.turn("new", text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Place.parse(f"file://{tmp_path}/store"), None)


@pytest.fixture(scope="module")
def plain_redis() -> Iterator[RedisProcess]:
    """Whatever kind of Redis the others are asked for: what is lost on its way is read there."""
    server = RedisProcess()
    yield server
    server.close()


@pytest.fixture
async def machine(tmp_path: Path, plain_redis: RedisProcess, store: Store) -> AsyncIterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(url: str = plain_redis.url, within: Path | None = None) -> Machine:
        made.append(Machine((within or tmp_path) / f"machine{len(made)}", url, store))
        return made[-1]

    yield make
    for each in made:
        await each.moving.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", "4m") as found:
        yield found


class Lossy:
    """A Redis whose next answer to one that names a turn's directory, as only a commit does, is lost on its way."""

    def __init__(self, target: RedisProcess) -> None:
        self._target = target
        self.lost = 0
        self.loses = 0
        self.when_lost: Callable[[], Any] = lambda: None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_unix_connection(self._target.socket_path)
        with suppress(OSError):
            while asked := await reader.read(1 << 16):
                to_there.write(asked)
                answer = await there.read(1 << 16)
                if b"'tree', ARGV[5]" in asked and self.lost < self.loses:
                    self.lost += 1
                    await self.when_lost() if self.lost == 1 else None
                    break
                writer.write(answer)
        writer.close()
        to_there.close()


@pytest.mark.parametrize("defended", [True, False])
async def test_a_turn_whose_commit_was_not_answered_is_not_taken_for_one_that_was_lost(
    machine: Callable[..., Machine],
    plain_redis: RedisProcess,
    monkeypatch: pytest.MonkeyPatch,
    defended: bool,
) -> None:
    """It was asked again, found that the turn was nobody's, and deleted what it had committed. With that control."""
    if not defended:
        line = "if redis.call('HGET', KEYS[1], 'head') == ARGV[2] then return 1 end\n"
        assert line in turns._COMMIT
        monkeypatch.setattr(turns, "_COMMIT", turns._COMMIT.replace(line, ""))
    between = Lossy(plain_redis)
    async with between.open() as url:
        here, there = machine(url), machine()
        session = await here.begun("one ")
        between.loses = 1
        if not defended:
            with pytest.raises(Problem) as refused:
                await here.turn(session, "two ")
            assert refused.value.status == 409
            return
        assert await here.turn(session, "two ") == "one "
        assert between.lost == 1
        assert await there.turn(session, "three") == "one two "
        assert await here.turn(session) == "one two three"


async def test_who_does_not_know_whether_his_turn_counted_deletes_nothing_that_others_need(
    machine: Callable[..., Machine], plain_redis: RedisProcess
) -> None:
    """Its answer was lost, and another has gone on before it asks again."""
    between = Lossy(plain_redis)
    async with between.open() as url:
        here, there, third = machine(url), machine(), machine()
        session = await here.begun("one ")

        async def gone_on() -> None:
            assert await there.turn(session, "three ") == "one two "

        between.loses, between.when_lost = 1, gone_on
        with pytest.raises(Problem) as refused:
            await here.turn(session, "two ")
        assert refused.value.status == 409
        assert await third.turn(session) == "one two three "


async def test_a_turn_that_could_neither_be_sent_nor_committed_is_gone_on_from(
    machine: Callable[..., Machine], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store away for two turns, and a kill (or a Redis away) at the end of the second: nobody had what the
    conversation was said to be at, for ever."""
    here, there = machine(), machine()
    session = await here.begun("one ")
    with monkeypatch.context() as patched:
        patched.setattr(store, "put", away)
        await here.turn(session, "two ")
        with patched.context() as dying:
            dying.setattr(turns.Turn, "commit", lost_on_its_way)
            with pytest.raises(Problem):
                await here.turn(session, "three ")
        assert await here.turn(session, "four ") == "one two three "
        with pytest.raises(Problem) as refused:
            await there.turn(session)
        assert refused.value.status == 503, "the control: it is nowhere else"
    await here.moving.send_again()
    assert await there.turn(session) == "one two three four "


async def test_a_session_that_the_store_does_not_take_keeps_no_other_from_it(
    machine: Callable[..., Machine], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that looks for viruses, or has a largest size."""
    here, there = machine(), machine()
    with monkeypatch.context() as patched:
        patched.setattr(store, "put", away)
        sessions = [await here.begun(f"said {number}") for number in range(4)]
    first = next(name for path in here.notes.iterdir() for name in sessions if path.name == record_name("alice", name))
    (tmp_path / "store" / "sessions").mkdir(exist_ok=True)
    (tmp_path / "store" / "sessions" / record_name("alice", first)).write_text("where a directory is to be")
    monkeypatch.setattr(of_store, "_REST_S", 0.05)

    async def are_there() -> bool:
        await here.moving.send_again()
        return len([*tmp_path.glob("store/sessions/*/*.manifest")]) == 3

    await until(are_there, "all sessions but one in the store")
    for session in sessions:
        if session != first:
            assert (await there.turn(session)).startswith("said")
    with pytest.raises(Problem) as refused:
        await there.turn(first)
    assert refused.value.status == 503


async def away(*_: object) -> None:
    raise Away("the test")


async def lost_on_its_way(*_: object, **__: object) -> None:
    raise Problem(503, "busy")


async def test_a_store_that_crawls_keeps_no_answer_waiting(
    machine: Callable[..., Machine], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machine(), machine()
    session = await here.begun("one ")
    monkeypatch.setattr(moving, "_SAVE_S", 0.2)
    put, may_go = store.put, asyncio.Event()

    async def crawl(name: str, content: bytes | Path) -> None:
        await may_go.wait()
        await put(name, content)

    monkeypatch.setattr(store, "put", crawl)
    await asyncio.wait_for(here.turn(session, "two "), HANG_S)
    with pytest.raises(Problem) as refused:
        await there.turn(session)
    assert refused.value.status == 503
    may_go.set()
    await here.moving.send_again()
    assert await there.turn(session) == "one two "


@pytest.mark.parametrize("what", ["changed", "cut", "gone", "no manifest"])
async def test_what_the_store_has_in_a_sessions_place_is_not_given_to_it(
    machine: Callable[..., Machine], tmp_path: Path, what: str
) -> None:
    here, there = machine(), machine()
    session = await here.begun("the words of the first turn")
    (pack,) = tmp_path.glob("store/sessions/*/*.pack")
    (manifest,) = tmp_path.glob("store/sessions/*/*.manifest")
    whole = pack.read_bytes()
    if what == "changed":
        pack.write_bytes(whole.replace(b"first", b"FIRST"))
    elif what == "cut":
        pack.write_bytes(whole[:5])
    elif what == "gone":
        pack.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:-3])
    with pytest.raises(Problem) as refused:
        await there.turn(session)
    assert refused.value.status == (503 if what == "cut" else 404)
    assert not any(b"FIRST" in path.read_bytes() for path in tmp_path.glob("machine1/trees/*/work/said-0"))
    assert await here.turn(session) == "the words of the first turn", "where it is nothing is fetched"


async def test_a_killed_invoker_leaves_nothing_half_made(machine: Callable[..., Machine]) -> None:
    here = machine()
    session = await here.begun("one")
    over, lives = "0" * 64, record_name("alice", session)
    async with here.moving.hold("alice", session, lambda: None):
        half_made = [here.notes / f"{name}.{ending}" for name in (over, lives) for ending in ("new", "pack")]
        for path in half_made:
            path.write_bytes(b"x")
        await here.moving.send_again()
        assert [path.exists() for path in half_made] == [False, False, True, True], "those of a turn may be its own"
    half_made[3].write_bytes(b"x")
    await here.moving.send_again()
    assert [path.name for path in here.notes.iterdir()] == [lives]


async def test_sessions_of_many_files_hold_up_nobody_while_notes_are_looked_through(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note has the whole list of a session's files, some 40 MB of it: each was read every ten seconds by the thread
    that serves all callers. It is read once, and never whole."""
    here = machine()
    sessions = [await here.begun("x") for _ in range(3)]
    read: list[str] = []
    for name in ("_DECODE", "_DECODE_UNSAVED"):
        real = getattr(moving, name)

        def noted(content: bytes, name: str = name, real: Callable[[bytes], Any] = real) -> Any:
            read.append(name)
            return real(content)

        monkeypatch.setattr(moving, name, noted)
    for _ in range(5):
        await here.moving.send_again()
    assert read == ["_DECODE_UNSAVED"] * 3
    await here.turn(sessions[0])
    read.clear()
    await here.moving.send_again()
    assert read == ["_DECODE_UNSAVED"], "the one that was written anew"


@as_root
async def test_a_full_disk_loses_no_session(machine: Callable[..., Machine], small_disk: Path) -> None:
    here, there = machine(within=small_disk), machine()
    session = await here.begun("one ")
    filler = small_disk / "filler"
    with pytest.raises(Problem) as full:
        async with here.moving.hold("alice", session, lambda: None) as held:
            (held.tree.work / "said-1").write_text("two ")
            fill(filler)
    assert (full.value.status, full.value.kind) == (507, "no-room"), "neither packed nor noted"
    filler.unlink()
    assert await here.turn(session, "three") == "one ", "as before the turn that said that it is not kept"
    assert await there.turn(session) == "one three"


async def test_what_a_job_has_left_in_a_session_goes_with_it(machine: Callable[..., Machine]) -> None:
    here, there = machine(), machine()
    session = await here.begun("one ")
    left, known = LeftBehind("job_1", "Bash"), None
    for at, becomes in (
        (here, left),
        (here, left),
        (there, left),
        (here, None),
        (there, None),
        (there, left),
        (here, left),
    ):
        async with at.moving.hold("alice", session, lambda: None) as held:
            assert held.away == known
            (held.tree.work / "said-more").write_text(str(at))
            held.away = known = becomes
    with here.sessions.hold("alice", session) as alone:
        assert alone.away == left, "where there is no store, too"
        alone.away = None
    with here.sessions.hold("alice", session) as alone:
        assert alone.away is None
        here.sessions.leave(alone, left)
        found = (here.sessions._records / alone.name).read_text()
        assert found.endswith(line_of(left)), "before it is let go: its process may be killed"
        alone.away = None
    with here.sessions.hold("alice", session) as alone:
        assert alone.away is None
