"""The server `memory`, which is ours and in this process: what runs remember for the runs after them. Whose it is the
invoker says, and no argument of a tool: a run has no word for the memory of another.

A memory is a hash in Redis, with an entry for each thing that is remembered. Its size, and the age of its entries, are
bounded by the script that adds to it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from redis.exceptions import RedisError

from claude_contract.keys import joined
from claude_invoker import redis_clients
from claude_invoker.caller import Caller
from claude_invoker.catalog.entry import Entry, Needs, digest
from claude_invoker.catalog.entry import Server as Described
from claude_invoker.mcp.relay import Failed, Message

MAX_ENTRIES, MAX_BYTES = 500, 1 << 20
"""Of one memory; beyond them the oldest entries go."""
MAX_TEXT, MAX_TAGS, MAX_FOUND = 4096, 16, 50
_PREFIX = "claude:{runs}:memory:"
_WITHIN_S = 5.0
_WORD = re.compile(r"\w+")
# Names of entries begin with their time, so that their order is that of age. What is too old, or too much, goes.
_REMEMBER = """
local time = redis.call('TIME')
local oldest = string.format('%016.0f', (time[1] - ARGV[5]) * 1000000)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local held = redis.call('HGETALL', KEYS[1])
local names, size, bytes = {}, {}, 0
for i = 1, #held, 2 do
  names[#names + 1] = held[i]
  size[held[i]] = #held[i] + #held[i + 1]
  bytes = bytes + size[held[i]]
end
table.sort(names)
local gone = 0
for i = 1, #names do
  if names[i] >= oldest and #names - gone <= tonumber(ARGV[3]) and bytes <= tonumber(ARGV[4]) then break end
  redis.call('HDEL', KEYS[1], names[i])
  bytes = bytes - size[names[i]]
  gone = gone + 1
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
return {#names - gone, gone}
"""


class Remembered(Struct, frozen=True):
    """`at`: Unix seconds."""

    id: str
    text: str
    tags: tuple[str, ...] = ()
    at: int = 0


_Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
_Tag = Annotated[str, Meta(min_length=1, max_length=64)]


class _Remember(Struct, forbid_unknown_fields=True):
    text: _Text
    tags: Annotated[tuple[_Tag, ...], Meta(max_length=MAX_TAGS)] = ()


class _Recall(Struct, forbid_unknown_fields=True):
    query: Annotated[str, Meta(max_length=MAX_TEXT)] = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_FOUND)] = 10


class _Forget(Struct, forbid_unknown_fields=True):
    id: Annotated[str, Meta(max_length=64)] = ""
    all: bool = False


class _Export(Struct, forbid_unknown_fields=True):
    pass


_TOOLS: dict[str, tuple[type[Struct], str]] = {
    "remember": (_Remember, "Keeps one fact for later runs. Say it so that it can be understood by itself."),
    "recall": (_Recall, "Finds what earlier runs have kept, by words; the best first. Without a query the newest."),
    "forget": (_Forget, "Deletes one of them by its id, or all of them."),
    "export": (_Export, "Returns all of them as JSON, the oldest first."),
}
ENTRY = Entry(
    "server",
    "memory",
    "What runs remember for the runs after them, of the same caller or team.",
    Needs(),
    (),
    "",
    digest("server", "memory", ()),
    Described(tuple(_TOOLS)),
)


def owner_of(caller: Caller, claim: str | None) -> str:
    """Whose memory a run has: of all callers of one issuer with the same value of a claim that the gateway forwards,
    else its caller's own. A team of another issuer, or of another tenant's, may be called the same."""
    value = caller.claims.get(claim) if claim is not None else None
    if isinstance(value, str) and value:
        return joined(":", "claim", caller.issuer, claim or "", value)
    return joined(":", "subject", caller.issuer, caller.subject)


class Memories:
    """All memories, in one Redis. `ttl_s`: how long an entry is kept."""

    def __init__(self, url: str, ttl_s: int, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._redis = redis_clients.client(url, socket_timeout=_WITHIN_S, decode_responses=True)
        self._ttl_s = ttl_s

    async def close(self) -> None:
        await self._redis.aclose()

    async def add(self, owner: str, text: str, tags: tuple[str, ...]) -> tuple[Remembered, int]:
        """And how many older ones went for it. Raises RedisError, OSError."""
        now = self._now()
        entry = Remembered(f"{int(now * 1_000_000):016d}-{secrets.token_hex(4)}", text, tags, int(now))
        given = (entry.id, msgspec.json.encode(entry).decode(), MAX_ENTRIES, MAX_BYTES, self._ttl_s)
        _, gone = await self._redis.eval(_REMEMBER, 1, _key(owner), *given)
        return entry, gone

    async def all(self, owner: str) -> list[Remembered]:
        """The oldest first. Raises RedisError, OSError."""
        held = await self._redis.hgetall(_key(owner))
        found = [msgspec.json.decode(text, type=Remembered) for _, text in sorted(held.items())]
        return [entry for entry in found if entry.at > self._now() - self._ttl_s]

    async def forget(self, owner: str, name: str | None) -> int:
        """How many went; None: all. Raises RedisError, OSError."""
        if name is not None:
            return int(await self._redis.hdel(_key(owner), name))
        count = int(await self._redis.hlen(_key(owner)))
        await self._redis.delete(_key(owner))
        return count


class MemoryServer:
    """The server as one run has it, with the memory of one owner."""

    def __init__(self, memories: Memories, owner: str) -> None:
        self._memories = memories
        self._owner = owner

    async def tools(self) -> list[Message]:
        return [{"name": name, "description": text, "inputSchema": _schema(of)} for name, (of, text) in _TOOLS.items()]

    async def call(self, tool: str, arguments: Message) -> Message:
        try:
            wanted = msgspec.convert(arguments, _TOOLS[tool][0])
        except (msgspec.ValidationError, KeyError) as error:
            return _said(f"{tool}: {error}", is_error=True)
        try:
            return _said(await self._done(wanted))
        except (RedisError, OSError) as error:
            raise Failed(f"what is remembered cannot be had now: {type(error).__name__}") from error

    async def close(self) -> None:
        """Nothing is held for a run."""

    async def _done(self, wanted: Struct) -> Any:
        """Raises RedisError, OSError."""
        match wanted:
            case _Remember(text, tags):
                entry, gone = await self._memories.add(self._owner, text, tags)
                return {"id": entry.id} | ({"forgotten_for_it": gone} if gone else {})
            case _Recall(query, limit):
                return ranked(await self._memories.all(self._owner), query, limit)
            case _Forget(name, everything) if name or everything:
                return {"forgotten": await self._memories.forget(self._owner, None if everything else name)}
            case _Forget():
                return {"forgotten": 0, "why": "say which one (id), or all"}
        return await self._memories.all(self._owner)


def ranked(entries: Sequence[Remembered], query: str, limit: int) -> list[Remembered]:
    """Those that have words of the query, by how many of them, then the newest first; without a query the newest."""
    words = set(_words(query))
    if not words:
        return list(reversed(entries))[:limit]
    scored = [(len(words.intersection(_words(entry.text, *entry.tags))), entry) for entry in entries]
    found = sorted((each for each in scored if each[0]), key=lambda each: (each[0], each[1].id), reverse=True)
    return [entry for _, entry in found[:limit]]


def _words(*texts: str) -> Iterable[str]:
    return (word.casefold() for text in texts for word in _WORD.findall(text))


def _key(owner: str) -> str:
    """As long whoever it is, and with nobody's name in it."""
    return _PREFIX + hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()


def _schema(of: type[Struct]) -> Message:
    _, components = msgspec.json.schema_components([of])
    (found,) = components.values()
    return {name: value for name, value in found.items() if name != "title"}


def _said(value: Any, *, is_error: bool = False) -> Message:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return {"content": [{"type": "text", "text": text}], "isError": is_error}
