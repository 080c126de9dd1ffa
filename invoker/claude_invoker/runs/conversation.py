"""What a process of the CLI is told, and what it answers until its result."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import Any

from claude_invoker.cli import outcome
from claude_invoker.cli.messages import (
    AgentEnded,
    AgentStarted,
    CallOver,
    Heard,
    HookCall,
    Lifecycle,
    Result,
    ServerCall,
    Started,
)
from claude_invoker.cli.process import NO_SERVERS, CliError, CliProcess, Disobeyed, Servers, Unreached
from claude_invoker.plan import Plan
from claude_invoker.problem import Problem
from claude_invoker.runs.permissions import place_in
from claude_invoker.runs.run import Run
from claude_invoker.runs.translate import Translator

_INTERRUPT_S = 5.0
"""In which the CLI has ended what it does when it is told so: it takes a twentieth of a second."""

_TOLD_S = 0.01
"""In which what the metering proxy has said before it answered the CLI is read, which comes by another way."""


@dataclass(frozen=True)
class Conversation:
    """Seconds: until the model is heard of, and of its silence while no tool runs."""

    first_output_s: float
    idle_s: float

    async def held(
        self,
        run: Run,
        process: CliProcess,
        content: tuple[dict[str, Any], ...],
        end: float,
        translator: Translator,
        *,
        same: bool = False,
        awaited: str | None = None,
        servers: Servers = NO_SERVERS,
    ) -> list[Result]:
        """Sends the plan with this content, and translates what comes back until the loop's time `end`. `same`: the
        process has had a turn of this kind before. `awaited`: the call of a tool that was deferred, and with which the
        process goes on. `servers`: of MCP, that the process is told of. The result messages: one, and one for each turn
        that messages of the run's caller have made. Raises Problem, CliError."""
        plan = run.plan
        if process.passage is not None:
            process.passage.begin(run.went_out)
        loop = asyncio.get_running_loop()
        phase = "first_output"
        is_deferred = False

        def can_defer(call: str) -> bool:
            return translator.is_last(call) and not (run.steering.is_pending or run.interrupted)

        def defer() -> None:
            """The process is about to end: it hears nothing more."""
            run.interrupting = None
            run.steering.end()

        run.permissions.can_defer, run.permissions.on_deferring = can_defer, defer

        def interrupt() -> None:
            nonlocal phase
            phase = "interrupt"
            process.interrupt()
            timer.reschedule(min(end, loop.time() + _INTERRUPT_S))

        def serve(call: ServerCall) -> None:
            assert run.relay is not None
            run.relay.take(call, process.answer_server)

        if servers.ours:
            process.on_server_call = serve
        results: list[Result] = []
        try:
            async with asyncio.timeout_at(min(end, loop.time() + self.first_output_s)) as timer:
                run.interrupting = interrupt
                if same:
                    await process.go_on(content)
                else:
                    await process.begin(plan.model, plan.system, plan.output_schema, content, servers)
                run.steering.begin(process)
                run.agents.begin(process)
                async for message in process.messages():
                    if isinstance(message, Started):
                        _check_schema(plan, message)
                        _check_servers(plan, message)
                    if isinstance(message, HookCall):
                        awaited = None
                        phase = "idle" if phase == "first_output" else phase
                        await _ask(run, process, message)
                    if awaited is not None and isinstance(message, Heard) and message.results:
                        raise CliError("a call of a tool that was deferred has run without being asked about")
                    if isinstance(message, CallOver):
                        run.permissions.withdraw(message.request_id)
                        if run.relay is not None:
                            run.relay.withdraw(message.request_id)
                    if translator.take(message) and phase == "first_output":
                        phase = "idle"
                    if isinstance(message, Lifecycle):
                        run.steering.hear(message)
                    if isinstance(message, AgentStarted | AgentEnded):
                        run.agents.hear(message)
                    if isinstance(message, Result):
                        results.append(message)
                        is_deferred = message.is_deferred and run.permissions.deferred is not None
                        turns = sum(each.num_turns for each in results)
                        goes_on = run.steering.is_pending and not message.is_error and turns < plan.max_turns
                        if is_deferred or run.interrupted or not goes_on:
                            break
                        process.finished = False
                    if phase == "idle":
                        idle = loop.time() + self.idle_s
                        is_silent = translator.open_tools or run.permissions.waiting
                        timer.reschedule(end if is_silent else min(end, idle))
        except TimeoutError as error:
            phase = "total" if loop.time() >= end - 0.001 else phase
            raise Problem(504, "timeout", f"deadline: {phase}", extra={"deadline": phase}) from error
        except Disobeyed as error:
            await asyncio.sleep(_TOLD_S)
            raise outcome.disobeyed(plan.model, error, run.account) from error
        except Unreached as error:
            raise unavailable(str(error)) from error
        finally:
            run.interrupting = None
            run.steering.end()
            run.agents.end()
            run.permissions.end(is_deferred=is_deferred)
        if not results or not process.finished:
            raise _early_end(process)
        result = results[-1]
        run.cli_cost_usd = result.used.costUSD
        if is_deferred or (run.interrupted and result.is_error):
            return results
        if problem := outcome.failure(result, run.account, goes_on=run.earlier is not None):
            raise problem
        if plan.output_schema is not None and (problem := outcome.unmet_schema(result, run.account)):
            raise problem
        return results


async def _ask(run: Run, process: CliProcess, call: HookCall) -> None:
    await run.permissions.take(call, place_in(process.tree.work), functools.partial(process.answer, call.request_id))


def _check_schema(plan: Plan, message: Started) -> None:
    """The CLI passes over a schema that it does not understand. Raises Problem 422."""
    if plan.output_schema is not None and "StructuredOutput" not in message.tools:
        raise Problem(422, "invalid", "output_schema is not a JSON Schema that the Claude CLI accepts")


def _check_servers(plan: Plan, message: Started) -> None:
    """The CLI goes on without a server that does not start. Raises Problem 502."""
    if missing := [name for name in plan.servers if name not in message.servers]:
        raise unavailable(", ".join(missing))


def unavailable(names: str) -> Problem:
    """Of MCP servers of a run, which does not begin without them."""
    return Problem(502, "mcp-unavailable", f"of the MCP servers of this run: {names}")


def _early_end(process: CliProcess) -> CliError:
    kinds = [line for line in process.stderr.splitlines() if line.strip()]
    return CliError(f"no result (exit code {process.returncode}, {len(kinds)} lines on stderr)")
