"""MCP servers of a catalog: their files, which of their tools a run has, and what the relay in front of them lets pass."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from claude_contract.claims import Clamp
from claude_contract.destinations import parse as host
from claude_contract.rules import Rules, parse
from claude_invoker.catalog.catalog import Catalog
from claude_invoker.catalog.choosing import refuse_without_tokens
from claude_invoker.catalog.entry import Broken, Entry, File, Needs
from claude_invoker.catalog.server import server_of
from claude_invoker.catalog.sources import pack, read
from claude_invoker.cli.command import Given, Shape, command
from claude_invoker.cli.messages import ServerCall
from claude_invoker.isolation.strength import Boundary, Strength
from claude_invoker.mcp import relay
from claude_invoker.mcp.relay import Failed, Message, Relay
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import Plan, plan
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings
from claude_invoker.workspace.repository import Source, Wanted
from tests.support.waiting import until

CALLED: dict[str, Any] = {
    "name": "tickets",
    "description": "Tickets.",
    "tools": ["search", "create"],
    "url": "https://tickets.example.com/mcp",
    "secret": "tickets",
}
STARTED: dict[str, Any] = {"name": "clock", "description": "Time.", "tools": ["now"], "command": ["python3", "-V"]}


def entry(described: dict[str, Any], **more: Any) -> Entry:
    members = {name: value for name, value in (described | more).items() if value is not None}
    return server_of(members["name"], File(f"{members['name']}.json", json.dumps(members).encode()))


def test_a_server_as_its_file_says_it() -> None:
    found = entry(CALLED, header="X-Api-Key")
    assert found.server is not None and found.kind == "server" and found.text == ""
    assert (found.server.url, found.server.secret, found.server.header) == (CALLED["url"], "tickets", "X-Api-Key")
    usual = entry(CALLED).server
    assert usual is not None and usual.header == "Authorization" and not usual.of_caller
    found = entry(STARTED, **{"needs-egress": ["PyPI.org"], "needs-python": ["clocks"]})
    assert found.needs.to_json() == {"egress": ["pypi.org"], "python": ["clocks"], "programs": ["python3"]}
    assert entry(STARTED, command=["/opt/clock"]).needs.programs == ("/opt/clock",)


@pytest.mark.parametrize(
    ("described", "more", "says"),
    [
        (CALLED, {"url": None, "secret": None}, "either url .* or command .* is needed"),
        (CALLED, {"command": ["x"]}, "either url .* or command .* is needed"),
        (CALLED, {"url": "ftp://x/y"}, "url must be an http or https URL"),
        (CALLED, {"url": "https:///mcp"}, "url must be an http or https URL"),
        (CALLED, {"url": "https://h:99999/"}, "Port out of range"),
        (CALLED, {"url": "http://tickets.example.com/mcp"}, "must be https, since a credential goes there"),
        (CALLED, {"url": "https://u:p@h/mcp"}, "no user, query or fragment"),
        (CALLED, {"url": "https://h/mcp?key=s3cret"}, "no user, query or fragment"),
        (CALLED, {"secret": "../attestation"}, "secret must be the name of one"),
        (CALLED, {"secret": ".."}, "secret must be the name of one"),
        (CALLED, {"credential": "caller"}, "either secret .* or credential: caller"),
        (CALLED, {"secret": None, "credential": "gateway"}, "Invalid enum value 'gateway'"),
        (
            CALLED,
            {"secret": None, "credential": "caller", "url": "http://tickets.example.com/mcp"},
            "must be https, since",
        ),
        *(
            (CALLED, {"header": name}, "cannot be one for a credential")
            for name in (
                *("Host", "ACCEPT", "accept-encoding", "Connection", "content-length", "Content-Type", "Cookie"),
                *("transfer-encoding", "", "X Y", "1X"),
            )
        ),
        (CALLED, {"header": "X: y\r\nZ"}, "cannot be one for a credential"),
        (CALLED, {"headers": {"Authorization": "Bearer s3cret"}}, "unknown field `headers`"),
        (CALLED, {"tools": []}, "tools: Expected `array` of length >= 1"),
        (CALLED, {"tools": ["*"]}, "matching regex"),
        (CALLED, {"tools": ["a\n"]}, "matching regex"),
        (CALLED, {"needs-egress": ["pypi.org"]}, "are of servers that are started"),
        (CALLED, {"description": "\x1b[2J"}, "description must be printable"),
        (STARTED, {"secret": "tickets"}, "has no secret, since tools of its run could read it"),
        (STARTED, {"credential": "caller"}, "has no secret, since tools of its run could read it"),
        (STARTED, {"env": {"TOKEN": "s3cret"}}, "unknown field `env`"),
        (STARTED, {"command": ["../x"]}, "command must begin with a program's name"),
        (STARTED, {"command": ["x\0"]}, "matching regex"),
        (STARTED, {"command": ["x" * 16385]}, "length <= 16384"),
        (STARTED, {"command": ["x", ""]}, "length >= 1"),
        (STARTED, {"command": ["x"] * 65}, "length <= 64"),
        (STARTED, {"tools": ["x" * 65]}, "matching regex"),
        (STARTED, {"tools": [f"t{number}" for number in range(65)]}, "length <= 64"),
        (STARTED, {"repositories": ["x" * 129]}, "matching regex"),
        (CALLED, {"url": "https://h/" + "x" * 1024}, "length <= 1024"),
        (CALLED, {"secret": "x" * 65}, "secret must be the name of one"),
        (CALLED, {"header": "X" * 65}, "cannot be one for a credential"),
        (STARTED, {"needs-egress": ["10.0.0.1"]}, "must be a host name"),
        (STARTED, {"repositories": ["org/app\n"]}, "matching regex"),
        (CALLED, {"repositories": ["org/app"]}, "are of servers that are started"),
    ],
)
def test_a_broken_one_says_why(described: dict[str, Any], more: dict[str, Any], says: str) -> None:
    with pytest.raises(Broken, match=says) as broken:
        entry(described, **more)
    assert "s3cret" not in str(broken.value)


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_file_is_a_server_or_says_why_not(content: bytes) -> None:
    with pytest.raises(Broken):
        server_of("x", File("x.yaml", content))


def test_files_of_servers_are_read_named_and_packed(tmp_path: Path) -> None:
    folder = tmp_path / "catalog/mcp"
    folder.mkdir(parents=True)
    (folder / "tickets.json").write_text(json.dumps(CALLED))
    (folder / "clock.yaml").write_text("name: clock\ndescription: Time.\ntools: [now]\ncommand: [date]\n")
    (folder / "clock.json").write_text(json.dumps(STARTED))
    (folder / "other.yaml").write_text("name: another\ndescription: d\ntools: [a]\nurl: https://h/\n")
    (folder / "README.md").write_text("x")
    (folder / "away.json").symlink_to("tickets.json")
    found = read(tmp_path / "catalog")
    assert [(each.kind, each.name) for each in found.entries] == [("server", "clock"), ("server", "tickets")]
    assert sorted(map(str, found.refused)) == [
        "mcp/README.md: is no server: their files end in .yaml or .json",
        "mcp/away.json: is no regular file",
        "mcp/clock.yaml: is there twice, by another suffix",
        "mcp/other.yaml: other.yaml: name is 'another', its file 'other'",
    ]
    pack(found.entries, tmp_path / "packed.tar.gz")
    assert read(tmp_path / "packed.tar.gz").entries == found.entries


CATALOG = Catalog(
    (
        entry(CALLED),
        entry(STARTED),
        entry(STARTED, name="far", **{"needs-egress": ["pypi.org"]}),
        Entry("skill", "filing", "x", Needs(servers=("tickets",)), (), "", "x"),
    )
)
SEARCH, CREATE = "mcp__tickets__search", "mcp__tickets__create"
HOLDS = Boundary(Strength.NAMESPACES, egress_obstacle=None)


def decide(body: dict[str, Any], boundary: Boundary = HOLDS, **clamp: Any) -> Plan:
    given = {"skills": ("filing",), "mcp": ("clock", "far", "gone", "tickets")} | clamp
    settings = Settings(attestation_key=SecretStr("k" * 32))
    return plan(InvokeRequest(prompt="x", **body), Clamp(**given), settings, boundary, catalog=CATALOG)


def denied(*patterns: str) -> Rules:
    return Rules(deny=tuple(map(parse, patterns)))


@pytest.mark.parametrize(
    ("body", "clamp", "tools"),
    [
        ({}, {}, ()),
        ({"mcp": ["tickets"]}, {}, (SEARCH, CREATE)),
        ({"mcp": ["tickets", "clock"]}, {}, ("mcp__clock__now", SEARCH, CREATE)),
        ({"skills": ["filing"]}, {}, (SEARCH, CREATE)),
        ({"mcp": ["tickets"]}, {"rules": denied(CREATE)}, (SEARCH,)),
        ({"mcp": ["tickets"]}, {"tools": ("Read", SEARCH)}, (SEARCH,)),
        ({"mcp": ["tickets"], "tools": ["Read", CREATE]}, {}, (CREATE,)),
        ({"mcp": ["tickets", "clock"], "tools": ["Read", CREATE]}, {}, ("mcp__clock__now", CREATE)),
    ],
)
def test_a_run_has_the_tools_that_its_tier_and_its_request_leave(
    body: dict[str, Any], clamp: dict[str, Any], tools: tuple[str, ...]
) -> None:
    found = decide(body, **clamp)
    assert found.server_tools == tools
    assert not any(tool.startswith("mcp__") for tool in found.tools)


@pytest.mark.parametrize(
    ("body", "clamp", "says"),
    [
        ({"mcp": ["tickets"]}, {"mcp": ()}, "servers not allowed by the tier at the gateway: tickets; allowed: none"),
        ({"mcp": ["gone"]}, {}, "there is no server gone in this invoker's catalog"),
        ({"skills": ["filing"]}, {"mcp": ()}, "skill filing needs the server tickets, which is not allowed"),
        ({"mcp": ["tickets"]}, {"rules": denied("mcp__tickets__*")}, "none of its tools is left"),
        ({"mcp": ["tickets"], "tools": [SEARCH]}, {"tools": (CREATE,)}, "none of its tools is left"),
        ({"mcp": ["tickets"], "tools": ["mcp__tickets__drop"]}, {}, "none of its tools is left"),
        ({"tools": [SEARCH]}, {}, f"tools of MCP servers not allowed: {SEARCH}; allowed: none"),
        ({"mcp": ["clock"], "tools": [SEARCH]}, {}, f"not allowed: {SEARCH}; allowed: mcp__clock__now"),
        ({"mcp": ["far"]}, {}, "server far needs the host pypi.org, which is not open"),
    ],
)
def test_what_is_refused_names_the_reason(body: dict[str, Any], clamp: dict[str, Any], says: str) -> None:
    with pytest.raises(Problem) as refused:
        decide(body, **clamp)
    assert (refused.value.status, refused.value.kind) == (403, "forbidden") and says in refused.value.detail


def test_a_server_is_started_only_where_commands_may_be() -> None:
    assert decide({"mcp": ["tickets"]}, Boundary(Strength.NONE)).servers == ("tickets",)
    with pytest.raises(Problem, match="server clock cannot be started here: runs share a user") as refused:
        decide({"mcp": ["clock"]}, Boundary(Strength.NONE))
    assert (refused.value.status, refused.value.kind) == (403, "forbidden")
    with pytest.raises(Problem, match="opens hosts"):
        decide({"mcp": ["far"]}, Boundary(Strength.NAMESPACES, egress_obstacle="no"), egress=(host("pypi.org"),))
    assert decide({"mcp": ["far"], "tools": []}, egress=(host("pypi.org"),)).egress


@pytest.mark.parametrize(
    ("server", "tokens", "says"),
    [
        ("tickets", None, None),
        ("clock", (), None),
        ("mine", ("mine",), None),
        ("mine", (), r"server mine wants a token of your own \(header X-Claude-MCP-mine\)$"),
        ("mine", ("tickets",), r"header X-Claude-MCP-mine\)$"),
        ("mine", None, r"\(header X-Claude-MCP-mine\), which is kept for no job$"),
    ],
)
def test_a_server_that_wants_its_callers_token_has_it_or_is_refused(
    server: str, tokens: tuple[str, ...] | None, says: str | None
) -> None:
    mine = entry(CALLED, name="mine", secret=None, credential="caller")
    catalog = Catalog((*CATALOG.entries, mine))
    if says is None:
        refuse_without_tokens(["tickets", server], tokens, catalog)
        return
    with pytest.raises(Problem, match=says) as refused:
        refuse_without_tokens(["tickets", server], tokens, catalog)
    assert (refused.value.status, refused.value.kind) == (422, "invalid")


OWN = Catalog((entry(STARTED, name="own", command=["python3", "tools/own.py"], repositories=["org/*"]),))


@pytest.mark.parametrize(
    ("repository", "clamp", "says"),
    [
        ("org/app", {}, ""),
        ("org/app", {"tools": ("Read", "Bash")}, ""),
        (None, {}, "server own is one of org/\\*, and the run works on none$"),
        ("evil/app", {}, "and the run works on evil/app"),
        ("org/app/fork", {}, "and the run works on org/app/fork"),
        ("org/app", {"tools": ("Read",)}, "server own: it is a command, and Bash is not allowed"),
        ("org/app", {"rules": denied("Bash(python3:*)")}, "server own: it runs unasked"),
        ("org/app", {"rules": Rules(ask=(parse("Bash"),))}, "server own: it runs unasked"),
        ("org/app", {"mcp": ()}, "servers not allowed by the tier"),
    ],
)
def test_a_server_of_a_repository_is_started_there_for_who_may_run_commands(
    repository: str | None, clamp: dict[str, Any], says: str
) -> None:
    """What is started is what lies in the tree: the repository's, or what the caller has put there."""
    given = Clamp(**{"mcp": ("own",)} | clamp)
    settings = Settings(attestation_key=SecretStr("k" * 32))
    works_on = None if repository is None else Wanted(repository, None, Source("https://h/{repository}"))
    request = InvokeRequest(prompt="x", mcp=["own"])
    if not says:
        assert plan(request, given, settings, HOLDS, works_on, OWN).server_tools == ("mcp__own__now",)
        return
    with pytest.raises(Problem, match=says) as refused:
        plan(request, given, settings, HOLDS, works_on, OWN)
    assert refused.value.status == 403


