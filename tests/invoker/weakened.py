"""`python -m tests.invoker.weakened NAME…`: the invoker with some of its defences taken out.

An attack's test runs twice: against the invoker as it is, and against this, where the attack must succeed; else the test
would pass for nothing. What stands here in a defence's place is what the product did before it had one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from claude_contract.claims import Clamp
from claude_contract.destinations import parse
from claude_contract.ledger import Draw, Drawn, Slot, Verdict, micro_usd
from claude_invoker import __main__ as program
from claude_invoker import trust
from claude_invoker.caller import DEVELOPER
from claude_invoker.catalog import entry, layout
from claude_invoker.catalog.catalog import Catalog
from claude_invoker.cli import (
    aside,
    boundary,
    child,
    contained,
    kill,
    killer,
    launcher,
    messages,
    process,
    tree,
    users,
    walk,
)
from claude_invoker.cli import command as command_line
from claude_invoker.cli.command import Shape, command
from claude_invoker.draws import Answer, Draws
from claude_invoker.egress import filters as egress
from claude_invoker.isolation import box, confine, filters, namespaces, network, shell, trial
from claude_invoker.isolation.domain import Domain
from claude_invoker.jobs.store import Store
from claude_invoker.metering import __main__ as metering
from claude_invoker.metering import control
from claude_invoker.metering.account import Account
from claude_invoker.problem import Problem
from claude_invoker.runs import artifacts, engine, execution, sessions
from claude_invoker.runs.permissions import Permissions
from claude_invoker.runs.run import Run


def put(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def a_kernel_without_landlock() -> None:
    """The boundary is a user id for each run: what is below Landlock and seccomp is attacked by itself."""
    put(confine, "abi", lambda: 0)


def a_machine_without_bubblewrap() -> None:
    """No defence less than `landlock` has: what that holds by itself is attacked."""
    put(namespaces, "program", lambda: None)


def processes_without_a_limit_for_all() -> None:
    """Of runs that share a user no more is counted than what the look sees."""
    limits = child.Limits.settings
    put(
        child.Limits,
        "settings",
        lambda self, *, own_user: limits(self if own_user else replace(self, processes=0), own_user=own_user),
    )


def namespaces_as_in_a_container() -> None:
    """No defence less than a container has: the namespaces that can be made there are attacked by themselves."""
    put(trial, "_OWN_PROC", (False,))


def user_namespaces_in_namespaces() -> None:
    """The filter around a run leaves all namespaces to it, and the start does not find that out."""
    put(filters, "_no_namespaces", lambda seccomp: iter(()))
    put(trial, "_escapes", lambda *given: None)


def mounts_of_its_own() -> None:
    """No defence less, but a mount namespace: what a test mounts in it is gone with the invoker, however the test ends."""
    network._unshare(0x00020000)  # CLONE_NEWNS
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def a_readable_cli() -> None:
    """The CLI's program can be read by runs, so its process can be looked into by those of its user."""

    def readable(cli: Path, programs: Path, *, isolated: bool) -> Path:
        target, kept = programs / "claude", cli.with_name("claude-readable")
        if not kept.exists():  # for all such invokers with that CLI: it has 380 MB
            own = cli.with_name(f"claude-readable-{os.getpid()}")
            shutil.copyfile(cli, own)
            own.chmod(0o755)
            own.rename(kept)
        if not target.exists():
            os.link(kept, target)
        return target

    put(engine, "reachable_binary", readable)


def namespaces_for_everybody() -> None:
    """Without a domain there is no filter of system calls either."""
    put(contained, "least", lambda: None)


def programs_that_give_rights() -> None:
    """What a run starts has the rights of its owner where it has a set-user-id bit."""
    put(child, "_PR_SET_NO_NEW_PRIVS", 39)  # PR_GET_NO_NEW_PRIVS


def a_shell_that_is_not_looked_at() -> None:
    """Runs start whether or not the shell's wrapper is there."""
    put(box.Box, "intact", True)


def a_shell_that_confines_nothing() -> None:
    put(shell, "text", lambda *given: '#!/bin/sh\nexec /bin/bash "$@"\n')


