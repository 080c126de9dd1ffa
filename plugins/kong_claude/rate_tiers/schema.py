"""Configuration of claude-rate-tiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from claude_contract.claims import NAME_ROOM, NAMESPACE_ROOM, POOL_NAME_ROOM
from claude_contract.features import FEATURES
from claude_contract.ledger import NAMESPACE
from claude_contract.ledger.limits import MAX_BUDGETS, MAX_PERCENT
from claude_contract.ledger.periods import MAX_ZONE, PERS
from kong_claude.rate_tiers.headers import STYLES
from kong_claude.schema import (
    Field,
    boolean,
    choice,
    fields,
    integer,
    number,
    optional_boolean,
    record,
    records,
    string,
    strings,
)
from kong_claude.stage import ENFORCING_FIELDS

ERROR_MESSAGE = "API rate limit exceeded"  # Kong's
KINDS = ("subject", "consumer", "credential", "ip", "header", "path", "service", "route")


def _limit(what: str) -> Any:
    return integer(what, gt=0)


def _money(what: str) -> Any:
    return number(what, gt=0)


# A schema's fields come in the order of the bases from right to left.
@dataclass(frozen=True)
class Limits:
    """The limits of a tier, or at the top level (as Kong's rate-limiting has them)."""

    second: int | None = _limit("Requests in any second.")
    minute: int | None = _limit("Requests in any minute.")
    hour: int | None = _limit("Requests in any hour.")
    day: int | None = _limit("Requests in any day.")
    month: int | None = _limit("Requests in any 30 days.")
    year: int | None = _limit("Requests in any 365 days.")
    burst: int | None = integer(
        "Paces the shortest window like nginx's limit_req with nodelay, with this many requests ahead of its rate.",
        between=[0, 1_000_000],
    )
    concurrent: int | None = _limit("Executions that may run at the same time.")


@dataclass(frozen=True)
class BudgetConfig:
    """One of `budgets`."""

    usd: float | None = number("US dollars, spent and reserved.", required=True, gt=0)
    per: str | None = string("The length of its period.", required=True, one_of=list(PERS))
    zone: str | None = string("IANA time zone of the calendar; UTC without one.", len_min=1, len_max=MAX_ZONE)
    rolling: bool = boolean("Any such time (a month: 30 days), not a period of the calendar.", default=False)


@dataclass(frozen=True)
class Money:
    """The budgets of a tier or a pool."""

    usd_per_day: float | None = _money("US dollars per UTC day, spent and reserved.")
    usd_per_month: float | None = _money("US dollars per calendar month (UTC), spent and reserved.")
    budgets: tuple[BudgetConfig, ...] = records(
        "Budgets of other periods and time zones.", BudgetConfig, len_max=MAX_BUDGETS
    )


@dataclass(frozen=True)
class _Sharers:
    name: str | None = string(
        "The name that tiers, refusals and reports give it.",
        required=True,
        match="^[A-Za-z0-9_-]+$",
        len_max=POOL_NAME_ROOM,
    )
    by: str = choice(
        "Who shares it: callers with the same claim, or all callers.", ("claim", "deployment"), default="claim"
    )
    claim: str | None = string("The claim, one of claude-jwt-claims' forward_claims.", len_min=1, len_max=128)


@dataclass(frozen=True)
class PoolConfig(Money, Limits, _Sharers):
    """One of `pools`."""


@dataclass(frozen=True)
class _Named:
    name: str | None = string("The name that a claim gives.", required=True, len_min=1, len_max=NAME_ROOM)


@dataclass(frozen=True)
class MessagesConfig(Limits):
    """The limits of requests to models themselves."""


ENTRY_NAME = "^[a-z0-9][a-z0-9-]*$"
ON_BUDGET = ("refuse", "queue", "model")


@dataclass(frozen=True)
class CheaperConfig:
    """What runs where a budget is used up, with `on_budget: model`."""

    model: str | None = string("The model of such runs, whichever is asked for.", required=True, len_min=1)
    up_to_percent: int | None = integer(
        "How much of each of the tier's own budgets such runs may use, together with all others.",
        required=True,
        between=[101, MAX_PERCENT],
    )
    max_usd_per_run: float | None = _money("Most US dollars of such a run; the tier's max_usd_per_run without it.")


@dataclass(frozen=True)
class TierConfig(Money, Limits, _Named):
    """One of `tiers`."""

    # Absent, all; (), none.
    pools: tuple[str, ...] | None = strings(
        "The pools whose limits apply, too. All pools without it, none where it is empty.", absent=None
    )
    models: tuple[str, ...] = strings("The models that may be named; binds the invoker.")
    max_turns: int | None = _limit("Most turns of one run; binds the invoker.")
    max_usd_per_run: float | None = _money("Most US dollars of one run, reserved when it starts.")
    # Absent, any; (), none.
    tools: tuple[str, ...] | None = strings("The tools that a run may use; binds the invoker.", absent=None)
    egress: tuple[str, ...] = strings(
        "Hosts that a run may reach by https, as host, *.host or host:port; none without it. Binds the invoker."
    )
    skills: tuple[str, ...] = strings(
        "Skills of the invoker's catalog that a run may ask for; none without it. Binds the invoker.",
        elements={"match": ENTRY_NAME, "len_max": 64},
    )
    default_skills: tuple[str, ...] = strings(
        "Those of skills that a run has which asks for none in particular.",
        elements={"match": ENTRY_NAME, "len_max": 64},
    )
    agents: tuple[str, ...] = strings(
        "Agents of the invoker's catalog that a run may ask for; none without it. Binds the invoker.",
        elements={"match": ENTRY_NAME, "len_max": 64},
    )
    mcp: tuple[str, ...] = strings(
        "MCP servers of the invoker's catalog that a run may ask for; none without it. Binds the invoker.",
        elements={"match": ENTRY_NAME, "len_max": 64},
    )
    # Absent, what each receiver allows by itself; (), none.
    api_features: tuple[str, ...] | None = strings(
        "What requests to the API may have that has a price of its own or runs something at Anthropic: "
        f"{', '.join(FEATURES)}. Binds the invoker.",
        absent=None,
    )
    ask: tuple[str, ...] = strings(
        "Calls of tools that somebody has to allow first, such as Bash or Edit(/src/**). Binds the invoker."
    )
    deny: tuple[str, ...] = strings("Calls of tools that are denied. Binds the invoker.")
    allow: tuple[str, ...] = strings("What passes unasked of that which is asked about, such as Bash(git log:*).")
    four_eyes: bool = boolean("Nobody allows calls of a run of their own.", default=False)
    messages: MessagesConfig | None = record(
        "Limits of requests to models themselves, counted apart from runs; without it there are none.", MessagesConfig
    )
    on_budget: str = choice(
        "Where a budget is used up: refuse, let jobs wait until it is not, or run a cheaper model.",
        ON_BUDGET,
        default="refuse",
    )
    cheaper: CheaperConfig | None = record("The cheaper model, with on_budget model.", CheaperConfig)


PORT = [0, 65535]


@dataclass(frozen=True)
class SentinelNode:
    """One of `redis.sentinel_nodes`."""

    host: str = string("Host of a Sentinel.", default="127.0.0.1")
    port: int = integer("Port of a Sentinel.", default=6379, between=PORT)


@dataclass(frozen=True)
class KongsRedis:
    """`redis`: the place as Kong's plugins have it since 3.6."""

    host: str | None = string("Host of Redis.")
    port: int = integer("Port of Redis.", default=6379, between=PORT)
    timeout: int | None = integer("Milliseconds to wait for Redis; timeout_ms without it.", between=[1, 60_000])
    username: str | None = string("User name (Redis ACL).", referenceable=True)
    password: str | None = string("Password of Redis.", referenceable=True, encrypted=True)
    database: int = integer("Number of the database.", default=0, between=PORT)
    ssl: bool = boolean("Speak TLS.", default=False)
    ssl_verify: bool = boolean("Verify the certificate of Redis.", default=True)
    server_name: str | None = string("The name that the certificate of Redis has, where it is not the host's.")
    sentinel_master: str | None = string("The Sentinels' name of the master.", len_min=1)
    sentinel_role: str | None = string("Whom to ask: limits are written, so only the master.", one_of=["master"])
    sentinel_nodes: tuple[SentinelNode, ...] = records("The Sentinels.", SentinelNode, len_min=1)
    sentinel_username: str | None = string("User name (ACL) of the Sentinels.", referenceable=True)
    sentinel_password: str | None = string("Password of the Sentinels.", referenceable=True, encrypted=True)


@dataclass(frozen=True)
class RedisConfig:
    """Where Redis is, and what happens where it is not."""

    redis_url: str | None = string(
        "redis://, rediss://, unix:///path, redis+sentinel://host:port,host:port/service/db or "
        "redis+cluster://host:port,host:port (rediss+… with TLS).",
        referenceable=True,
        encrypted=True,
    )
    redis_host: str | None = string("Host of Redis, where no redis_url is given.")
    redis_port: int = integer("Port of Redis.", default=6379, between=PORT)
    redis_database: int = integer("Number of the database.", default=0, between=PORT)
    redis_username: str | None = string("User name (Redis ACL).", referenceable=True)
    redis_password: str | None = string("Password of Redis.", referenceable=True, encrypted=True)
    redis_sentinel_username: str | None = string(
        "User name (ACL) of the Sentinels, which do not know that of Redis.", referenceable=True
    )
    redis_sentinel_password: str | None = string("Password of the Sentinels.", referenceable=True, encrypted=True)
    redis_ssl: bool = boolean("Speak TLS to redis_host.", default=False)
    redis_ssl_verify: bool = boolean("Verify the certificate of Redis.", default=True)
    redis_ca_file: str | None = string("A file with the certificate authorities to trust.")
    redis_server_name: str | None = string("The name that the certificate of Redis has, where it is not the host's.")
    redis_timeout: int | None = integer("Kong's name of timeout_ms.", between=[1, 60_000])
    redis: KongsRedis | None = record("The same as Kong's plugins have it since 3.6, instead of redis_….", KongsRedis)
    timeout_ms: int = integer("Milliseconds to wait for Redis.", default=500, between=[1, 60_000])
    on_error: str = choice(
        "Where Redis does not answer: refuse with 503, let pass uncounted, or count in this process.",
        ("deny", "allow", "local"),
        default="deny",
    )
    # Without a default, so that it is known whether it was said.
    fault_tolerant: bool | None = optional_boolean("Kong's on_error: true is allow, false is deny.")
    sync_rate: float | None = number("Kong's; here each request is counted in Redis at once, whatever it says.")


@dataclass(frozen=True)
class _Tiers:
    tiers: tuple[TierConfig, ...] = records(
        "Named sets of limits. A request's tier comes from its identity.", TierConfig
    )
    pools: tuple[PoolConfig, ...] = records("Limits that callers share, besides those of their tiers.", PoolConfig)
    organisation_claim: str | None = string(
        "The claim that names the caller's organisation: each has pools of its own, on a node of its own of a Redis "
        "Cluster.",
        len_min=1,
        len_max=128,
    )
    default_tier: str | None = string("The tier of callers without a known one.")
    tier_header: str | None = string("Request header that names the tier: only where clients cannot set it.", len_min=1)
    consumer_tier: str | None = choice(
        "Take the tier from the Kong consumer's tags, or from its acl groups (needs acl with groups header).",
        ("tag", "group"),
    )


@dataclass(frozen=True)
class _Counting:
    limit_by: str = choice("What is counted.", KINDS, default="subject")
    header_name: str | None = string("The header to count by, for limit_by header.", len_min=1)
    path: str | None = string("The path to count, for limit_by path.", starts_with="/")
    on_missing_identity: str = choice(
        "Without the subject that limit_by names: refuse, or count the client's address.",
        ("deny", "ip"),
        default="deny",
    )
    on_busy: str = choice(
        "Where all of a tier's concurrent runs are taken: refuse with 429, or go on as an asynchronous job.",
        ("reject", "queue"),
        default="reject",
    )
    mode: str = choice("Shadow decides, counts and logs, but never refuses.", ("enforce", "shadow"), default="enforce")
    policy: str = choice(
        "Where to count: in this process (one node only) or in Redis.", ("local", "redis"), default="local"
    )


@dataclass(frozen=True)
class RateTiersConfig(RedisConfig, _Counting, Limits, _Tiers):
    """The plugin's own fields."""

    namespace: str = string(
        "First part of the keys in Redis. Instances that share it share their counts.",
        default=NAMESPACE,
        match="^[%w_.-]+$",
        len_max=NAMESPACE_ROOM,
    )
    lease_ttl: int = integer("Seconds until a run's lease lapses without a heartbeat.", default=60, between=[5, 3600])
    header_style: str = choice("Rate limit headers: Kong's names, the IETF draft's, or both.", STYLES, default="both")
    hide_client_headers: bool = boolean("Leave out all rate limit headers.", default=False)
    error_code: int = integer("Status of a refusal.", default=429, between=[400, 599])
    error_message: str = string(
        "Message of a refusal. Kong's own is followed by which limit it is.", default=ERROR_MESSAGE
    )
    by_model: bool = boolean(
        "Tell runs from requests to models themselves by the model that the body names, and count each by its limits.",
        default=False,
    )
    by_operation: bool = boolean(
        "The body is a GraphQL request: admit what may be a mutation; what only looks at something passes uncounted.",
        default=False,
    )
    report: bool = boolean(
        "Answer with the caller's limits and use instead of counting (a route of its own).", default=False
    )
    tell: bool = boolean(
        "Let pages that only show something pass uncounted, and tell the service what is left of the caller's limits; "
        "for the role admin, of those of `sub`.",
        default=False,
    )
    admin: bool = boolean(
        "Let the role admin change limits for a while, instead of counting (a route of its own).", default=False
    )


FIELDS: list[Field] = fields(RateTiersConfig)
SCHEMA: list[Field] = [*FIELDS, *ENFORCING_FIELDS]
