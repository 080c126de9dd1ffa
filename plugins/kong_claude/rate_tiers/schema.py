"""Configuration of claude-rate-tiers, in the dialect of Kong's plugin schemas."""

from __future__ import annotations

from typing import Any

from claude_contract.claims import NAME_ROOM, NAMESPACE_ROOM
from kong_claude.rate_tiers.headers import STYLES
from kong_claude.rate_tiers.subjects import KINDS
from kong_claude.schema import ENFORCING_FIELDS, Field


def _field(name: str, kind: str, what: str, **rules: Any) -> Field:
    return {name: {"type": kind, "required": False, **rules, "description": what}}


def _choice(name: str, choices: tuple[str, ...], default: str, what: str) -> Field:
    return _field(name, "string", what, one_of=list(choices), default=default)


def _strings(name: str, what: str) -> Field:
    return _field(name, "array", what, elements={"type": "string"})


def _limit(name: str, what: str) -> Field:
    return _field(name, "integer", what, gt=0)


_LIMITS: list[Field] = [
    *[_limit(name, f"Requests in any {name}.") for name in ("second", "minute", "hour", "day")],
    _limit("month", "Requests in any 30 days."),
    _field(
        "burst",
        "integer",
        "Paces the shortest window like nginx's limit_req with nodelay, with this many requests ahead of its rate.",
        between=[0, 1_000_000],
    ),
    _limit("concurrent", "Executions that may run at the same time."),
]

_TIER: list[Field] = [
    {
        "name": {
            "type": "string",
            "required": True,
            "len_min": 1,
            "len_max": NAME_ROOM,
            "description": "The name that a claim gives.",
        }
    },
    *_LIMITS,
    _field("usd_per_day", "number", "US dollars per UTC day, spent and reserved.", gt=0),
    _field("usd_per_month", "number", "US dollars per calendar month (UTC), spent and reserved.", gt=0),
    _strings("models", "The models that may be named; binds the invoker."),
    _limit("max_turns", "Most turns of one run; binds the invoker."),
    _field("max_usd_per_run", "number", "Most US dollars of one run, reserved when it starts.", gt=0),
    _strings("tools", "The tools that a run may use; binds the invoker."),
]

_REDIS: list[Field] = [
    _field(
        "redis_url",
        "string",
        "redis://, rediss://, unix:///path, redis+sentinel://host:port,host:port/service/db or "
        "redis+cluster://host:port,host:port (rediss+… with TLS).",
        referenceable=True,
        encrypted=True,
    ),
    _field("redis_host", "string", "Host of Redis, where no redis_url is given."),
    _field("redis_port", "integer", "Port of Redis.", default=6379, between=[0, 65535]),
    _field("redis_database", "integer", "Number of the database.", default=0, between=[0, 65535]),
    _field("redis_username", "string", "User name (Redis ACL).", referenceable=True),
    _field("redis_password", "string", "Password of Redis.", referenceable=True, encrypted=True),
    _field("redis_ssl", "boolean", "Speak TLS to redis_host.", default=False),
    _field("redis_ssl_verify", "boolean", "Verify the certificate of Redis.", default=True),
    _field("redis_ca_file", "string", "A file with the certificate authorities to trust."),
    _field("timeout_ms", "integer", "Milliseconds to wait for Redis.", default=500, between=[1, 60_000]),
    _choice(
        "on_error",
        ("deny", "allow", "local"),
        "deny",
        "Where Redis does not answer: refuse with 503, let pass uncounted, or count in this process.",
    ),
]

FIELDS: list[Field] = [
    _field(
        "tiers",
        "array",
        "Named sets of limits. A request's tier comes from its identity.",
        elements={"type": "record", "fields": _TIER},
    ),
    _field("default_tier", "string", "The tier of callers without a known one."),
    _field("tier_header", "string", "Request header that names the tier: only where clients cannot set it.", len_min=1),
    _field(
        "consumer_tier",
        "string",
        "Take the tier from the Kong consumer's tags, or from its acl groups (needs acl with groups header).",
        one_of=["tag", "group"],
    ),
    *_LIMITS,
    _choice("limit_by", KINDS, "subject", "What is counted."),
    _field("header_name", "string", "The header to count by, for limit_by header.", len_min=1),
    _field("path", "string", "The path to count, for limit_by path.", starts_with="/"),
    _choice(
        "on_missing_identity",
        ("deny", "ip"),
        "deny",
        "Without the subject that limit_by names: refuse, or count the client's address.",
    ),
    _choice(
        "on_busy",
        ("reject", "queue"),
        "reject",
        "Where all of a tier's concurrent runs are taken: refuse with 429, or go on as an asynchronous job.",
    ),
    _choice("mode", ("enforce", "shadow"), "enforce", "Shadow decides, counts and logs, but never refuses."),
    _choice("policy", ("local", "redis"), "local", "Where to count: in this process (one node only) or in Redis."),
    *_REDIS,
    _field(
        "namespace",
        "string",
        "First part of the keys in Redis. Instances that share it share their counts.",
        default="claude",
        match="^[%w_.-]+$",
        len_max=NAMESPACE_ROOM,
    ),
    _field(
        "lease_ttl", "integer", "Seconds until a run's lease lapses without a heartbeat.", default=60, between=[5, 3600]
    ),
    _choice("header_style", STYLES, "both", "Rate limit headers: Kong's names, the IETF draft's, or both."),
    _field("hide_client_headers", "boolean", "Leave out all rate limit headers.", default=False),
    _field("error_code", "integer", "Status of a refusal.", default=429, between=[400, 599]),
    _field("error_message", "string", "Message of a refusal.", default="API rate limit exceeded"),
    _field(
        "report",
        "boolean",
        "Answer with the caller's limits and use instead of counting (a route of its own).",
        default=False,
    ),
]

SCHEMA: list[Field] = [*FIELDS, *ENFORCING_FIELDS]
