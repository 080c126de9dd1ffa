"""Valid and invalid requests, mixed, on many connections; each outcome with its time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp


@dataclass
class Outcome:
    at: float  # monotonic seconds when the answer came
    good: bool
    status: int  # 0: no answer
    kind: str


@dataclass
class Load:
    """`make` gives path, headers and body of a random valid or invalid request."""

    url: str
    make: Callable[[bool], tuple[str, Mapping[str, str], bytes]]
    clients: int = 12
    pause: float = 0.01  # seconds between a client's requests
    keep_alive: bool = True  # a worker of nginx that ends closes idle connections, at times under a request
    outcomes: list[Outcome] = field(default_factory=list)

    async def run(self, until: asyncio.Event) -> None:
        timeout = aiohttp.ClientTimeout(total=20)
        connector = aiohttp.TCPConnector(limit=0, force_close=not self.keep_alive)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._client(session, until) for _ in range(self.clients)))

    async def _client(self, session: aiohttp.ClientSession, until: asyncio.Event) -> None:
        while not until.is_set():
            good = random.random() < 0.5
            path, headers, body = self.make(good)
            status = 0
            try:
                sent = session.post(self.url + path, data=body, headers=headers, allow_redirects=False)
                async with sent as answer:
                    await answer.read()
                    status = answer.status
            except (TimeoutError, aiohttp.ClientError, OSError):
                pass
            self.outcomes.append(Outcome(time.monotonic(), good, status, headers["X-Chaos"]))
            await asyncio.sleep(self.pause)
