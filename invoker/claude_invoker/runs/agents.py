"""The subagents of one run, each by the call of a tool that has begun it, and how one of them is ended."""

from __future__ import annotations

from claude_invoker.cli.messages import AgentEnded, AgentStarted
from claude_invoker.cli.process import CliProcess
from claude_invoker.problem import Problem

_MOST = 1000
"""That can be ended, of one run."""


class Agents:
    def __init__(self) -> None:
        self._tasks: dict[str, str] = {}
        """What the CLI calls them, by the calls that have begun them; empty: it has ended."""
        self._process: CliProcess | None = None

    def begin(self, process: CliProcess) -> None:
        """The model is at work now, in this process."""
        self._process = process

    def end(self) -> None:
        """It is not any more."""
        self._process = None
        self._tasks = dict.fromkeys(self._tasks, "")

    def hear(self, message: AgentStarted | AgentEnded) -> None:
        if isinstance(message, AgentStarted):
            if len(self._tasks) < _MOST:
                self._tasks[message.call] = message.task
            return
        for call, task in self._tasks.items():
            if task == message.task:
                self._tasks[call] = ""

    def stop(self, call: str) -> None:
        """Ends the one that this call has begun; the model is told so, and goes on. Raises Problem 404, 409."""
        task = self._tasks.get(call)
        if task is None:
            raise Problem(404, "not-found", "the run has begun no such subagent")
        if not task or self._process is None:
            raise Problem(409, "conflict", "the subagent has ended")
        self._process.stop_task(task)
