"""From what was asked for and what is allowed to what is run: pure, and the only place where clamps bind."""

from __future__ import annotations

import base64
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from claude_contract.claims import SEARCH, Clamp
from claude_contract.destinations import Destination, within_both
from claude_contract.features import Feature, of_model
from claude_contract.rules import AGENT, QUESTION, WRITERS, Rules, Verdict, parse
from claude_invoker.catalog import choosing
from claude_invoker.catalog.catalog import EMPTY, Catalog
from claude_invoker.isolation.strength import COMMAND_TOOLS, USE_EGRESS, Boundary
from claude_invoker.metering.models import permits
from claude_invoker.model import Block, InputFile, InvokeRequest, Message, TextBlock
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from claude_invoker.workspace import files
from claude_invoker.workspace.files import Content, Uploaded
from claude_invoker.workspace.repository import Wanted

_WRITERS = COMMAND_TOOLS | frozenset(WRITERS)
_T = TypeVar("_T", int, float)


@dataclass(frozen=True)
class Checking:
    """A command of Bash, how often its failure goes back to the model, and the path of the report that it leaves."""

    command: str
    max_repairs: int = 0
    junit: str | None = None


@dataclass(frozen=True)
class Pushing:
    """A branch, in which `{run}` stands for the run's id, and the first line of the commit's message."""

    branch: str
    message: str | None = None
    pull_request: bool = False


@dataclass(frozen=True)
class Plan:
    """One run, decided: nothing that follows looks at the request again."""

    content: tuple[dict[str, Any], ...]
    system: str | None
    model: str
    models: tuple[str, ...] | None
    """Models that the run may use, subagents included; None: any."""
    tools: tuple[str, ...]
    max_turns: int
    max_budget_usd: float
    output_schema: dict[str, Any] | None
    session: str | None
    total_s: float
    egress: tuple[Destination, ...] = ()
    """Hosts that the run reaches."""
    skills: tuple[str, ...] = ()
    """Of the catalog, as the agents."""
    agents: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    """Of MCP, as the skills."""
    server_tools: tuple[str, ...] = ()
    """What it may call of them, as `mcp__server__tool`."""
    starts_servers: bool = False
    """Whether one of them runs beside its commands."""
    features: tuple[Feature, ...] = ()
    """What its requests to the API may have beside tokens of its models."""
    instead_of: str | None = None
    """The model that it would have, were its budget not used up."""
    repository: Wanted | None = None
    """What it works on; None: it begins in an empty directory."""
    files: tuple[tuple[str, Content | Uploaded], ...] = ()
    """(path, content) of what its caller has sent along."""
    archive: Content | None = None
    """The same, to be unpacked."""
    spool: Path | None = None
    """The directory of what of these is on the disk; it goes when the run has them."""
    check: Checking | None = None
    """What is run when the model is done."""
    push: Pushing | None = None
    """Where what it has changed goes besides."""
    packs: bool = False
    """Whether all that it leaves is an artifact."""
    rebase: bool = False
    """Whether what its session has changed is brought to where the branch is now, before it begins."""
    rules: tuple[Rules, ...] = ()
    """Which calls of its tools are asked about or denied: the tier's, and what its caller wants to be asked besides."""
    approval_timeout_s: float = 0.0
    """How long such a call waits."""
    defers_after_s: float | None = None
    """After so much of that the run may be put away. None: never."""
    ends_session: bool = False
    """Whether its session is there only so that it may be put away, and goes with it."""
    tags: tuple[str, ...] = ()
    """By which its caller finds it."""

    @property
    def asked(self) -> tuple[str, ...]:
        """Those of its tools that somebody is asked about: what the rules name, that which comes with its agents
        included, and what asks by itself."""
        tools = (*self.tools, *self.server_tools, *((AGENT,) if self.agents else ()))
        return tuple(tool for tool in tools if tool == QUESTION or any(rules.names(tool) for rules in self.rules))

    @property
    def may_leave_files(self) -> bool:
        """Whether anything in it can write one that is kept."""
        return self.packs or self.check is not None or self.starts_servers or bool(_WRITERS.intersection(self.tools))

    @property
    def size(self) -> int:
        """Bytes that its input takes in memory."""
        texts = [block["text"] if block["type"] == "text" else block["source"]["data"] for block in self.content]
        contents = [*(content for _, content in self.files), self.archive]
        held = [content for content in contents if isinstance(content, bytes)]
        return sum(map(sys.getsizeof, (*texts, *held, self.system or "", json.dumps(self.output_schema))))

    def without_input(self) -> Plan:
        """What is still asked for when the run is over."""
        return replace(self, content=(), system=None, output_schema=None, files=(), archive=None, spool=None)


