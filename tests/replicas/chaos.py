"""The crowd, the kills, and what is counted when both are over."""

from __future__ import annotations

import asyncio
import collections
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from claude_contract import ledger
from kong_claude.rate_tiers.redis_ledger import RedisLedger
from kong_claude.rate_tiers.redis_ledger import Settings as RedisAddress
from tests.invoker.money import HAIKU, billable, micro
from tests.replicas.crowd import CLEAR, Asked, Caller, Hangs
from tests.replicas.stage import Stage, restart_redis
from tests.support.waiting import HANG_S

ZERO = ("lost", "wrong_owner", "doubled", "unpaid", "ran_twice", "unclear", "out_of_order", "leases")
Fault = tuple[str, str]
"""Under which figure it counts, and what it is."""
Outcome = tuple[dict[str, float], list[str]]
"""The figures, and each fault in words."""
AT_ONCE = 8
RUNS_OF_ONE = 5
RUN, HELD = 10_000, 10_400
"""Micro-USD: what the API charges for a run of `fast_cli.sh`, and the most that is booked for one whose proxy was killed before it had read the answer."""
HELD_REAL = 150_000
"""The most that is booked for a request of the real CLI that nobody knows the answer of: its instructions and tools in
tokens, and 256 more."""
SETTLED_S = 60.0
"""In which what the dead have left is booked and lapses."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def chaos(stage: Stage, runs: int, kills: int, seed: int, *, names: Sequence[str] = ()) -> Outcome:
    """`kills`: of each process, at least. `names`: which are killed; empty: all."""
    return await _crowded(stage, runs, seed, killed(stage, kills, random.Random(seed + 1), names))


async def rolling(stage: Stage, runs: int, rounds: int, seed: int) -> Outcome:
    """Each part is replaced so often, one after the other, as in a rolling update."""
    return await _crowded(stage, runs, seed, replaced(stage, rounds))


async def _crowded(
    stage: Stage, runs: int, seed: int, disturbing: Coroutine[Any, Any, collections.Counter[str]]
) -> Outcome:
    began = time.monotonic()
    callers: list[Caller] = []
    stranger = Caller(stage, "stranger", random.Random(seed))
    disturbance = asyncio.create_task(disturbing)
    try:
        await acted(stage, callers, runs, seed, stranger, disturbance)
        counts = await disturbance
        for part in stage.parts.values():
            await part.ready()
        for caller in callers:
            for each in caller.asked:
                await caller.looked_at(each)
        figures, faults = await counted(stage, [each for caller in callers for each in caller.asked])
    finally:
        disturbance.cancel()
        for caller in (*callers, stranger):
            await caller.close()
    how = {f"kills_{name.replace('-', '_')}": count for name, count in sorted(counts.items())}
    return figures | how | {"seconds": round(time.monotonic() - began, 1)}, faults


async def acted(
    stage: Stage, callers: list[Caller], runs: int, seed: int, stranger: Caller, disturbance: asyncio.Task[Any]
) -> None:
    """Some at once, one after the other, as long as runs are wanted or somebody disturbs."""
    began = time.monotonic()

    async def one_after_the_other() -> None:
        while len(callers) * RUNS_OF_ONE < runs or not disturbance.done():
            caller = Caller(stage, f"caller-{seed}-{len(callers)}", random.Random(seed * 1000 + len(callers)))
            callers.append(caller)
            await acts(caller, stranger)
            if len(callers) % 10 == 0:
                say(f"{time.monotonic() - began:5.0f} s: {len(callers)} callers, {stage.restarts} restarts")

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


async def acts(caller: Caller, stranger: Caller) -> None:
    """Some five runs of one, each looked at when it is over, by others too."""
    left = RUNS_OF_ONE
    while left > 0:
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (caller.plain, 1), (caller.streamed, 1), (lambda: caller.streamed(cancels=True), 1), (caller.job, 1),
            (caller.job, 1), (caller.streamed, 1), (caller.conversation, 3),
        ]  # fmt: skip
        act, takes = caller.chance.choice([each for each in kinds if each[1] <= left])
        left -= takes
        before = len(caller.asked)
        try:
            await act()
            for each in caller.asked[before:]:
                await caller.looked_at(each)
                await stranger.spied_on(each)
        except Hangs as hangs:
            caller.asked[-1].wrong("unclear", f"hangs: {hangs}")


async def replaced(stage: Stage, times: int) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for _ in range(times):
        for name, part in stage.parts.items():
            await part.replace()
            counts[name] += 1
    return counts


async def killed(stage: Stage, times: int, chance: random.Random, chosen: Sequence[str]) -> collections.Counter[str]:
    """Each part so often, in a random order, one after the other."""
    counts: collections.Counter[str] = collections.Counter()
    plugin_server, redis = "plugin-server", {"redis-ledger": stage.ledger, "redis-runs": stage.runs}
    proxies = {f"proxy-of-{name}": part for name, part in stage.parts.items()}
    names = chosen or [*stage.parts, *proxies, plugin_server, *redis]
    for _ in range(times):
        for name in chance.sample(names, len(names)):
            await asyncio.sleep(chance.uniform(0.1, 1))
            if name in stage.parts:
                await stage.parts[name].kill()
                counts[name] += 1
            elif name in proxies:
                counts[name] += await proxies[name].kill_proxy()
            elif name in redis:
                await restart_redis(redis[name])
                counts[name] += 1
            else:
                counts[name] += await stage.kill_plugin_server()
    return counts


async def counted(stage: Stage, asked: list[Asked], settled_s: float = SETTLED_S) -> Outcome:
    """What has come of all that was asked for. `settled_s`: how long it may take until the dead's places have lapsed, and
    what they have spent is booked."""
    figures = collections.Counter[str](dict.fromkeys((*ZERO, "failed"), 0))
    begun = times_begun(stage, asked)
    faults: list[Fault] = []
    for each in asked:
        if not each.result and each.why not in CLEAR:
            each.wrong("unclear", f"ended as {each.problem}")
        if (times := begun[each.mark]) > 1 and not may_run_again(stage, each):
            each.wrong("ran_twice", f"began {times} times")
        figures["succeeded" if each.result else f"broken_{each.why}"] += 1
        figures["failed"] += not each.result and each.kind != "cancelled"
        faults += each.faults
    until = time.monotonic() + settled_s
    while (about_money := misbooked(stage, asked)) and time.monotonic() < until:
        await asyncio.sleep(0.5)
    faults += about_money
    figures.update(figure for figure, _ in faults)
    return {"runs": len(asked), **figures}, [text for _, text in faults]


def times_begun(stage: Stage, asked: list[Asked]) -> dict[str, int]:
    """How often each run was begun: as `fast_cli.sh` has written down, or by the conversations in which the real CLI has
    asked the API for it."""
    if not stage.is_real:
        lines = collections.Counter(stage.begun.read_text().splitlines())
        return {each.mark: lines[f"begin {each.mark}"] for each in asked}
    charged = by_mark(stage.charged(), asked)
    return {each.mark: len({charge["session"] for charge in charged[each.mark]}) for each in asked}


def may_run_again(stage: Stage, asked: Asked) -> bool:
    return asked.kind == "job" and stage.jobs_go_back


def misbooked(stage: Stage, asked: list[Asked]) -> list[Fault]:
    """Of each subject: whether what is booked is what its runs have cost, and nothing is held any more."""
    charged = by_mark(stage.charged(), asked)
    by_subject = collections.defaultdict[str, list[Asked]](list)
    for each in asked:
        by_subject[each.subject].append(each)
    store, faults = RedisLedger(RedisAddress(stage.ledger.url, timeout=HANG_S)), list[Fault]()
    for subject, its in by_subject.items():
        found = store.peek(ledger.Peek(ledger.NAMESPACE, ledger.subject_key("subject", subject)))
        requests = [charge for each in its for charge in charged[each.mark]]
        # Of a run that was broken a request may have been on its way, which the API has not seen, or has not charged for.
        broken = [each for each in its if not each.result or may_run_again(stage, each)]
        least, most = billable(requests, struck=bool(broken))
        most += len(its) * stage.charges.asked_first(HAIKU)  # which the real CLI may ask whether it is there
        held = sum(most_held(stage, is_charged=bool(charged[each.mark]) and not each.result) for each in broken)
        booked = found.spent_day_micro_usd
        told = (
            f"{subject} was booked {booked} for {len(requests)} requests of {micro(least)} to {micro(most)}, "
            f"{len(broken)} of {len(its)} runs were broken"
        )
        if booked > micro(most) + held:
            faults.append(("doubled", f"doubled: {told}"))
        if booked < micro(least):
            faults.append(("unpaid", f"unpaid: {told}"))
        if found.running or found.reserved_micro_usd:
            still = f"{found.running} places and {found.reserved_micro_usd} micro-USD"
            faults.append(("leases", f"leases: {subject} has {still}"))
    return faults


def most_held(stage: Stage, *, is_charged: bool) -> int:
    """Micro-USD that may be booked for a broken run beside what the API has charged for it. The stand-in of the CLI asks
    once, the real one again when its tool has run."""
    if stage.is_real:
        return HELD_REAL
    return HELD - RUN if is_charged else HELD


def by_mark(charges: list[dict[str, Any]], asked: list[Asked]) -> dict[str, list[dict[str, Any]]]:
    """The requests that each run has made: the mark of a request is the last one in it, behind those of its session."""
    marks = {each.mark for each in asked}
    found = collections.defaultdict[str, list[dict[str, Any]]](list)
    for charge in charges:
        for word in reversed(re.split(r"[^\w-]+", charge["prompt"])):
            if word in marks:
                found[word].append(charge)
                break
    return found
