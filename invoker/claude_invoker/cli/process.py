"""One process of the CLI: started, spoken to in stream-json, and ended with everything it started."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from claude_invoker.cli.child import Child, Limits
from claude_invoker.cli.command import Deadlines, Shape, command, environment
from claude_invoker.cli.contained import Contained, inside
from claude_invoker.cli.kill import Killer
from claude_invoker.cli.messages import (
    MAX_LINE,
    ControlAnswer,
    Heard,
    HookCall,
    Malformed,
    Message,
    Result,
    ServerCall,
    parse,
)
from claude_invoker.cli.tree import Tree
from claude_invoker.isolation.box import Box
from claude_invoker.isolation.network import Way

FIRST_MODEL = "sonnet"
"""An alias that the CLI knows by itself: a full name that it does not know costs a request to the API."""


_HOOK_S = 7 * 24 * 3600
"""How long the CLI waits for an answer before a tool runs: longer than any run. Ours is the one who counts."""


_LOOK_S = 0.02
"""After which the CLI is asked again whether it has reached its MCP servers: a call of one that is not there when it
goes on ends it."""


@dataclass(frozen=True)
class Proceed:
    """What the CLI does of its own: it runs the tool where it was started with it."""


@dataclass(frozen=True)
class Allow:
    """`input`: in the place of what the model has given; None: that."""

    input: dict[str, Any] | None = None


@dataclass(frozen=True)
class Deny:
    """`message` is for the model."""

    message: str


@dataclass(frozen=True)
class Defer:
    """The CLI ends, and the next one in its tree asks again. Only where the model has called no other tool beside it:
    of several the CLI goes on with the last."""


HookAnswer = Proceed | Allow | Deny | Defer


@dataclass(frozen=True)
class Servers:
    """MCP servers that a process is told of: names of those that we are to it, and commands of those that it starts."""

    ours: tuple[str, ...] = ()
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


NO_SERVERS = Servers()


class CliError(Exception):
    """The CLI ended, or said something that is not its protocol, before it gave a result."""


class Disobeyed(Exception):
    """The CLI does not take the model or the system prompt. `code`: its own word for why, such as `not_found`."""

    def __init__(self, what: str, code: str | None) -> None:
        super().__init__(f"{what}: {code}")
        self.what = what
        self.code = code


class Unreached(Exception):
    """MCP servers that were to be started, and do not answer."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(", ".join(names))


