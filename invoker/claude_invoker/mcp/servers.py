"""The servers of the catalog that runs are given, with what each of them wants to see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from claude_contract import secret_file
from claude_invoker.caller import Caller
from claude_invoker.catalog.catalog import Catalog
from claude_invoker.catalog.entry import Entry
from claude_invoker.catalog.entry import Server as Described
from claude_invoker.catalog.server import LEAST_SECRET
from claude_invoker.cli.process import Servers as ForProcess
from claude_invoker.isolation.strength import Strength
from claude_invoker.mcp.http import HttpServer
from claude_invoker.mcp.memory import Memories, MemoryServer, owner_of
from claude_invoker.mcp.relay import Failed, Relay, Server
from claude_invoker.plan import Plan

NO_TOKENS: Mapping[str, str] = {}


class Servers:
    """`secrets`: the operator's directory with a file for each. `memories`: what the server of ours works on; of whom
    is a matter of `memory_claim`, one that the gateway forwards (None: each caller's own)."""

    def __init__(self, secrets: Path | None, memories: Memories | None, memory_claim: str | None) -> None:
        self._secrets = secrets
        self._memories = memories
        self._memory_claim = memory_claim

    async def close(self) -> None:
        if self._memories is not None:
            await self._memories.close()

    def obstacles(self, catalog: Catalog, strength: Strength) -> dict[str, str]:
        """Why servers cannot be used here, by name."""
        found = {}
        for name, entry in catalog.of("server").items():
            described = _of(entry)
            try:
                if described.secret is not None:
                    self._read(described.secret)
            except Failed as error:
                found[name] = str(error)
            if described.is_ours and self._memories is None:
                found[name] = "it needs a Redis (INVOKER_RUNS_REDIS_URL or INVOKER_REDIS_URL)"
            if (described.secret is not None or described.of_caller) and strength < Strength.USER:
                found[name] = "its secret could be read by runs, which share the invoker's user here"
        return found

    def given(self, plan: Plan, catalog: Catalog) -> ForProcess:
        """What the process of a run is told of them."""
        described = {name: _of(catalog.of("server")[name]) for name in plan.servers}
        ours = tuple(name for name, each in described.items() if not each.command)
        return ForProcess(ours, {name: each.command for name, each in described.items() if each.command})

    def relay(
        self,
        plan: Plan,
        catalog: Catalog,
        caller: Caller,
        tokens: Mapping[str, str],
        is_let: Callable[[str, dict[str, object]], bool],
    ) -> Relay:
        """For one run of that plan. `tokens`: what came from its caller, by the server that each is for; a server gets
        its own, and only where its file says so."""
        entries = [catalog.of("server")[name] for name in plan.servers]
        made = {
            entry.name: self._made(_of(entry), caller, tokens.get(entry.name))
            for entry in entries
            if not _of(entry).command
        }
        return Relay(made, plan.server_tools, is_let)

    def _made(self, described: Described, caller: Caller, token: str | None) -> Server:
        if described.is_ours:
            assert self._memories is not None
            return MemoryServer(self._memories, owner_of(caller, self._memory_claim))
        assert described.url is not None
        credential = functools.partial(_given, described.header, token) if described.of_caller else None
        if described.secret is not None:
            credential = functools.partial(self._credential, described.secret, described.header)
        return HttpServer(described.url, described.header, credential)

    def _credential(self, name: str, header: str) -> str:
        """Read anew for each request, so that it can be changed. Raises Failed."""
        return _in(header, self._read(name))

    def _read(self, name: str) -> str:
        """Raises Failed."""
        if self._secrets is None:
            raise Failed(f"its secret {name} is not there: INVOKER_MCP_SECRETS is not set")
        try:
            secret = secret_file.read(self._secrets / name)
        except secret_file.SecretFileError as error:
            raise Failed(f"its secret cannot be used: {error}") from error
        if not secret.isascii() or not secret.isprintable() or len(secret) < LEAST_SECRET:
            raise Failed(f"its secret {name} must be {LEAST_SECRET} printable characters or more, on one line")
        return secret


def _given(header: str, token: str | None) -> str:
    """Raises Failed."""
    if token is None:
        raise Failed("it wants a token of its caller's, which has not come with this run")
    return _in(header, token)


def _of(entry: Entry) -> Described:
    assert entry.server is not None
    return entry.server


def _in(header: str, secret: str) -> str:
    return f"Bearer {secret}" if header.lower() == "authorization" else secret
