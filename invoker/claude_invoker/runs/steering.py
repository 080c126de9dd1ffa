"""What a run's caller tells its model while that is at work, and what becomes of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

from claude_invoker.cli.messages import Lifecycle
from claude_invoker.cli.process import CliProcess
from claude_invoker.model import SentMessage
from claude_invoker.problem import Problem

MAX_MESSAGES = 50
"""Of a run in all."""
_WITHIN_S = 4.0
"""In which the CLI has said whether it gives a message back: it takes a hundredth of that."""

_STATES = {"started": "taken", "completed": "taken", "cancelled": "cancelled"}
"""By the CLI's words."""


class Steering:
    """`tell`: adds an event to the run's."""

    def __init__(self, tell: Callable[[str, Any], object]) -> None:
        self._tell = tell
        self._sent: dict[str, SentMessage] = {}
        self._process: CliProcess | None = None
        self._changed = asyncio.Event()

    @property
    def is_pending(self) -> bool:
        """Whether there are messages that the model has not seen."""
        return any(sent.state == "queued" for sent in self._sent.values())

    def begin(self, process: CliProcess) -> None:
        """The model is at work now, in this process."""
        self._process = process

    def end(self) -> None:
        """It is not any more."""
        self._process = None
        for sent in self._sent.values():
            if sent.state == "queued":
                self._becomes(sent, "lost")

    def say(self, text: str) -> SentMessage:
        """Raises Problem 409 where the model is not at work, 429."""
        if self._process is None:
            raise Problem(409, "conflict", "the model is not at work")
        if len(self._sent) >= MAX_MESSAGES:
            raise Problem(429, "limited", f"a run takes {MAX_MESSAGES} messages")
        sent = SentMessage(id=str(uuid.uuid4()), message=text, state="queued", sent_at=time.time())
        self._sent[sent.id] = sent
        self._tell("message", sent.model_dump(mode="json"))
        self._process.say(sent.id, text)
        return sent

    async def take_back(self, message_id: str) -> SentMessage:
        """Raises Problem 404, 409 where it is too late, 503."""
        sent = self._sent.get(message_id)
        if sent is None:
            raise Problem(404, "not-found", "there is no such message")
        if sent.state == "queued" and self._process is not None:
            self._process.take_back(message_id)
        try:
            async with asyncio.timeout(_WITHIN_S):
                while sent.state == "queued":
                    await self._changed.wait()
        except TimeoutError as error:
            raise Problem(503, "busy", "the model does not say whether it has it", {"Retry-After": "1"}) from error
        if sent.state != "cancelled":
            raise Problem(409, "conflict", f"the message is {sent.state}")
        return sent

    def hear(self, life: Lifecycle) -> None:
        """What the CLI says of messages, ours among them."""
        sent = self._sent.get(life.message)
        if sent is None or sent.state != "queued" or life.state == "queued":
            return
        self._becomes(sent, _STATES.get(life.state, "lost"))

    def _becomes(self, sent: SentMessage, state: Any) -> None:
        sent.state = state
        self._tell("message", sent.model_dump(mode="json"))
        self._changed.set()
        self._changed = asyncio.Event()
