"""The metering proxy as a process of its own: who it is, who can reach what it holds, and that whoever is killed, in
whatever order, what was charged is what is booked. Prices are those of the price list, written down by hand."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from claude_contract import ledger
from claude_invoker.metering.journal import read
from tests.invoker.conftest import KEY, Invoker, as_root, tool, wait_for
from tests.invoker.money import Billed, Till, charging, clis_of, eventually, proxy_of
from tests.rate_tiers.servers import RedisProcess
from tests.support.processes import gone
from tests.support.waiting import HANG_S

SLOW = "[[delay 300]] [[say one two three four five six seven eight nine ten eleven twelve thirteen fourteen]]"


@pytest.fixture(scope="module")
def till(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    redis = RedisProcess()
    with charging(tmp_path_factory.mktemp("charges")) as charges:
        yield Till(redis, charges)
    redis.close()


def streaming(invoker: Invoker) -> None:
    """Waits until a run's answer is on its way, and some of it has come."""
    with invoker.client() as api:
        wait_for(lambda: "claude_invoker_api_requests 1.0" in api.get("/metrics").text, what="a request")
    time.sleep(0.7)


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def victims(invoker: Invoker) -> dict[str, Callable[[], None]]:
    process, proxy, clis = psutil.Process(invoker.pid), proxy_of(invoker), clis_of(invoker)
    return {
        "proxy": lambda: kill(proxy),
        "invoker": lambda: kill(process),
        "cli": lambda: kill(*clis),
    }


def booked(till: Till, runs: list[Billed]) -> None:
    def wrong() -> list[str]:
        return [said for run in runs if (said := till.wrong(run))]

    eventually(lambda: not wrong(), wrong)
    for run in runs:
        assert till.charges.of(run.mark), "the API was asked"


def test_whoever_is_killed_what_was_charged_is_booked(start_invoker: Callable[..., Invoker], till: Till) -> None:
    invoker = start_invoker(pool_size=0, **till.settings)
    plain = till.begin(invoker, "plain", "[[say hello there]]")
    plain.thread.join(HANG_S)
    booked(till, [plain])
    least, most = till.charges.bounds("plain")
    assert least == most == till.spent(plain), "to the micro-USD"

    cli = till.begin(invoker, "cli-killed", SLOW)
    streaming(invoker)
    victims(invoker)["cli"]()
    cli.thread.join(HANG_S)
    assert cli.answer[0].status_code == 502

    proxy = till.begin(invoker, "proxy-killed", SLOW)
    streaming(invoker)
    before = proxy_of(invoker).pid
    victims(invoker)["proxy"]()
    proxy.thread.join(HANG_S)
    wait_for(invoker.ready, what="the next proxy")
    assert proxy_of(invoker).pid != before

    last = till.begin(invoker, "invoker-killed", SLOW)
    streaming(invoker)
    proxy_process = proxy_of(invoker)
    victims(invoker)["invoker"]()
    wait_for(lambda: gone(proxy_process.pid), what="the proxy's end by itself")
    start_invoker(after=invoker, pool_size=0, **till.settings)
    booked(till, [plain, cli, proxy, last])


@pytest.mark.slow
def test_what_the_ledger_has_lost_again_is_booked_again(start_invoker: Callable[..., Invoker], till: Till) -> None:
    """As after a fail-over to a replica that did not have it yet; and after the next one."""
    invoker = start_invoker(pool_size=0, **till.settings)
    run = till.begin(invoker, "fail-over", "[[say hello there]]")
    run.thread.join(HANG_S)
    booked(till, [run])
    client = till.redis.client()
    for _ in range(3):
        for key in client.scan_iter(f"*{run.lease.subject_key}*"):
            client.delete(key)
        assert till.spent(run) == 0
        booked(till, [run])
    wait_for(lambda: not owed(invoker), what="the journal to forget it")
    assert till.wrong(run) == "", "and once"


@pytest.mark.slow
def test_a_run_that_ends_before_its_last_answer_has_it_drawn(start_invoker: Callable[..., Invoker], till: Till) -> None:
    """Its client has left, and the API says nothing: the place is free at once, the money is not, until it is known that
    it was the bound of the input."""
    invoker = start_invoker(pool_size=0, **till.settings)
    run = till.begin(invoker, "unanswered", "[[hang]]", patience_s=6)
    asked = ledger.Peek(ledger.NAMESPACE, run.lease.subject_key)
    wait_for(lambda: till.store.peek(asked).reserved_micro_usd, what="the run")
    wait_for(lambda: not till.store.peek(asked).running, what="its end")
    left = till.store.peek(asked)
    assert left.spent_day_micro_usd == 0 < left.reserved_micro_usd
    wait_for(lambda: not till.store.peek(asked).reserved_micro_usd, what="the API's last word", within_s=100)
    assert 0 < till.spent(run) <= left.reserved_micro_usd


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(("proxy", "invoker", "cli"))))
def test_all_are_killed_in_any_order(start_invoker: Callable[..., Invoker], till: Till, order: tuple[str, ...]) -> None:
    invoker = start_invoker(pool_size=0, **till.settings)
    run = till.begin(invoker, "-".join(order), SLOW)
    streaming(invoker)
    doomed = victims(invoker)
    for name in order:
        doomed[name]()
    start_invoker(after=invoker, pool_size=0, **till.settings)
    booked(till, [run])