def the_clis_own_skills() -> None:
    """A run with skills of the catalog is only told which it may use."""
    put(command_line, "_WITHOUT_ITS_OWN", {})


def a_secret_in_the_environment() -> None:
    """As a server has it that is started with a run, and told so."""
    environment = command_line.environment

    def with_it(*given: Any, **more: Any) -> dict[str, str]:
        [secret] = Path(os.environ["INVOKER_MCP_SECRETS"]).iterdir()
        return environment(*given, **more) | {"TICKETS_TOKEN": secret.read_text().strip()}

    put(process, "environment", with_it)


def a_relay_that_believes_the_cli() -> None:
    """Whether somebody has allowed a call is the CLI's business alone."""
    put(Permissions, "spend", lambda self, tool, given: True)


def the_clis_own_agents() -> None:
    """The same of agents."""
    environment = command_line.environment

    def with_its_own(*given: Any, **more: Any) -> dict[str, str]:
        made = environment(*given, **more)
        return {name: value for name, value in made.items() if "BUILTIN_AGENTS" not in name}

    put(process, "environment", with_its_own)


def files_that_words_name() -> None:
    """`@path` is that file to the CLI."""
    environment = command_line.environment

    def with_mentions(*given: Any, **more: Any) -> dict[str, str]:
        made = environment(*given, **more)
        return {name: value for name, value in made.items() if "FILE_MENTIONS" not in name}

    put(process, "environment", with_mentions)


def heads_as_they_are_written() -> None:
    """The CLI ends them where it thinks that they end."""
    put(entry, "_quoted", json.dumps)


def a_catalog_for_everybody() -> None:
    """What runs have of the catalog is theirs to write, where nothing but its modes keeps them from it."""

    write, bring_libraries = layout.Layout.write, layout.Layout.bring_libraries

    def bring_them_and_open(laid_out: layout.Layout) -> None:
        bring_libraries(laid_out)
        laid_out.libraries.chmod(0o777)  # what is in it may be links to the machine's own

    def open_to_all(laid_out: layout.Layout, catalog: Catalog) -> Catalog:
        made = write(laid_out, catalog)
        for path in (laid_out.root, *laid_out.root.rglob("*")):
            path.chmod(0o777)
        return made

    put(layout.Layout, "write", open_to_all)
    put(layout.Layout, "bring_libraries", bring_them_and_open)


def checks_outside_of_the_boundary() -> None:
    """A check is run as the run's user, and that is all."""

    @contextmanager
    def outside(*given: object) -> Iterator[tuple[None, box.Entry]]:
        yield None, box.Entry()

    put(aside, "inside", outside)


def names_of_a_test(mode: str = "strict") -> None:
    """No defence, but another internet (see `names`), whose certificate authority is in each run's $HOME, and which the
    developer's runs may reach."""
    put(egress, "_PROGRAM", (str(Path(__file__).with_name("names.py")), mode))
    from claude_invoker.cli.command import environment

    def trusting(*arguments: Any, **more: Any) -> dict[str, str]:
        found = environment(*arguments, **more)
        authority = Path(found["HOME"], "authority.pem")
        shutil.copyfile(os.environ["SITE_AUTHORITY"], authority)
        authority.chmod(0o644)
        return found | {"NODE_EXTRA_CA_CERTS": str(authority)}

    put(process, "environment", trusting)
    hosts = tuple(map(parse, os.environ["SITE_HOSTS"].split(",")))
    put(trust, "DEVELOPER", replace(DEVELOPER, clamp=Clamp(egress=hosts)))


def networks_by_user_namespaces() -> None:
    """The invoker has no capabilities to make networks with."""
    put(Domain, "ways", (network.Way.USER_NAMESPACE,))


def hosts_that_nobody_named() -> None:
    names_of_a_test("any_host")


def a_filter_without_bounds() -> None:
    names_of_a_test("without_bounds")


def addresses_that_nobody_looks_at() -> None:
    names_of_a_test("any_address")


def names_that_are_asked_for_twice() -> None:
    names_of_a_test("asks_twice")