def plan(
    request: InvokeRequest,
    clamp: Clamp,
    settings: Settings,
    boundary: Boundary,
    repository: Wanted | None = None,
    catalog: Catalog = EMPTY,
) -> Plan:
    """Decides a run. `repository`: what the gateway has attested that it works on, as it is known here.

    Raises Problem 422 for files, a branch or a rebase that cannot be, and for skills without the tools that they need;
    403 for a branch, model, skill or tool that is not allowed (for a check: a tool that runs commands), for what a
    skill needs and the run may not have, and for a tool that the run would have and that the boundary around runs does
    not allow here, hosts that a tool could reach included. Numbers are lowered
    silently to their bounds.
    """
    if request.rebase and repository is None:
        raise Problem(422, "invalid", "rebase: the session is on no repository; name it (X-Repo)")
    allowed = allowed_models(settings.models or None, clamp.models)
    model = request.model or settings.model
    if not permits(allowed, model):
        if request.model is not None or not allowed:
            who = _refusers(permits(settings.models or None, model), permits(clamp.models, model), "INVOKER_MODELS")
            raise Problem(403, "forbidden", f"model {model} is not allowed by {who}; {_listed(allowed or ())}")
        model = allowed[0]
    instead_of = None
    if clamp.model is not None:  # the gateway has decided
        if not permits(allowed, clamp.model):
            raise Problem(
                403,
                "forbidden",
                f"your budget is used up, and {clamp.model}, which runs instead, is not allowed here (INVOKER_MODELS)",
            )
        instead_of = model if model != clamp.model else None
        model, allowed = clamp.model, (clamp.model,)
    featured = set(features_of(clamp, searches=False))
    for feature in of_model(model):
        if feature not in featured:
            raise Problem(
                403, "forbidden", f"model {model} needs {feature}, which is not among your tier's api_features"
            )
    given = _tools_of(clamp, settings)
    ceiling = _intersection(settings.tools_allowed, given) or ()
    rules = rules_of(request, clamp)
    wanted = None if request.tools is None else {tool for tool in request.tools if not choosing.is_of_a_server(tool)}
    skills = choosing.skills(request.skills, wanted, clamp, catalog)
    agents = choosing.agents(request.agents, clamp, catalog)
    servers = choosing.servers(request.mcp, (*skills, *agents), clamp, catalog)
    server_tools = choosing.tools_of_servers(servers, request.tools, clamp, rules)
    started = [entry.name for entry in servers if entry.server is not None and entry.server.command]
    entries = (*skills, *agents, *servers)
    choosing.refuse_without_models(agents, lambda name: permits(allowed, name) and featured.issuperset(of_model(name)))
    if wanted is None:
        usual = tuple(tool for tool in settings.tools if tool in ceiling)
        tools = tuple(dict.fromkeys((*usual, *choosing.tools_of(entries, ceiling))))
    elif refused := sorted(wanted - set(ceiling)):
        ours = set(refused) <= set(settings.tools_allowed)
        theirs = given is None or set(refused) <= set(given)
        who = _refusers(ours, theirs, "INVOKER_TOOLS_ALLOWED")
        raise Problem(403, "forbidden", f"tools not allowed by {who}: {', '.join(refused)}; {_listed(ceiling)}")
    else:
        tools = tuple(sorted(wanted))
    choosing.refuse_without_tools(entries, tools, ceiling)
    check = _checking(request, ceiling, boundary, clamp.rules)
    for name in started:
        if reason := boundary.refuses_commands:
            raise Problem(403, "forbidden", f"server {name} cannot be started here: {reason}")
    for entry in servers:
        if entry.server is not None and entry.server.repositories:
            _refuse_elsewhere(f"server {entry.name}", entry.server.repositories, repository)
            # Whoever may not run commands may not have a program of the repository's, or of his own in its place, run.
            command = shlex.join(entry.server.command)
            _refuse_command(f"server {entry.name}", command, ceiling, boundary, clamp.rules)
    users = sorted(USE_EGRESS.intersection((*tools, *COMMAND_TOOLS) if started or check is not None else tools))
    egress = _egress(clamp, settings) if users else ()
    if egress and boundary.egress_obstacle is not None:
        raise Problem(
            403,
            "forbidden",
            f"this tier opens hosts (egress) to {', '.join(users)}, and runs cannot be kept to them here: "
            f"{boundary.egress_obstacle}",
        )
    choosing.refuse_without_hosts(entries, egress)
    for tool in tools:
        if reason := boundary.refuses(tool, egress=bool(egress)):
            raise Problem(403, "forbidden", f"no run of this invoker may have {tool}: {reason}")
    return Plan(
        content=tuple(_content(request)),
        system=request.system,
        model=model,
        models=allowed,
        tools=tools,
        max_turns=_least(request.max_turns, clamp.max_turns, settings.max_turns),
        max_budget_usd=_least(request.max_budget_usd, clamp.max_usd, settings.max_budget_usd),
        output_schema=request.output_schema,
        session=request.session,
        total_s=_least(request.timeout_s, settings.total_s),
        egress=egress,
        skills=tuple(entry.name for entry in skills),
        agents=tuple(entry.name for entry in agents),
        servers=tuple(entry.name for entry in servers),
        server_tools=server_tools,
        starts_servers=bool(started),
        features=features_of(clamp, searches=SEARCH in tools),
        instead_of=instead_of,
        repository=repository,
        files=tuple(_files(request.files)),
        check=check,
        push=_pushing(request, repository),
        archive=_archive(request),
        packs=request.result is not None and request.result.archive,
        rebase=request.rebase,
        rules=rules,
        approval_timeout_s=settings.approval_timeout_s,
        tags=tuple(request.tags),
    )


