"""Callers who do as docs/api.md says: what got lost is sent again with the same key, streams are come back to. Each is a
subject of its own, and writes down what it was answered and what it should not have been."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from tests.invoker.money import HAIKU
from tests.replicas.stage import Stage
from tests.support.waiting import HANG_S

WAIT_S = 0.2
LOST_AT = 1 << 40
"""The number of the event by which a run ends whose invoker is gone."""
USAGE = json.dumps({"input_tokens": 5000, "output_tokens": 1000})
"""Of each request of the real CLI: a cent, as of `fast_cli.sh`."""
EVENTS = {"Accept": "text/event-stream"}
CLEAR = {"worker-lost", "cancelled", "cli-failed", "api-unreachable", "conflict", "not-bookable", "busy", "limited"}
"""Kinds of problems by which a run that was broken may end."""


class Hangs(Exception):
    """No answer that says anything, for too long."""


@dataclass
class Asked:
    """What was asked for, and what came of it. `place`: where it can be looked at; `problem`: how it ended, where it did
    not end well; `tries`: how often it was sent; `said`: a part of its answer that is its own."""

    subject: str
    mark: str
    kind: str
    place: str = ""
    result: str = ""
    problem: dict[str, Any] | None = None
    tries: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    """What should not have been: under which figure it counts, and in words."""

    @property
    def why(self) -> str:
        return "" if self.problem is None else str(self.problem.get("type", "")).rpartition(":")[2]

    def wrong(self, figure: str, what: str) -> None:
        self.faults.append((figure, f"{figure}: {self.kind} {self.mark} {what}"))


@dataclass(frozen=True)
class Words:
    """What a run is to do: for `fast_cli.sh`, and as a command for the tool of the real CLI. It says "did" and its mark,
    in a session also what was done there before."""

    pause: float
    writes: str = ""
    turn: str = ""

    def plain(self) -> str:
        words = {"sleep": str(self.pause), "write": self.writes, "turn": self.turn}
        return " ".join(f"{name}={value}" for name, value in words.items() if value)

    def command(self, mark: str) -> str:
        writes = f"echo {mark} >{self.writes}; " if self.writes else ""
        turn = f"echo {self.turn} >>turns; " if self.turn else ""
        before = " after $(tr '\\n' ' ' <turns)" if self.turn else ""
        return f"{writes}{turn}sleep {self.pause}; echo did {mark}{before}"


def said(result: str) -> str:
    """What it comes to: without what the stand-in of the API says before it, and the CLI behind it."""
    return result.removeprefix("Tool results:\n").partition("\n")[0].strip()


def is_for_now(answer: httpx.Response) -> bool:
    """Whether the same request is to be sent again: what the gateway says where it reached nobody, and what the invoker
    refuses for the moment."""
    if answer.headers.get("x-should-retry") == "false":
        return False
    of_gateway = "problem+json" not in answer.headers.get("content-type", "")
    return answer.status_code in (409, 429, 503) or (of_gateway and answer.status_code in (500, 502, 504))


class Caller:
    def __init__(self, stage: Stage, subject: str, chance: random.Random) -> None:
        self.stage, self.subject, self.chance = stage, subject, chance
        self.asked: list[Asked] = []
        self._http = stage.client(subject)
        self._count = 0

    async def close(self) -> None:
        await self._http.aclose()

    def begin(self, kind: str) -> Asked:
        self._count += 1
        found = Asked(self.subject, f"{self.subject}-{self._count}", kind)
        self.asked.append(found)
        return found

    async def send(self, asked: Asked | None, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to it. Raises Hangs."""
        until, last = time.monotonic() + HANG_S, ""
        while time.monotonic() < until:
            if asked is not None and method == "POST":
                asked.tries += 1
            with suppress(httpx.TransportError):
                answer = await self._http.request(method, path, **options)
                if not is_for_now(answer):
                    return answer
                last = f"{answer.status_code} {answer.text}"
            await asyncio.sleep(WAIT_S)
        raise Hangs(f"{method} {path}: {last}")

    async def once(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer, whatever it is."""
        return await self._http.request(method, path, **options)

    def body(self, asked: Asked, words: Words, **more: Any) -> dict[str, Any]:
        if not self.stage.is_real:
            return {"prompt": f"job={asked.mark} log={self.stage.begun} {words.plain()} ok", **more}
        call = json.dumps({"command": words.command(asked.mark)})
        prompt = f"[[tool Bash {call}]] [[usage {USAGE}]] {asked.mark}"
        return {"prompt": prompt, "model": HAIKU, "tools": ["Bash"], **more}

    # One of each kind.

    async def plain(self) -> None:
        asked = self.begin("plain")
        answer = await self._invoked(asked, self.body(asked, Words(0.2, writes="left.txt")))
        if answer is not None and [each["path"] for each in answer["artifacts"]] == ["left.txt"]:
            file = await self.send(None, "GET", answer["artifacts"][0]["href"])
            if (file.status_code, file.text) != (200, f"{asked.mark}\n"):
                asked.wrong("lost", f"its file is {file.status_code} {file.text[:200]}")
        elif answer is not None:
            asked.wrong("lost", f"left {answer['artifacts']}")

    async def conversation(self, turns: int = 3) -> None:
        """A turn that was answered is in all that follow, once, and in its order; one that was broken, once or not."""
        session, known, broken = "new", list[str](), set[str]()
        for _ in range(turns):
            asked = self.begin("turn")
            words = Words(0.2, turn=asked.mark)
            answer = await self._invoked(asked, self.body(asked, words, session=session))
            if answer is None:
                broken.add(asked.mark)
                if session == "new":
                    return
                continue
            done = said(answer["result"]).partition(" after ")[2].split()
            if [mark for mark in done if mark not in broken] != [*known, asked.mark] or len(set(done)) < len(done):
                asked.wrong("out_of_order", f"the session has {done}, not {[*known, asked.mark]}")
            session, known = answer["session"], [*known, asked.mark]

    async def _invoked(self, asked: Asked, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer of a run; None where it was broken."""
        answer = await self.send(asked, "POST", "/claude/invoke", json=body, headers={"Idempotency-Key": asked.mark})
        document = dict(answer.json())
        if answer.status_code != 200:
            asked.problem = document
            return None
        asked.place, asked.result = f"/claude/runs/{document['id']}", document["result"]
        if not said(asked.result).startswith(f"did {asked.mark}"):
            asked.wrong("wrong_owner", f"is answered {asked.result}")
        return document

    async def streamed(self, *, cancels: bool = False) -> None:
        asked = self.begin("cancelled" if cancels else "streamed")
        body = self.body(asked, Words(3 if cancels else 0.4))
        headers = EVENTS | {"Idempotency-Key": asked.mark}
        until, last = time.monotonic() + HANG_S, 0
        while time.monotonic() < until:
            comes_back = bool(asked.place) and last > 0
            method, path, more = ("GET", f"{asked.place}/events", EVENTS | {"Last-Event-ID": str(last)})
            if not comes_back:
                asked.tries, last = asked.tries + 1, 0
                method, path, more = ("POST", "/claude/invoke", headers)
            leaves_at = None if asked.tries > 8 else last + self.chance.choice((2, 4, 1000))
            with suppress(httpx.TransportError):
                async with self._http.stream(method, path, json=None if comes_back else body, headers=more) as answer:
                    if answer.status_code == 204:
                        asked.wrong("out_of_order", f"204 after event {last}, which was not its last")
                        return
                    if answer.status_code != 200:
                        await answer.aread()
                        if is_for_now(answer):
                            await asyncio.sleep(WAIT_S)
                        elif comes_back or answer.status_code < 500:
                            asked.wrong("unclear", f"{method} is {answer.status_code} {answer.text[:300]}")
                            return
                        else:
                            asked.problem = dict(answer.json())
                            return
                        continue
                    asked.place = answer.headers.get("location", asked.place)
                    async for number, name, data in events_of(answer):
                        if int(number) != last + 1 and int(number) != LOST_AT:
                            asked.wrong("out_of_order", f"event {number} after {last}")
                        last = int(number)
                        if name in ("run.finished", "error"):
                            await self._over(asked, name, data, last)
                            return
                        if cancels and last >= 2:
                            cancels = False
                            await self.send(None, "DELETE", asked.place)
                        elif leaves_at is not None and last >= leaves_at:
                            break
            await asyncio.sleep(WAIT_S / 4)
        raise Hangs(f"stream {asked.mark} after event {last}")

    async def _over(self, asked: Asked, name: str, data: bytes, last: int) -> None:
        document = orjson.loads(data)
        if name == "error":
            asked.problem = document
        else:
            asked.result = document["result"]
            if said(asked.result) != f"did {asked.mark}":
                asked.wrong("wrong_owner", f"ends with {asked.result}")
        if not asked.place:
            return
        again = await self.send(None, "GET", f"{asked.place}/events", headers=EVENTS | {"Last-Event-ID": str(last)})
        if again.status_code != 204:
            asked.wrong(
                "out_of_order", f"whoever comes back after its last event gets {again.status_code} {again.text[:200]}"
            )

    async def job(self) -> None:
        asked = self.begin("job")
        headers = {"Idempotency-Key": asked.mark}
        if self.chance.random() < 0.5:
            path = "/claude/jobs"
        else:
            path, headers = "/claude/invoke", headers | {"Prefer": "respond-async"}
        made = await self.send(
            asked, "POST", path, json=self.body(asked, Words(0.3, writes="left.txt")), headers=headers
        )
        if made.status_code != 202:
            asked.wrong("unclear", f"is refused: {made.status_code} {made.text[:300]}")
            return
        asked.place = made.headers["location"]
        if self.chance.random() < 0.5:
            await self._followed(asked)
        until = time.monotonic() + HANG_S
        while (seen := (await self.send(None, "GET", asked.place)).json()).get("state") in ("queued", "running"):
            if time.monotonic() > until:
                raise Hangs(f"job {asked.mark} is {seen['state']}")
            await asyncio.sleep(WAIT_S)
        if seen.get("state") != "done":
            asked.problem = seen.get("error") or {}
            return
        asked.result = seen["result"]["result"]
        if said(asked.result) != f"did {asked.mark}":
            asked.wrong("wrong_owner", f"is answered {asked.result}")

    async def _followed(self, asked: Asked) -> None:
        until, seen, ends = time.monotonic() + HANG_S, list[str](), 0
        while time.monotonic() < until:
            more = EVENTS | ({"Last-Event-ID": seen[-1]} if seen else {})
            leaves_at = len(seen) + self.chance.choice((2, 4, 1000))
            with suppress(httpx.TransportError):
                async with self._http.stream("GET", f"{asked.place}/events", headers=more) as answer:
                    if answer.status_code == 204:
                        break
                    async for number, name, _ in events_of(answer):
                        seen.append(number)
                        ends += name in ("job.done", "job.failed", "job.cancelled")
                        if len(seen) >= leaves_at:
                            break
            await asyncio.sleep(WAIT_S / 4)
        else:
            raise Hangs(f"the events of {asked.mark} after {seen[-1:]}")
        order = [tuple(map(int, number.split("-"))) for number in seen]
        if ends != 1 or order != sorted(set(order)):
            asked.wrong("out_of_order", f"its events are {seen}, of which {ends} are ends")

    async def looked_at(self, asked: Asked) -> None:
        """What has ended is the same at whoever is asked."""
        if not asked.place:
            return
        for _ in range(2):  # each of them, in turn
            answer = await self.send(None, "GET", asked.place)
            seen = answer.json()
            ended = seen.get("result") or {}
            if asked.result and ended.get("result") != asked.result:
                asked.wrong("lost", f"was answered, and is {answer.status_code} {answer.text[:300]}")
            if asked.problem is not None and seen.get("state") not in ("failed", "cancelled"):
                asked.wrong("lost", f"ended as {asked.why}, and is {answer.status_code} {answer.text[:300]}")

    async def spied_on(self, asked: Asked) -> None:
        """Another's run is none."""
        if asked.place:
            method, below = self.chance.choice((("GET", ""), ("GET", "/events"), ("DELETE", ""), ("GET", "/artifacts")))
            answer = await self.send(None, method, asked.place + below)
            if answer.status_code != 404:
                asked.wrong(
                    "wrong_owner", f"{self.subject} gets {answer.status_code} for {method} {below}: {answer.text[:200]}"
                )


async def events_of(answer: httpx.Response) -> AsyncIterator[tuple[str, str, bytes]]:
    """Number, name and data of each whole event."""
    found: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            if field_of := re.match(r"(id|event|data): (.*)", line, re.DOTALL):
                found[field_of[1]] = field_of[2]
        elif "id" in found:
            yield found["id"], found.get("event", ""), found.get("data", "").encode()
            found = {}