def owed(invoker: Invoker) -> list[str]:
    return [run for path in (invoker.state / "journal").iterdir() for run in read(path.read_bytes())]


def ready(invoker: Invoker) -> list[Path]:
    return list(invoker.state.glob("trees/engines/*/*/work/ready"))


@pytest.mark.slow
def test_without_a_ledger_for_too_long_nothing_is_sent(start_invoker: Callable[..., Invoker], till: Till) -> None:
    """Redis is stopped between two turns of a run: the second one is not sent, and says why. What the first has cost is
    booked when Redis is back."""
    redis = RedisProcess()
    own = Till(redis, till.charges)
    try:
        invoker = start_invoker(pool_size=0, ledger_grace=0.5, **own.settings)
        script = tool("Bash", command="touch ready; until [ -e go ]; do sleep 0.1; done")
        run = own.begin(invoker, "ledger-away", f"{script} [[say a b]]", tools=["Bash"])
        wait_for(lambda: ready(invoker), what="the first turn")
        redis.signal(signal.SIGSTOP)
        wait_for(lambda: "INVOKER_LEDGER_GRACE" in invoker.log.read_text(), what="the end of the grace")
        (ready(invoker)[0].parent / "go").touch()
        run.thread.join(HANG_S)
        assert run.answer[0].status_code == 503, run.answer[0].text
        assert run.answer[0].json()["type"].endswith(":not-bookable")
        assert "INVOKER_LEDGER_GRACE (0.5 s)" in run.answer[0].json()["detail"]
        redis.signal(signal.SIGCONT)
        eventually(lambda: not own.wrong(run), lambda: own.wrong(run))
        assert len(till.charges.of("ledger-away")) == 1
    finally:
        redis.signal(signal.SIGCONT)
        redis.close()


def holds(pid: int, text: bytes) -> bool:
    """Whether a process has it in what it can write, its stack with argv and environment too."""
    step = 1 << 20
    with (
        Path(f"/proc/{pid}/maps").open() as maps,
        Path(f"/proc/{pid}/mem").open("rb", 0) as memory,
        Path(f"/proc/{pid}/pagemap").open("rb", 0) as pages,
    ):
        for line in maps:
            where, rights, *_ = line.split()
            start, end = (int(part, 16) for part in where.split("-"))
            for at in range(start, end if "rw" in rights else start, step):
                pages.seek(at // 4096 * 8)
                if not any(pages.read(min(step, end - at) // 4096 * 8)[7::8]):
                    continue  # none of it is there
                with suppress(OSError):
                    memory.seek(at)
                    if text in memory.read(min(step + len(text), end - at)):
                        return True
    return False


@as_root
def test_only_the_proxy_has_the_key(start_invoker: Callable[..., Invoker]) -> None:
    """Given by the environment, the worst way: the invoker's memory, argv and environment do not hold it once it has
    started, nor do those of its children but the proxy."""
    invoker = start_invoker(anthropic_api_key=KEY)
    with invoker.client() as api:
        assert api.post("/invoke", json={"prompt": "hi"}).status_code == 200
    proxy = proxy_of(invoker)
    key = KEY.encode()
    assert holds(proxy.pid, key), "where it is, it is found"
    others = [psutil.Process(invoker.pid), *psutil.Process(invoker.pid).children(recursive=True)]
    for process in others:
        with suppress(psutil.NoSuchProcess):
            places = [Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
            assert key not in b"".join(places), process
            if process.pid != proxy.pid:
                assert not holds(process.pid, key), process
    files = [path for path in invoker.state.rglob("*") if path.is_file() and path.stat().st_size < 10_000_000]
    assert files and not [path for path in files if key in path.read_bytes()]


@as_root
def test_the_proxy_is_nobody(invoker: Invoker, api: Any) -> None:
    """A user of its own that no run can have, without capabilities; its journal is closed to all others."""
    proxy = proxy_of(invoker)
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{proxy.pid}/status").read_text().splitlines())
    uid = invoker.uid_base + 1
    assert fields["Uid"].split() == fields["Gid"].split() == [str(uid)] * 4
    assert uid not in invoker.uids and fields["Groups"].split() == []
    assert {name: int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapInh", "CapAmb"), 0
    )
    assert fields["NoNewPrivs"].strip() == "1"
    status = (invoker.state / "journal").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (uid, 0o700)
    assert {path.stat().st_uid for path in (invoker.state / "journal").iterdir()} == {uid}
    assert Path(f"/proc/{proxy.pid}/mem").stat().st_uid == 0, "its own user cannot look into it"


def test_readyz_says_that_there_is_no_proxy(start_invoker: Callable[..., Invoker]) -> None:
    invoker = start_invoker(pool_size=0)
    proxy = proxy_of(invoker)
    with invoker.client() as api:
        kill(proxy)
        wait_for(lambda: api.get("/readyz").status_code == 503, what="its end")
        assert api.get("/readyz").json()["obstacle"].startswith("the metering proxy is not running")
        assert api.post("/invoke", json={"prompt": "hi"}).status_code in (200, 503)
        wait_for(lambda: api.get("/readyz").status_code == 200, what="the next one")
        metrics = api.get("/metrics").text
        assert "claude_invoker_metering_up 1.0" in metrics
        assert "claude_invoker_metering_starts 2.0" in metrics
        assert api.post("/invoke", json={"prompt": "hi"}).status_code == 200