def rules_of(request: InvokeRequest, clamp: Clamp) -> tuple[Rules, ...]:
    """The tier's, and more that is asked about: never less. Raises Problem 422."""
    wanted = []
    for number, text in enumerate(request.ask):
        try:
            wanted.append(parse(text))
        except ValueError as error:
            raise Problem(422, "invalid", f"ask[{number}] {error}") from error
    return tuple(filter(None, (clamp.rules, Rules(ask=tuple(wanted)))))


def _archive(request: InvokeRequest) -> bytes | None:
    """Raises Problem 422."""
    if request.archive is None:
        return None
    try:
        return _decoded(request.archive)
    except ValueError as error:
        raise Problem(422, "invalid", "archive is not base64") from error


def _pushing(request: InvokeRequest, repository: Wanted | None) -> Pushing | None:
    """Raises Problem 403, 422."""
    if request.result is None or request.result.push is None:
        return None
    if repository is None:
        raise Problem(422, "invalid", "result.push: the run works on no repository; name one (X-Repo)")
    repository.refuse_branch(request.result.push.replace("{run}", "run"))
    if request.result.pull_request:
        repository.refuse_pull_request()
    return Pushing(request.result.push, request.result.message, request.result.pull_request)


def _checking(request: InvokeRequest, allowed: Sequence[str], boundary: Boundary, rules: Rules) -> Checking | None:
    """Raises Problem 403 where no run of the caller's may run commands, 422 for a report that cannot be."""
    if request.check is None:
        return None
    _refuse_command("check", request.check, allowed, boundary, rules)
    if request.junit is not None and (problem := files.problem_of(request.junit)):
        raise Problem(422, "invalid", f"junit {problem}")
    return Checking(request.check, request.max_repairs, request.junit)


def _refuse_command(what: str, command: str, allowed: Sequence[str], boundary: Boundary, rules: Rules) -> None:
    """Raises Problem 403 where no run of the caller's may run commands, or not this one unasked."""
    for tool in COMMAND_TOOLS:
        if tool not in allowed:
            raise Problem(403, "forbidden", f"{what}: it is a command, and {tool} is not allowed; {_listed(allowed)}")
        if reason := boundary.refuses(tool):
            raise Problem(403, "forbidden", f"{what}: no run of this invoker may have {tool}: {reason}")
        if (found := rules.decide(tool, {"command": command}, _nowhere)).verdict is not Verdict.ALLOW:
            raise Problem(403, "forbidden", f"{what}: it runs unasked, and of your tier's commands {found.why}")


def _refuse_elsewhere(what: str, patterns: Sequence[str], repository: Wanted | None) -> None:
    """Raises Problem 403 where a run works on none of these repositories."""
    if repository is None or not repository.is_among(patterns):
        on = "none" if repository is None else repository.name
        raise Problem(403, "forbidden", f"{what} is one of {', '.join(patterns)}, and the run works on {on}")


def _nowhere(path: str) -> None:
    """Of a command no path is asked for."""