def no_network_of_its_own() -> None:
    """The invoker may not make networks."""
    put(trial, "network_of_its_own", lambda boxed, uid: (None, "Operation not permitted"))


def killer_that_can_be_stopped() -> None:
    """`kill -9 -1` by a shell of the run's own user, for which nobody has a deadline."""

    async def end(self: kill.Killer, uid: int, deadline_s: float) -> None:
        arguments = ("/bin/sh", "-c", "kill -9 -1")
        while True:
            await asyncio.to_thread(
                subprocess.run, arguments, stderr=subprocess.DEVNULL, user=uid, group=uid, extra_groups=(), check=False
            )
            if not await asyncio.to_thread(killer.alive, uid):
                return

    put(kill.Killer, "end", end)


def killer_that_never_answers() -> None:
    put(kill, "_PROGRAM", Path(__file__).with_name("deaf.py"))


def trees_by_recursion() -> None:
    """Walks that recurse, and that stop at the first thing that goes wrong."""

    def delete(root: Path, wanted: Callable[[], bool] = lambda: True) -> None:
        if root.exists():
            shutil.rmtree(root)

    def discard(self: tree.Discarded, target: Path) -> None:
        delete(target)

    put(walk, "delete", delete)
    put(tree.Discarded, "delete", discard)
    put(artifacts, "survey", lambda work: {})
    put(artifacts, "collect", lambda *given: artifacts.Collected([], []))


def strays_that_stay() -> None:
    """What a run leaves where every user may is not looked for."""
    put(launcher, "_tidy", lambda uid: None)


def trees_that_stay_the_runs() -> None:
    """A session's tree keeps the user id of its last run."""
    put(tree.Tree, "take_back", lambda self, uid: None)


def sessions_keep_all_that_the_cli_reads() -> None:
    """Whatever a session's run left is there when the next one starts."""

    def create(self: tree.Tree, uid: int | None) -> None:
        for path in (self.root, self.work, self.home, self.config, self.temp):
            path.mkdir(mode=0o700, exist_ok=True)
        if uid is not None:
            walk.give(self.root, uid, tree.KEPT)

    put(tree.Tree, "create", create)


def a_zombie_is_dead() -> None:
    """A process counts as ended when its first thread has."""
    put(kill, "over", lambda status: status.split(b"\nState:\t", 1)[1][:1] in b"ZX")


def ends_that_are_broken_off() -> None:
    """Who is cancelled while it ends does not wait for that end."""
    put(execution, "unbroken", asyncio.shield)


def trials_by_the_killers_user() -> None:
    """What is tried at the start has the id by which every invoker of a machine ends runs."""
    real = vars(boundary)["_established"]
    put(boundary, "_established", lambda launcher, *rest: real(launcher, *rest[:-2], launcher.users.killer, rest[-1]))


def two_user_ids() -> None:
    """No defence, but a small machine: the next run but one always gets the id that a run had."""
    put(users, "SPAN", 5)  # the first three are the killer's, the metering proxy's and git's


def sessions_in_argv() -> None:
    """A session is gone on with by its id."""
    begun: property = vars(sessions.Session)["begun"]
    current: list[sessions.Session] = []

    def is_begun(self: sessions.Session) -> bool:
        current[:] = [self]
        assert begun.fget is not None
        return bool(begun.fget(self))

    def by_id(cli: Path, shape: Shape) -> list[str]:
        arguments = command(cli, shape)
        if shape.session is not None:
            arguments.append(f"--{'resume' if shape.session == 'begun' else 'session-id'}={current[0].id}")
        return [argument for argument in arguments if argument != "--continue"]

    put(sessions.Session, "begun", property(is_begun))
    put(process, "command", by_id)


def asked_tools_are_allowed_at_the_start() -> None:
    """The CLI is started with what is asked about among what it may do."""
    put(process, "command", lambda cli, shape, *gate: command(cli, replace(shape, asked=()), *gate))