def test_what_is_asked_about_is_not_allowed_from_the_start() -> None:
    found = decide({"mcp": ["tickets"], "ask": [CREATE]})
    assert found.asked == (CREATE,)
    shape = Shape(("Read",), 1, 1.0, given=Given(server_tools=found.server_tools), asked=found.asked)
    assert f"--allowedTools=Read,{SEARCH}" in command(Path("/cli"), shape)


@pytest.mark.parametrize("name", ["mcp__tickets", "mcp__tickets__", "mcp__*__x", "mcp__a b__x", "mcp__t__x(y)"])
def test_a_tool_of_a_server_is_a_whole_name(name: str) -> None:
    assert InvokeRequest(prompt="x", tools=[SEARCH]).tools == [SEARCH]
    if name != "mcp__tickets" and name != "mcp__tickets__":  # as names of the CLI's own they are none that anybody has
        with pytest.raises(ValidationError):
            InvokeRequest(prompt="x", tools=[name])
    else:
        with pytest.raises(Problem, match="not allowed"):
            decide({"tools": [name]})


# The relay


class Stub:
    """A server that says what it was asked, as often as it may."""

    def __init__(self) -> None:
        self.called: list[tuple[str, Message]] = []
        self.closed = False
        self.waits = asyncio.Event()
        self.waits.set()

    async def tools(self) -> list[Message]:
        return [{"name": name, "inputSchema": {"type": "object"}} for name in ("search", "create", "drop")]

    async def call(self, tool: str, arguments: Message) -> Message:
        self.called.append((tool, arguments))
        await self.waits.wait()
        if arguments.get("fails"):
            raise Failed("it cannot be reached: ConnectError")
        if arguments.get("breaks"):
            raise RuntimeError("s3cret")
        return {"content": [{"type": "text", "text": "done"}]}

    async def close(self) -> None:
        self.closed = True