def _files(sent: Sequence[InputFile]) -> Iterable[tuple[str, Content | Uploaded]]:
    """Raises Problem 422."""
    names = files.Names()
    for number, file in enumerate(sent):
        if problem := names.problem_of(file.path):
            raise Problem(422, "invalid", f"files[{number}].path {problem}")
        if file.upload is not None:
            yield file.path, Uploaded(file.upload)
            continue
        try:
            content = (file.content or "").encode() if file.content_base64 is None else _decoded(file.content_base64)
        except ValueError as error:  # half a surrogate pair, too
            name = "content" if file.content_base64 is None else "content_base64"
            raise Problem(422, "invalid", f"files[{number}].{name} cannot be read") from error
        yield file.path, content


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _refusers(ours: bool, theirs: bool, setting: str) -> str:
    """Who does not allow it; `ours` and `theirs`: whether the invoker and the gateway do."""
    who = [
        name
        for name, allows in (("the tier at the gateway", theirs), (f"this invoker ({setting})", ours))
        if not allows
    ]
    return " and ".join(who) or f"the tier at the gateway together with this invoker ({setting})"


def _listed(allowed: Sequence[str]) -> str:
    return f"allowed: {', '.join(allowed)}" if allowed else "nothing is"


def allowed_models(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> tuple[str, ...] | None:
    """What both allow; the narrower name of two stands."""
    if ours is None or theirs is None:
        either = theirs if ours is None else ours
        return None if either is None else tuple(either)
    return tuple(
        dict.fromkeys(
            [name for name in ours if permits(theirs, name)] + [name for name in theirs if permits(ours, name)]
        )
    )


def _egress(clamp: Clamp, settings: Settings) -> tuple[Destination, ...]:
    """Unlike the others nothing where the tier says nothing."""
    return tuple(sorted(set(clamp.egress))) if settings.egress is None else within_both(settings.egress, clamp.egress)


def features_of(clamp: Clamp, *, searches: bool) -> tuple[Feature, ...]:
    """What requests to the API may have beside tokens. `searches`: whether the tool `WebSearch` may be used, which is
    the API's."""
    return tuple(feature for feature in clamp.api_features if searches or feature != "web_search")


def _tools_of(clamp: Clamp, settings: Settings) -> tuple[str, ...] | None:
    """What the tier allows; None: any."""
    if clamp.features is None or "web_search" in clamp.features:
        return clamp.tools
    return tuple(tool for tool in (settings.tools_allowed if clamp.tools is None else clamp.tools) if tool != SEARCH)


def _intersection(ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return tuple(name for name in ours if name in theirs)


def _least(*bounds: _T | None) -> _T:
    return min(bound for bound in bounds if bound is not None)


def _content(request: InvokeRequest) -> Iterable[dict[str, Any]]:
    """The content blocks of the one user message that the CLI gets."""
    if request.context:
        lines = [f"{_fact(name)}: {_fact(value)}" for name, value in request.context.items() if value is not None]
        yield {"type": "text", "text": "<context>\n" + "\n".join(lines) + "\n</context>"}
    if request.prompt:
        yield {"type": "text", "text": request.prompt}
        return
    *earlier, last = request.messages
    if earlier:
        yield from _history(earlier)
    if isinstance(last.content, str):
        yield {"type": "text", "text": last.content}
        return
    for block in last.content:
        if not isinstance(block, TextBlock) or block.text:
            yield _dumped(block)


def _history(earlier: Sequence[Message]) -> Iterable[dict[str, Any]]:
    """The messages before the last as text, then what cannot be text, in its order and under a number each."""
    attached: list[Block] = []

    def shown(block: Block) -> dict[str, Any]:
        if isinstance(block, TextBlock):
            return _dumped(block)
        attached.append(block)
        return {"type": block.type, "attachment": len(attached)}

    said = []
    for message in earlier:
        content = message.content if isinstance(message.content, str) else [shown(block) for block in message.content]
        said.append({"role": message.role, "content": content})
    history = json.dumps(said, ensure_ascii=False)
    yield {"type": "text", "text": f"<conversation_so_far>\n{history}\n</conversation_so_far>"}
    for number, block in enumerate(attached, 1):
        yield {"type": "text", "text": f"Attachment {number} of the conversation so far:"}
        yield _dumped(block)


def _dumped(block: Block) -> dict[str, Any]:
    dumped: dict[str, Any] = block.model_dump(mode="json", exclude_none=True)
    return dumped


def _fact(value: Any) -> str:
    """One line, so that a value cannot pose as another fact or close the block."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.replace("<", "‹").split())