class CliProcess(Contained):
    """`spawn` → `ready` → one `begin` → `messages` → (`go_on` → `messages`)… → `end`.

    Of the shape `deferred` it goes on by itself, so that it is told all there is in `begin`, and let go then."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        tree: Tree,
        uid: int | None,
        child: Child,
        killer: Killer | None,
        processes: int,
        shell: Path | None = None,
    ) -> None:
        """`processes`: how many the kernel lets it have, where it does not yet (0). `shell`: what puts its commands
        into their boundary."""
        super().__init__(name, tree, uid, child, killer)
        self.shape = shape
        self._shell = shell
        self.on_server_call: Callable[[ServerCall], None] = lambda call: None
        """Told of what the CLI says to MCP servers that we are to it; the answer is for `answer_server`."""
        self._processes = processes
        self._ids = itertools.count(1)
        self._model: str | None = None
        self.finished = False
        """Whether the result message has been read."""
        self._stderr: deque[bytes] = deque(maxlen=40)
        self._drain = asyncio.create_task(self._drain_stderr())

    @classmethod
    async def spawn(
        cls,
        cli: Path,
        shape: Shape,
        tree: Tree,
        *,
        name: str,
        uid: int | None,
        api: Path,
        key: str,
        deadlines: Deadlines,
        limits: Limits,
        killer: Killer | None,
        box: Box | None,
        network: Way | None = None,
    ) -> CliProcess:
        """Starts the CLI in `tree` as user `uid`, inside of `box`; it waits for its first message. `killer` ends what
        has a user of its own; `api` is the socket of the key proxy. `network`: in one of its own, in which there is its
        `listener`. Raises OSError.

        The key travels through a pipe, so that neither argv nor the environment, which tools inherit,
        holds it.
        """
        read_end, write_end = os.pipe()
        try:
            os.write(write_end, key.encode())
            os.close(write_end)
            by_itself = box is not None and box.counts_processes
            with inside(box, tree, api, network, shape.given.readable) as (kind, entry):
                gate = (_gate(tree, name),) if shape.session == "deferred" else ()
                child = await Child.start(
                    command(cli, shape, *gate),
                    env=environment(
                        tree,
                        name,
                        api,
                        read_end,
                        deadlines,
                        None if kind is None else kind.shell,
                        egress=network is not None,
                        given=shape.given,
                        spare=limits.spare(own_count=by_itself or uid is not None),
                    ),
                    cwd=tree.work,
                    uid=uid,
                    pass_fds=(read_end,),
                    limits=limits,
                    entry=entry,
                    network=network,
                    line_limit=MAX_LINE,
                )
        finally:
            os.close(read_end)
        processes = limits.processes if by_itself and uid is None else 0
        shell = None if kind is None else kind.shell
        return cls(name, shape, tree, uid, child, killer, processes, shell)

    @property
    def stderr(self) -> str:
        """The last lines of the CLI's own log. May quote a caller's text: not for answers or logs as such."""
        return b"".join(self._stderr).decode("utf-8", "replace")[-4000:]

    async def ready(self) -> None:
        """Waits until the process serves control requests: its start-up is then over. Raises CliError.

        The probe is `set_model`, not `initialize`: only the first `initialize` sets the system prompt.
        """
        try:
            await self._obey(self._send_control("set_model", model=FIRST_MODEL))
        except Disobeyed as error:
            raise CliError(str(error)) from error
        if self.hold is not None:
            try:
                await asyncio.to_thread(self.hold.find_cli, self._processes)
            except OSError as error:
                raise CliError(f"the CLI's process is not found: {error}") from error
        self._model = FIRST_MODEL

    async def begin(
        self,
        model: str,
        system: str | None,
        output_schema: dict[str, Any] | None,
        content: tuple[dict[str, Any], ...],
        servers: Servers = NO_SERVERS,
    ) -> None:
        """Sends the run: system prompt, schema of the result, model, MCP servers; and, once the CLI has said that it
        has taken them, the one user message, or lets it go on with what was deferred. Where it does not take a model it
        would go on with its own, the dearest.

        Raises Disobeyed, Unreached, and CliError if the process is gone. `client_composed` keeps the CLI from reading
        `@/path` or `/command` in the caller's text.
        """
        wishes: dict[str, Any] = {"systemPrompt": None if system is None else [system], "jsonSchema": output_schema}
        if self.shape.asked:
            # All tools, not only those: what is asked about is decided in one place.
            wishes["hooks"] = {"PreToolUse": [{"hookCallbackIds": ["ask"], "timeout": _HOOK_S}]}
        if servers.ours:
            wishes["sdkMcpServers"] = list(servers.ours)
        wishes = {name: value for name, value in wishes.items() if value is not None}
        asked = [self._send_control("initialize", **wishes)]
        if servers.commands:
            asked.append(self._send_control("mcp_set_servers", servers=self._started(servers)))
        if model != self._model:
            asked.append(self._send_control("set_model", model=model))
        for request in asked:
            if unreached := (await self._obey(request)).unreached:
                raise Unreached(unreached)
        if self.shape.session != "deferred":
            await self._tell(content)
            return
        while not set(servers.ours) <= set((await self._obey(self._send_control("mcp_status"))).reached):
            await asyncio.sleep(_LOOK_S)
        try:
            await asyncio.to_thread(_open, _gate(self.tree, self.name))
        except OSError as error:
            raise CliError(f"the run cannot be let go on: {error.strerror}") from error

    def _started(self, servers: Servers) -> dict[str, Any]:
        """In the boundary that commands have, not in the CLI's own, which is wider."""
        found: dict[str, Any] = {name: {"type": "sdk", "name": name} for name in servers.ours}
        for name, (program, *arguments) in servers.commands.items():
            if self._shell is not None:
                program, arguments = str(self._shell), ["-c", 'exec "$0" "$@"', program, *arguments]
            found[name] = {"type": "stdio", "command": program, "args": arguments}
        return found

    async def go_on(self, content: tuple[dict[str, Any], ...]) -> None:
        """Sends another turn's message, for which all is as `begin` has said. Raises CliError."""
        self.finished = False
        await self._tell(content)

    def say(self, message: str, text: str) -> None:
        """Tells the model something besides, at the next boundary of its tools, else in a further turn. `message`: a
        UUID, by which the CLI says what becomes of it."""
        self._send(_user({"type": "text", "text": text}) | {"uuid": message})

    def take_back(self, message: str) -> None:
        """Unless the model has it by then."""
        self._send_control("cancel_async_message", message_uuid=message)

    def stop_task(self, task: str) -> None:
        """Ends a subagent, by the CLI's name for it."""
        self._send_control("stop_task", task_id=task)

    async def _tell(self, content: tuple[dict[str, Any], ...]) -> None:
        """Raises CliError."""
        self._send(_user(*content))
        try:
            await self._child.stdin.drain()
        except ConnectionError as error:
            raise CliError("the CLI closed its input") from error

    async def messages(self) -> AsyncIterator[Message]:
        """What the CLI says until it closes its output. Raises CliError for a line that is not its protocol."""
        while True:
            try:
                line = await self._child.stdout.readline()
            except ValueError as error:
                raise CliError(f"a line of the CLI is longer than {MAX_LINE} bytes") from error
            if not line:
                return
            try:
                message = parse(line)
            except Malformed as error:
                raise CliError(str(error)) from error
            if isinstance(message, ServerCall):
                self.on_server_call(message)
            elif message is not None:
                self.finished = self.finished or isinstance(message, Result)
                yield message

    async def _obey(self, request: tuple[str, str]) -> ControlAnswer:
        """Waits for the answer to a control request. Raises Disobeyed, CliError."""
        subtype, request_id = request
        async for message in self.messages():
            if isinstance(message, ControlAnswer) and message.request_id == request_id:
                if message.error is not None:
                    raise Disobeyed(subtype, message.error_code)
                return message
            if isinstance(message, HookCall) or (isinstance(message, Heard) and message.results):
                raise CliError("what was deferred goes on before it is let")
        await self.exited(1.0)
        # Nothing of a caller's has been sent yet, so its log can be quoted.
        raise CliError(f"the CLI ended at {subtype}, exit code {self.returncode}: {self.stderr.strip()[-500:]}")

    def answer(self, request_id: str, answer: HookAnswer) -> None:
        """To a `HookCall` of this process."""
        said: dict[str, Any] = {"hookEventName": "PreToolUse"}
        match answer:
            case Allow(given):
                said |= {"permissionDecision": "allow"} | ({} if given is None else {"updatedInput": given})
            case Deny(message):
                said |= {"permissionDecision": "deny", "permissionDecisionReason": message}
            case Defer():
                said |= {"permissionDecision": "defer"}
        self._answer(request_id, {} if isinstance(answer, Proceed) else {"hookSpecificOutput": said})

    def answer_server(self, request_id: str, message: dict[str, Any]) -> None:
        """To a `ServerCall` of this process, by a message of JSON-RPC."""
        self._answer(request_id, {"mcp_response": message})

    def _answer(self, request_id: str, response: dict[str, Any]) -> None:
        told = {"subtype": "success", "request_id": request_id, "response": response}
        self._send({"type": "control_response", "response": told})

    def interrupt(self) -> None:
        """Asks the CLI to stop what it does; tools it runs are ended by it."""
        self._send_control("interrupt")

    async def terminated(self, within_s: float) -> None:
        """SIGTERM to the CLI, and up to `within_s` for it to end by itself."""
        self._child.terminate()
        await self.exited(within_s)

    async def _is_over(self) -> None:
        self._drain.cancel()

    def _send_control(self, subtype: str, **fields: Any) -> tuple[str, str]:
        """(subtype, id) of a control request that was sent."""
        request_id = f"invoker-{next(self._ids)}"
        request = {"subtype": subtype, **fields}
        self._send({"type": "control_request", "request_id": request_id, "request": request})
        return subtype, request_id

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._child.stdin.write(orjson.dumps(message) + b"\n")

    async def _drain_stderr(self) -> None:
        while chunk := await self._child.stderr.read(4096):
            self._stderr.append(chunk)


def _user(*content: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "user",
        "session_id": "",
        "parent_tool_use_id": None,
        "client_composed": True,
        "message": {"role": "user", "content": list(content)},
    }


def _gate(tree: Tree, name: str) -> Path:
    """What a process of that name waits for before it goes on with what was deferred: nobody has known its name."""
    return tree.temp / f"go-{name}"


def _open(gate: Path) -> None:
    """Makes the file in a directory of the run's, following nothing there. Raises OSError."""
    directory = os.open(gate.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(gate.name, flags, 0o444, dir_fd=directory))
    finally:
        os.close(directory)