async def ask(stand: Relay, method: str | None, server: str = "tickets", **message: Any) -> Message:
    answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    said = {"jsonrpc": "2.0", "id": 7, "method": method, **message}
    stand.take(ServerCall("r", server, said), lambda request_id, told: answer.set_result(told))
    return await answer


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"params": {"name": tool, "arguments": arguments}}


async def test_the_relay_lets_nothing_pass_but_tools_of_the_run() -> None:
    stub = Stub()
    stand = Relay({"tickets": stub}, (SEARCH,), lambda tool, given: given.get("text") != "unasked")
    await stand.open()
    assert (await ask(stand, "initialize"))["result"] == {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "tickets", "version": "1"},
    }
    assert [tool["name"] for tool in (await ask(stand, "tools/list"))["result"]["tools"]] == ["search"]
    assert (await ask(stand, "tools/call", **call("search", text="a")))["result"]["content"][0]["text"] == "done"
    assert stub.called == [("search", {"text": "a"})]
    refused: list[tuple[str | None, dict[str, Any]]] = [
        ("tools/call", call("create")),
        ("tools/call", call("drop")),
        ("tools/call", {"params": {"name": ["search"], "arguments": {}}}),
        ("tools/call", {"params": {"name": "search", "arguments": "x"}}),
        ("tools/call", {"params": ["search"]}),
        ("tools/call", {"server": "another", **call("search")}),
        ("tools/call", call("search", text="unasked")),
        ("tools/call", call("search", text="x" * relay.MAX_ARGUMENTS)),
        ("resources/read", {"params": {"uri": "file:///etc/passwd"}}),
        ("sampling/createMessage", {}),
        (None, {}),
    ]
    for method, more in refused:
        answer = await ask(stand, method, **more)
        assert "error" in answer and answer["id"] == 7, (method, more)
    assert len(stub.called) == 1
    assert stand.calls == {("tickets", "answered"): 1, ("tickets", "refused"): 6}
    await stand.close()
    assert stub.closed