def answers_that_the_cli_does_not_understand() -> None:
    """No defence, but a CLI of another version: what is answered before a tool runs makes no sense to it."""

    def answer(self: process.CliProcess, request_id: str, answer: process.HookAnswer) -> None:
        said = {"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "perhaps"}}
        told = {"subtype": "success", "request_id": request_id, "response": said}
        self._send({"type": "control_response", "response": told})

    put(process.CliProcess, "answer", answer)


def hooks_that_nobody_registers() -> None:
    """No defence, but the same: it knows no hooks by this name."""
    send = process.CliProcess._send_control

    def without(self: process.CliProcess, subtype: str, **fields: Any) -> tuple[str, str]:
        return send(self, subtype, **{name: value for name, value in fields.items() if name != "hooks"})

    put(process.CliProcess, "_send_control", without)


def deferred_calls_that_wait_for_nobody() -> None:
    """The CLI goes on with a deferred call when it starts, and our hook is registered when it has answered that."""
    put(process, "command", lambda cli, shape, *gate: command(cli, shape))


def calls_that_are_left_in_a_session() -> None:
    """The next turn goes on in it as in any other."""

    async def settled(self: object, run: Run, ready: launcher.Ready, shape: Shape) -> None:
        return None

    put(execution, "settling", lambda shape, tool: shape)
    put(execution.Executor, "_settle", settled)


def settings_are_obeyed() -> None:
    """The CLI takes settings, hooks and servers from the directories where it finds them."""

    def obedient(cli: Path, shape: Shape) -> list[str]:
        closed = ("--restricted", "--setting-sources=", "--strict-mcp-config")
        return [argument for argument in command(cli, shape) if argument not in closed]

    put(process, "command", obedient)


def locks_that_anybody_can_take() -> None:
    """User ids are locked by abstract sockets."""

    def lock(self: users.Users, uid: int) -> ExitStack | None:
        held = ExitStack()
        bound = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        try:
            bound.bind(f"\0claude-invoker-uid-{uid}")
        except OSError:
            held.close()
            return None
        return held

    put(users, "SPAN", 9)
    put(users.Users, "_lock", lock)


def anything_the_cli_says() -> None:
    """Numbers of any size and sign are taken from the CLI, and settling them may raise."""
    parse = messages.parse

    class Anything(messages.ModelUsage):
        @classmethod
        def of(cls, cost: Any) -> messages.ModelUsage:
            return cls.model_construct(
                inputTokens=0, outputTokens=0, cacheReadInputTokens=0, cacheCreationInputTokens=0, costUSD=cost
            )

    def believe(line: bytes) -> messages.Message | None:
        document = orjson.loads(line)
        if document.get("type") != "result":
            return parse(line)
        fields = messages.Result.model_fields
        return messages.Result.model_construct(**{name: document[name] for name in fields if name in document})

    async def execute(self: engine.Engine, run: Run, caller: Any, wait_s: float | None) -> None:
        keeper = None if self.ledger is None else asyncio.create_task(self.ledger.hold(caller))
        try:
            await self.places.work(run, wait_s)
        except Problem as problem:
            run.problem = problem
        except process.CliError:
            run.problem = Problem(502, "cli-failed")
        except asyncio.CancelledError:
            run.problem = Problem(499, "cancelled")
        if keeper is not None and self.ledger is not None:
            keeper.cancel()
            await asyncio.shield(self.ledger.book(caller.lease or "", micro_usd(run.cost_usd)))
        await self._finish(run)

    put(process, "parse", believe)
    put(messages.Result, "used", property(lambda self: Anything.of(self.total_cost_usd)))
    the_cli_is_believed()
    put(engine.Engine, "_execute", execute)


def answers_that_nobody_reads() -> None:
    """The prompt is sent before the CLI has said whether it takes the model."""

    async def obey(self: process.CliProcess, request: tuple[str, str]) -> messages.ControlAnswer:
        return messages.ControlAnswer(request[1], None, None, None)

    original = process.CliProcess.ready

    waiting = process.CliProcess._obey

    async def ready(self: process.CliProcess) -> None:
        put(self, "_obey", waiting.__get__(self))
        await original(self)
        del self._obey

    put(process.CliProcess, "_obey", obey)
    put(process.CliProcess, "ready", ready)


def work_in_the_background() -> None:
    """The CLI may go on after its result."""
    from claude_invoker.cli.command import environment

    def without(*arguments: Any, **more: Any) -> dict[str, str]:
        found = environment(*arguments, **more)
        del found["CLAUDE_CODE_DISABLE_BACKGROUND_TASKS"]
        return found

    put(process, "environment", without)


def the_cli_is_believed() -> None:
    """A run costs what its CLI says."""
    put(Run, "cost_usd", property(lambda self: self.cli_cost_usd))


def budgets_without_a_wall() -> None:
    """What a run may spend is looked at by its CLI only."""
    put(Account, "fits", lambda self, asked, *rest, **more: asked.max_tokens)


def other_budgets_are_not_asked() -> None:
    """A run's own budget is the only one that its requests are held to."""

    def put_nothing(self: Draws, lease: str, slot: Slot, draw: Draw, answer: Answer) -> None:
        answer(Drawn(Verdict.DRAWN, draw.most_micro_usd))

    put(Draws, "put", put_nothing)


def whole_sessions_are_booked() -> None:
    """A run's cost is what the CLI calls the total."""
    the_cli_is_believed()
    put(messages.Result, "used", property(lambda self: messages.ModelUsage(costUSD=self.total_cost_usd)))


def a_worker_that_lives_to_put_jobs_away() -> None:
    async def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    put(Store, "defer", die)


OF_THE_PROXY = {"budgets_without_a_wall"}
WEAKNESSES: dict[str, Callable[[], None]] = {
    found.__name__: found
    for found in (
        a_kernel_without_landlock,
        a_machine_without_bubblewrap,
        processes_without_a_limit_for_all,
        namespaces_as_in_a_container,
        user_namespaces_in_namespaces,
        mounts_of_its_own,
        a_readable_cli,
        namespaces_for_everybody,
        programs_that_give_rights,
        a_shell_that_is_not_looked_at,
        a_shell_that_confines_nothing,
        checks_outside_of_the_boundary,
        the_clis_own_skills,
        the_clis_own_agents,
        files_that_words_name,
        heads_as_they_are_written,
        a_catalog_for_everybody,
        names_of_a_test,
        hosts_that_nobody_named,
        a_filter_without_bounds,
        addresses_that_nobody_looks_at,
        names_that_are_asked_for_twice,
        no_network_of_its_own,
        networks_by_user_namespaces,
        killer_that_can_be_stopped,
        killer_that_never_answers,
        trees_by_recursion,
        strays_that_stay,
        trees_that_stay_the_runs,
        sessions_keep_all_that_the_cli_reads,
        a_zombie_is_dead,
        ends_that_are_broken_off,
        trials_by_the_killers_user,
        two_user_ids,
        sessions_in_argv,
        asked_tools_are_allowed_at_the_start,
        answers_that_the_cli_does_not_understand,
        hooks_that_nobody_registers,
        deferred_calls_that_wait_for_nobody,
        calls_that_are_left_in_a_session,
        settings_are_obeyed,
        locks_that_anybody_can_take,
        anything_the_cli_says,
        answers_that_nobody_reads,
        work_in_the_background,
        the_cli_is_believed,
        a_secret_in_the_environment,
        a_relay_that_believes_the_cli,
        budgets_without_a_wall,
        other_budgets_are_not_asked,
        whole_sessions_are_booked,
        a_worker_that_lives_to_put_jobs_away,
    )
}

PROXY = (
    "import sys; sys.path.insert(0, {root!r}); from tests.invoker import weakened; sys.exit(weakened.proxy({names!r}))"
)


def proxy(names: list[str]) -> int:
    """The metering proxy, a process of its own, without the same defences."""
    for name in names:
        WEAKNESSES[name]()
    return metering.main(sys.argv[1:])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        WEAKNESSES[name]()
    if set(sys.argv[1:]) & OF_THE_PROXY:
        here = Path(__file__).parents[2]
        put(control, "PROGRAM", ("-c", PROXY.format(root=str(here), names=[*OF_THE_PROXY & set(sys.argv[1:])])))
    sys.exit(program.main([]))
