"""What somebody wants of a running job, put to the worker that runs it, and its answer: both through Redis.

The worker alone decides, since its process holds the run: of two who decide at once one is the second, as with a run
that is no job.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

import orjson
from redis.exceptions import RedisError

from claude_invoker.jobs.record import Job
from claude_invoker.jobs.store import PREFIX, Store
from claude_invoker.model import PermissionAnswer, PermissionDecision, SentMessage
from claude_invoker.problem import Problem
from claude_invoker.runs.run import Run

_log = logging.getLogger(__name__)
CALLS = PREFIX + "calls"  # channel
_WITHIN_S = 5.0
"""In which a worker that lives has answered."""
_KEPT_S = 60
"""For which an answer waits for who asked."""


async def decide(store: Store, job: Job, permission_id: str, given: PermissionAnswer, by: str) -> PermissionDecision:
    """What the worker has decided. Raises Problem."""
    asked = {"what": "decide", "permission": permission_id, "by": by, "given": given.model_dump(mode="json")}
    return PermissionDecision.model_validate((await _ask(store, job, asked))["decision"])


async def interrupt(store: Store, job: Job) -> None:
    """Raises Problem."""
    await _ask(store, job, {"what": "interrupt"})


async def stop_agent(store: Store, job: Job, call: str) -> None:
    """Ends one subagent. Raises Problem."""
    await _ask(store, job, {"what": "stop_agent", "call": call})


async def say(store: Store, job: Job, message: str) -> SentMessage:
    """Tells the model something. Raises Problem."""
    return SentMessage.model_validate((await _ask(store, job, {"what": "say", "message": message}))["sent"])


async def take_back(store: Store, job: Job, message_id: str) -> SentMessage:
    """Takes back what the model has not seen. Raises Problem."""
    return SentMessage.model_validate((await _ask(store, job, {"what": "take_back", "id": message_id}))["sent"])


async def _ask(store: Store, job: Job, asked: dict[str, Any]) -> dict[str, Any]:
    """What the worker answers. Raises Problem, 503 where it does not say anything."""
    reply = f"{PREFIX}reply:{secrets.token_hex(16)}"
    asked |= {"job": job.id, "reply": reply}
    await store.redis.publish(CALLS, orjson.dumps(asked))
    answer = await store.redis.blpop([reply], timeout=_WITHIN_S)
    if answer is None:
        raise Problem(503, "busy", "the worker that runs the job does not answer", {"Retry-After": "1"})
    said: dict[str, Any] = orjson.loads(answer[1])
    if "problem" in said:
        raise Problem.of(said["problem"])
    return said


async def listen(store: Store, run_of: Callable[[str], Run | None]) -> None:
    """Answers what is asked of the runs of this process, each by itself: some answers take a moment."""
    answering: set[asyncio.Task[None]] = set()
    while True:
        try:
            async with store.redis.pubsub() as channel:
                await channel.subscribe(CALLS)
                async for message in channel.listen():
                    if message["type"] == "message":
                        task = asyncio.create_task(_answer(store, message["data"], run_of))
                        answering.add(task)
                        task.add_done_callback(answering.discard)
        except (RedisError, OSError):
            await asyncio.sleep(0.5)


async def _answer(store: Store, message: str, run_of: Callable[[str], Run | None]) -> None:
    """Who asks is told that nobody answers, where it cannot be."""
    try:
        await _answered(store, message, run_of)
    except (ValueError, KeyError) as error:
        _log.warning("a call of another release is not understood: %s", type(error).__name__)
    except (RedisError, OSError) as error:
        _log.warning("a call cannot be answered: %s", type(error).__name__)


async def _answered(store: Store, message: str, run_of: Callable[[str], Run | None]) -> None:
    asked = orjson.loads(message)
    run = run_of(asked["job"])
    if run is None:
        return
    said: dict[str, Any] = {}
    try:
        if asked["what"] == "decide":
            given = PermissionAnswer.model_validate(asked["given"])
            said["decision"] = run.permissions.answer(asked["permission"], given, asked["by"]).model_dump(mode="json")
        elif asked["what"] == "interrupt":
            run.interrupt()
        elif asked["what"] == "stop_agent":
            run.agents.stop(asked["call"])
        elif asked["what"] == "say":
            said["sent"] = run.steering.say(asked["message"]).model_dump(mode="json")
        elif asked["what"] == "take_back":
            said["sent"] = (await run.steering.take_back(asked["id"])).model_dump(mode="json")
        else:
            raise ValueError(asked["what"])
    except Problem as problem:
        said = {"problem": problem.document()}
    async with store.redis.pipeline(transaction=True) as pipe:
        pipe.rpush(asked["reply"], orjson.dumps(said))
        pipe.expire(asked["reply"], _KEPT_S)
        await pipe.execute()