async def test_a_run_does_not_begin_with_a_server_that_does_not_say_what_it_offers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Away(Stub):
        async def tools(self) -> list[Message]:
            raise Failed("it cannot be reached")

    class Silent(Stub):
        async def tools(self) -> list[Message]:
            await asyncio.Event().wait()
            return []

    monkeypatch.setattr(relay, "OPEN_S", 0.01)
    servers: dict[str, relay.Server] = {"one": Stub(), "away": Away(), "silent": Silent()}
    with pytest.raises(Failed, match=r"^away, silent$"):
        await Relay(servers, (), lambda tool, given: True).open()
    assert "MCP server away: it cannot be reached" in caplog.text
    assert "MCP server silent: it does not answer within 0.01 s" in caplog.text
    servers = {"one": Stub()}
    stand = Relay(servers, (), lambda tool, given: True)
    await stand.open()
    assert stand.names == ("one",)


async def test_a_call_has_so_large_an_input_and_not_a_byte_more() -> None:
    stub = Stub()
    stand = Relay({"tickets": stub}, (SEARCH,), lambda tool, given: True)
    most = relay.MAX_ARGUMENTS - len('{"text":""}')
    assert "result" in await ask(stand, "tools/call", **call("search", text="x" * most))
    answer = await ask(stand, "tools/call", **call("search", text="x" * (most + 1)))
    assert answer["error"]["code"] == -32602 and len(stub.called) == 1
    assert stand.calls == {("tickets", "answered"): 1, ("tickets", "refused"): 1}


async def test_the_cli_is_answered_in_its_protocol() -> None:
    stand = Relay({"tickets": Stub()}, (SEARCH,), lambda tool, given: True)
    assert await ask(stand, "ping") == {"jsonrpc": "2.0", "id": 7, "result": {}}
    for method, more, code in (
        ("ping", {"server": "another"}, -32601),
        ("tools/drop", {}, -32601),
        ("tools/call", call("create"), -32602),
        ("tools/call", call("search", fails=True), -32000),
    ):
        answer = await ask(stand, method, **more)
        assert answer == {"jsonrpc": "2.0", "id": 7, "error": {"code": code, "message": answer["error"]["message"]}}
    told: list[tuple[str, Message]] = []
    stand.take(ServerCall("r", "tickets", {"method": "notifications/initialized"}), lambda *said: told.append(said))

    async def is_told() -> bool:
        return bool(told)

    await until(is_told, "an answer")
    assert told == [("r", {"jsonrpc": "2.0", "result": {}})]


async def test_a_call_that_the_cli_wants_no_more_is_ended_and_no_other() -> None:
    stub = Stub()
    stub.waits.clear()
    stand = Relay({"tickets": stub}, (SEARCH,), lambda tool, given: True)
    told: list[str] = []
    for name in ("a", "b"):
        message = {"id": 1, "method": "tools/call", **call("search", name=name)}
        stand.take(ServerCall(name, "tickets", message), lambda request_id, said: told.append(request_id))

    async def are_there() -> bool:
        return len(stub.called) == 2

    await until(are_there, "both calls")
    stand.withdraw("nobody's")
    stand.withdraw("a")

    async def is_ended() -> bool:
        return stand.calls == {("tickets", "failed"): 1}

    await until(is_ended, "its end")
    stub.waits.set()

    async def is_answered() -> bool:
        return bool(told)

    await until(is_answered, "the answer of the other")
    assert told == ["b"] and stand.calls == {("tickets", "failed"): 1, ("tickets", "answered"): 1}


async def test_what_fails_is_said_without_what_it_holds(caplog: pytest.LogCaptureFixture) -> None:
    stand = Relay({"tickets": Stub()}, (SEARCH,), lambda tool, given: True)
    answer = await ask(stand, "tools/call", **call("search", fails=True))
    assert answer["error"]["message"] == "it cannot be reached: ConnectError"
    answer = await ask(stand, "tools/call", **call("search", breaks=True))
    assert answer["error"]["message"] == "it cannot be asked now"
    assert stand.calls == {("tickets", "failed"): 2}


async def test_a_run_has_so_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_CALLS", 3)
    stub = Stub()
    stand = Relay({"tickets": stub}, (SEARCH,), lambda tool, given: True)
    answers = [await ask(stand, "tools/call", **call("search")) for _ in range(5)]
    assert ["error" in answer for answer in answers] == [False] * 3 + [True] * 2 and len(stub.called) == 3


async def test_so_many_at_once_and_none_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_AT_ONCE", 2)
    stub = Stub()
    stub.waits.clear()
    stand = Relay({"tickets": stub}, (SEARCH,), lambda tool, given: True)
    told: list[tuple[str, Message]] = []
    message = {"id": 1, "method": "tools/call", **call("search")}
    for number in range(3):
        stand.take(
            ServerCall(f"r{number}", "tickets", message), lambda request_id, said: told.append((request_id, said))
        )
    assert [request_id for request_id, _ in told] == ["r2"]
    await asyncio.sleep(0)
    stand.withdraw("r0")
    await stand.close()
    assert len(told) == 1 and stand.calls == {("tickets", "failed"): 2}
