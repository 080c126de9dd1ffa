"""Settings of the invoker: `INVOKER_*` variables; any of them also as `INVOKER_…_FILE`, a path to a secret.

The API's key is none of them: see `metering.key`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from claude_contract import destinations, secret_file
from claude_contract.destinations import Destination
from claude_contract.redis_place import Place
from claude_contract.rules import QUESTION
from claude_contract.secret_file import SecretFileError
from claude_invoker import disk
from claude_invoker.egress.addresses import is_loopback
from claude_invoker.holding import Bounds
from claude_invoker.listen import Listen
from claude_invoker.metering import key
from claude_invoker.metering.ownprice import OwnPrice
from claude_invoker.store.place import Key as StoreKey
from claude_invoker.store.place import Place as StorePlace

Names = Annotated[tuple[str, ...], NoDecode]
"""A tuple of names; in the environment separated by commas."""


class _SecretFiles(PydanticBaseSettingsSource):
    """Reads `INVOKER_X_FILE` for any setting X: how Docker and Kubernetes hand over secrets."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        variable = f"INVOKER_{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        try:
            return (secret_file.read(path) if path else None), field_name, False
        except SecretFileError as error:
            raise ValueError(f"{variable}: {error}") from error

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(None, name)[0] for name in self.settings_cls.model_fields}
        return {name: value for name, value in values.items() if value is not None}


class Settings(BaseSettings):
    """All that an operator decides. Times are seconds, sizes bytes, money US dollars."""

    model_config = SettingsConfigDict(env_prefix="INVOKER_", extra="ignore", populate_by_name=True)

    host: str = "127.0.0.1"
    """The address that the API listens at."""
    port: int = Field(default=8090, ge=0, le=65535)
    """Its port; 0: any that is free."""
    prefix: str = Field(default="/claude", pattern=r"^(/[A-Za-z0-9_-]+)?$")
    """Where the gateway publishes the API; every route is mounted there as well as at the root."""
    max_body: int = Field(default=10_000_000, ge=1)
    """Bytes that the body of a request may have (413)."""
    max_upload: int = Field(default=128 << 20, ge=1)
    """The same of a form with files, and of a file by itself: they go to the disk as they come."""
    request_head_s: float = Field(default=10.0, gt=0)
    """How long a request's head may take to come; its connection is closed then."""
    request_body_s: float = Field(default=60.0, gt=0)
    """How long its body may take (408)."""

    trust: Literal["attested", "open"] = "attested"
    """Whether callers have to come with an attestation of the gateway. `open` takes everybody's requests: for
    development."""
    attestation_key: SecretStr | None = None
    """The public half of the gateway's Ed25519 key in PEM, or the secret of at least 32 bytes that both share
    (docs/fail-closed.md)."""
    attestation_kid: str = "1"
    """The number of that key (`kid`)."""
    attestation_previous_key: SecretStr | None = None
    """A key that is taken beside it while the gateway changes over to the other."""
    attestation_previous_kid: str = "0"
    """Its number."""
    attestation_issuer: str = "kong-claude"
    """Whose attestations are taken (`iss`)."""
    attestation_audience: str = "claude-invoker"
    """For whom they have to be (`aud`)."""
    required_checks: Names = ("jwt-claims",)
    """What the gateway must have checked (`chk` of the attestation) for a caller to look at own runs."""
    required_checks_run: Names = ("jwt-claims", "rate-tiers")
    """The same for starting a run."""
    redis_url: str | None = None
    """The Redis of the gateway's limits, in which leases are kept and costs are booked; unset: nothing is."""
    runs_redis_url: str | None = None
    """A Redis for the records of runs, so that any of several invokers answers for any run, and for those that are over
    after a restart; and for jobs. Another than that of the limits, which must never be full (docs/invoker.md)."""
    replica_url: str | None = Field(default=None, pattern=r"^https?://[^/]+$")
    """Where the other invokers reach this one; unset: `INVOKER_HOST`, or this machine's address, and `INVOKER_PORT`."""

    single_sign_on: str | None = Field(
        default=None, pattern=r"^(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?)?(/[A-Za-z0-9._~-]+)+$"
    )
    """Where oauth2-proxy answers, which logs people in before they reach the dashboard (docs/deploy.md): `/oauth2`, or
    with its host where the gateway is reached by another name, too. Unset: the dashboard's login asks for a token."""

    anthropic_base_url: Names = Field(
        default=("https://api.anthropic.com",),
        validation_alias=AliasChoices("INVOKER_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL"),
    )
    """The API, or what stands before it. Of several, separated by commas, the next is asked where one is away."""
    cli_path: Path | None = Field(default=None, validation_alias=AliasChoices("INVOKER_CLI_PATH", "CLAUDE_CLI_PATH"))
    """The Claude CLI; unset: the one of the package claude-agent-sdk."""
    state_dir: Path = Path(tempfile.gettempdir()) / f"claude-invoker-{os.getuid()}"
    """Where the invoker keeps all that is its own; no other user may enter it."""
    audit_dir: Path | None = None
    """Where the audit log is; unset: `audit` in `state_dir`."""
    audit_anchor: Path | None = None
    """A file to which the log's head is added every minute, best where the invoker can only add: so that lines that are
    cut, or written anew, are found. Redis has it too, where there is one."""
    audit_store: Annotated[StorePlace | None, NoDecode] = None
    """Where the log is sent every minute (docs/audit.md): as `store`, best a bucket of its own whose objects stay."""
    audit_store_key: SecretStr | None = None
    """As `store_key`."""
    uid_base: int = Field(default=210_000, ge=1000)
    """Started as root, the run in slot n has user id `uid_base + n`, which needs no passwd entry."""
    isolation: Literal["namespaces", "landlock", "user", "none"] = "landlock"
    """The least accepted boundary around a run; the strongest that works here is used (docs/invoker.md)."""
    allow_commands_below: bool = False
    """Start, and allow tools that run commands, also where the boundary is weaker than that."""

    store: Annotated[StorePlace | None, NoDecode] = None
    """Where artifacts, large answers and sessions are kept, so that every invoker has them (docs/invoker.md):
    `s3://bucket/prefix?region=eu-central-1`, with `&endpoint=https://…` for another than Amazon's, or
    `file:///directory`. Unset: on this machine's disk."""
    store_key: SecretStr | None = None
    """`ID:SECRET` of the bucket; unset: what the environment gives (`AWS_…`, a role)."""

    catalog: Path | None = None
    """A directory, or the archive of one, with skills, agents and MCP servers for runs besides the skills that come
    with the invoker (docs/catalog.md)."""

    mcp_secrets: Path | None = None
    """A directory with a file for each secret that MCP servers of the catalog want to see (docs/catalog.md)."""

    memory_claim: str | None = None
    """The claim, of those that the gateway forwards (`forward_claims`), by whose value callers share what their runs
    remember (the MCP server `memory`); unset: each caller has its own."""
    memory_ttl_s: int = Field(default=180 * 24 * 3600, ge=1)
    """How long what is remembered is kept."""

    repositories: Path | None = None
    """A YAML file that says which repositories runs may work on, and where they come from (docs/workspace.md)."""

    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/?#@]+(/[^?#]*)?$")
    """Base URL of a collector to which traces are sent (OTLP over HTTP, docs/tracing.md), such as
    http://collector:4318; unset: nothing is traced."""
    otlp_subject: Literal["hash", "plain"] = "hash"
    """How traces name callers: by a digest of issuer and subject (`user.hash`), or by the subject (`user.id`)."""
    otlp_content: bool = False
    """Whether traces have prompts and answers, and what tools were given and have said."""

    model: str = "sonnet"
    """Of a run that asks for none."""
    models: Names = ()
    """Models that may be asked for; empty: any that the gateway's clamp lets through."""
    tools: Names = ("Read", "Write", "Edit", "Glob", "Grep")
    """Tools of a run that asks for none in particular."""
    tools_allowed: Names = ("Read", "Write", "Edit", "Glob", "Grep", "Bash", "WebFetch", "WebSearch", QUESTION)
    """The most that a run may have, whatever its tier allows."""
    egress: Annotated[tuple[Destination, ...] | None, NoDecode] = None
    """The most that a tier's `egress` opens, such as `pypi.org,*.npmjs.org`; unset: what it names; empty: nothing."""
    egress_max_bytes: int = Field(default=1 << 30, ge=0)
    """Bytes that a run may move to and from those hosts."""
    max_turns: int = Field(default=25, ge=1)
    """The most turns of a run."""
    max_budget_usd: float = Field(default=5.0, gt=0)
    """The most that a run may cost."""
    prices: Annotated[dict[str, OwnPrice], NoDecode] = {}
    """Prices of models that the public list lacks, or has otherwise: US dollars for a million tokens, such as
    `{"claude-x": {"input": 3, "output": 15}}`."""
    unknown_price: Literal["refuse", "dearest"] = "refuse"
    """What a request is whose model has no price: refused, or billed as the dearest known."""
    ledger_grace: float = Field(default=60.0, ge=0)
    """How long Redis may be away, and with it the ledger, until requests of runs that are billed are refused."""

    pool_size: int = Field(default=1, ge=0)
    """Warm processes kept at least; demand raises it up to `pool_max`."""
    pool_max: int = Field(default=4, ge=0)
    """Warm processes kept at most."""
    max_starts: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Processes of the CLI that start at the same time; unset: one for each core."""
    max_runs: int = Field(default=8, ge=1)
    """Runs at the same time."""
    queue_wait_s: float = Field(default=10.0, ge=0)
    """How long a run waits for a place (503 `busy`)."""

    first_output_s: float = Field(default=60.0, gt=0)
    """How long a run may take until its model says something (504)."""
    idle_s: float = Field(default=300.0, gt=0)
    """How long it may say nothing after that (504)."""
    total_s: float = Field(default=900.0, gt=0)
    """How long it may take (504)."""
    approval_timeout_s: float = Field(default=300.0, gt=0)
    """How long a call of a tool that a tier asks about waits for somebody to decide; then it is denied."""
    approval_hold_s: float = Field(default=60.0, ge=0)
    """After so much of that a job is put away, where it can be, and has neither a process nor a place till then."""
    api_timeout_s: float = Field(default=60.0, gt=0)
    """How long the CLI waits for the API's answer to begin."""
    api_retries: int = Field(default=2, ge=0)
    """How often the CLI asks the API again."""
    detach_grace_s: float = Field(default=5.0, ge=0)
    """How long a run goes on after its event stream lost the client, for it to come back."""
    stop_grace_s: int = Field(default=10, ge=0)
    """How long runs may go on after SIGTERM before they are cancelled."""
    heartbeat_s: float = Field(default=15.0, gt=0)
    """After so long without an event a stream gets a comment."""

    memory_limit: int = Field(default=4 << 30, ge=0)
    """What a run's processes may hold in memory together, and each of them as its data segment (RLIMIT_DATA); 0: no
    bound. The CLI does not start with less than 1 GiB."""
    process_limit: int = Field(default=256, ge=0)
    """How many processes and threads a run may have; 0: no bound."""
    file_size_limit: int = Field(default=1 << 30, ge=0)
    """What one file of a run may have; 0: no bound."""
    tree_limit: int = Field(default=4 << 30, ge=0)
    """What the files of a run may take on the disk while it runs; 0: no bound."""
    tree_entries_limit: int = Field(default=200_000, ge=0)
    """How many files and directories a run may have; 0: no bound."""
    artifact_max_bytes: int = Field(default=100_000_000, ge=0)
    """Bytes that a file may have to be kept."""
    artifact_max_count: int = Field(default=200, ge=0)
    """Files of a run that are kept."""
    trees_per_subject: int = Field(default=16 << 30, ge=0)
    """Bytes that the files of a subject's runs may take on this machine's disk together, while they run; 0: any,
    as for the following ones."""
    trees_in_all: int = Field(default=32 << 30, ge=0)
    """The same of all."""
    artifacts_per_subject: int = Field(default=10 << 30, ge=0)
    """Bytes that the artifacts of a subject's runs may take on this machine's disk."""
    artifacts_in_all: int = Field(default=20 << 30, ge=0)
    """The same of all runs, those included that wait for the store. Beyond it those go first that the store has, then
    the oldest."""
    sessions_per_subject: int = Field(default=8 << 30, ge=0)
    """Bytes that the sessions of a subject may take that have no run."""
    sessions_in_all: int = Field(default=32 << 30, ge=0)
    """The same of all. Where sessions move the store has what goes here."""
    uploads_per_subject: int = Field(default=1 << 30, ge=0)
    """Bytes that the files of a subject may take that were put for later requests, in the store where there is one;
    beyond it none is taken (507)."""
    uploads_in_all: int = Field(default=8 << 30, ge=0)
    """The same of all."""
    upload_ttl_s: float = Field(default=24 * 3600.0, gt=0)
    """How long such a file is kept after it was put the last time."""
    repositories_in_all: int = Field(default=32 << 30, ge=0)
    """Bytes that may be kept of repositories."""
    audit_in_all: int = Field(default=0, ge=0)
    """Bytes that the audit log may take on this machine's disk. Beyond it goes what its store has; where that is not
    enough, no run begins."""
    journal_in_all: int = Field(default=256 << 20, ge=0)
    """The same of what runs have cost and nobody has booked yet, of which nothing goes."""
    disk_reserve: int = Field(default=256 << 20, ge=0)
    """Bytes that have to be free on the disk for a run to begin (507)."""
    retention_s: float = Field(default=3600.0, ge=0)
    """How long a run's answer, events and artifacts are kept."""
    tier_retention_s: Annotated[dict[str, float], NoDecode] = {}
    """The same for callers of a tier, e.g. `{"pro": 86400}`."""
    session_ttl_s: float = Field(default=24 * 3600.0, gt=0)
    """How long a session is kept after its last turn."""
    session_idle_s: float = Field(default=60.0, ge=0)
    """How long the process of a session's turn is kept for the next one (docs/invoker.md says which are); 0: not."""
    session_idle_memory: int = Field(default=1 << 30, ge=0)
    """Bytes of memory that the processes which are kept so may have together: beyond it the oldest end."""
    held_per_run: int = Field(default=32 << 20, ge=1 << 16)
    """What a run's events may hold, in memory and (a job's) in Redis; beyond it the oldest are forgotten."""
    held_per_subject: int = Field(default=64 << 20, ge=1 << 16)
    """What all runs of a subject may hold in memory: input, events, results; and once more its jobs in Redis. Those
    that are over are dropped for a new one, the oldest first; where that is not enough it is refused (429)."""
    held_in_all: int = Field(default=512 << 20, ge=1 << 16)
    """The same for all subjects together (507)."""

    worker: Literal["none", "embedded"] = "none"
    """Whether the server runs queued jobs itself; else `claude-invoker worker` does."""
    worker_concurrency: int = Field(default=4, ge=1)
    """Jobs of a worker that run at the same time."""
    health_path: Path | None = None
    """Where `claude-invoker worker` writes every 5 s that it is ready, or why it is not (docs/jobs.md)."""
    metrics_listen: Annotated[Listen | None, NoDecode] = None
    """HOST:PORT where `claude-invoker worker` serves Prometheus metrics, without attestation; unset: nowhere. A server
    has them at its own port."""
    on_worker_loss: Literal["fail", "retry"] = "fail"
    """A job whose worker died: its run may have had effects, so it is not repeated unless asked for."""
    worker_drain_s: float = Field(default=20.0, ge=0)
    """How long a worker that shall stop lets its runs go on; what is left then counts as orphaned."""
    tier_priority: Names = ()
    """Tiers whose jobs go first, the most urgent first; other tiers come last."""
    webhook_hosts: Names = ()
    """Hosts that a `callback_url` may name: exact, or `*.example.com`."""
    webhook_private: bool = False
    """Allow webhooks to private addresses and by plain http: for development."""
    webhook_secret: SecretStr | None = None
    """With which webhooks are signed (docs/jobs.md); unset: none is sent."""
    budget_webhook: SecretStr | None = None
    """A URL of the operator's that is told when 80 % and 95 % of a budget are used; signed as other webhooks."""

    @property
    def audit_directory(self) -> Path:
        return self.audit_dir or self.state_dir / "audit"

    @property
    def jobs_redis_url(self) -> str | None:
        """Where jobs wait: with the records of runs, where those have a Redis of their own."""
        return self.runs_redis_url or self.redis_url

    @property
    def key_of_store(self) -> StoreKey | None:
        return None if self.store_key is None else StoreKey.parse(self.store_key.get_secret_value())

    @property
    def key_of_audit_store(self) -> StoreKey | None:
        return None if self.audit_store_key is None else StoreKey.parse(self.audit_store_key.get_secret_value())

    @property
    def longest_retention_s(self) -> float:
        """After this nobody asks for anything of a run."""
        return max([self.retention_s, *self.tier_retention_s.values()])

    @property
    def on_disk(self) -> dict[disk.Kind, disk.Bounds]:
        return {
            "trees": disk.Bounds(self.trees_per_subject, self.trees_in_all),
            "artifacts": disk.Bounds(self.artifacts_per_subject, self.artifacts_in_all),
            "sessions": disk.Bounds(self.sessions_per_subject, self.sessions_in_all),
            "uploads": disk.Bounds(self.uploads_per_subject, self.uploads_in_all),
            "repositories": disk.Bounds(0, self.repositories_in_all),
            "audit": disk.Bounds(0, self.audit_in_all),
            "journal": disk.Bounds(0, self.journal_in_all),
        }

    @property
    def books(self) -> dict[disk.Kind, Path]:
        """Directories of which the invoker itself deletes nothing."""
        return {"audit": self.audit_directory, "journal": self.state_dir / "journal"}

    @property
    def held(self) -> Bounds:
        return Bounds(self.held_per_run, self.held_per_subject, self.held_in_all)

    @field_validator(
        "required_checks",
        "required_checks_run",
        "anthropic_base_url",
        "models",
        "tools",
        "tools_allowed",
        "tier_priority",
        "webhook_hosts",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("anthropic_base_url")
    @classmethod
    def _can_be_asked(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
                raise ValueError("each must be an http or https URL with a host, without credentials or a query")
        if not urls or len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError("one URL at least, and each of them once")
        return urls

    @field_validator("prices", "tier_retention_s", mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        """Here and not by the settings' source, whose error would name neither variable nor mistake."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error}") from error

    @field_validator("tools", "tools_allowed")
    @classmethod
    def _tools_by_name(cls, value: Names) -> Names:
        if "Skill" in value:
            raise ValueError(
                "Skill is no tool by itself: it comes with the skills that a run asks for (INVOKER_CATALOG)"
            )
        return value

    @field_validator("memory_limit")
    @classmethod
    def _enough_for_the_cli(cls, value: int) -> int:
        if 0 < value < 1 << 30:
            raise ValueError(f"the Claude CLI needs 1 GiB ({1 << 30}) at least, not {value}; 0: no bound")
        return value

    @field_validator("egress", mode="before")
    @classmethod
    def _destinations(cls, value: Any) -> Any:
        return tuple(map(destinations.parse, cls._split(value))) if isinstance(value, str) else value

    @field_validator("store", "audit_store", mode="before")
    @classmethod
    def _store_place(cls, value: Any) -> Any:
        return StorePlace.parse(value) if isinstance(value, str) else value

    @field_validator("metrics_listen", mode="before")
    @classmethod
    def _place_to_listen(cls, value: Any) -> Any:
        return Listen.parse(value) if isinstance(value, str) else value

    @field_validator("store_key", "audit_store_key")
    @classmethod
    def _store_key_has_its_parts(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            StoreKey.parse(value.get_secret_value())
        return value

    @field_validator("redis_url", "runs_redis_url")
    @classmethod
    def _redis_can_be_asked(cls, url: str | None) -> str | None:
        if url is not None:
            Place.parse(url)
        return url

    @model_validator(mode="after")
    def _budget_webhook_can_be_sent(self) -> Settings:
        if self.budget_webhook is None:
            return self
        try:
            parts = urlsplit(self.budget_webhook.get_secret_value())
            is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        except ValueError:
            is_url = False
        if not is_url:
            raise ValueError("INVOKER_BUDGET_WEBHOOK must be an http or https URL with a host, without credentials")
        if self.webhook_secret is None:
            raise ValueError("INVOKER_BUDGET_WEBHOOK needs INVOKER_WEBHOOK_SECRET, by which it is signed")
        if self.redis_url is None:
            raise ValueError(
                "INVOKER_BUDGET_WEBHOOK needs INVOKER_REDIS_URL, where the gateway leaves what it has seen"
            )
        return self

    @model_validator(mode="after")
    def _open_trust_is_local(self) -> Settings:
        if self.trust == "open" and not is_loopback(self.host):
            raise ValueError(f"INVOKER_TRUST=open binds to loopback only, not to {self.host}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _SecretFiles(settings_cls)


SERVICE_LINK = re.compile(r"INVOKER_(SERVICE_.+|PORT_\d+_.+)")
"""Kubernetes puts these into pods beside a Service with the name `invoker`."""


def unknown(variables: Iterable[str]) -> list[str]:
    """Those that begin like a setting and are none: a slip of the pen, or a setting that is gone."""
    known = {f"INVOKER_{name.upper()}" for name in Settings.model_fields} | set(key.OURS)
    return sorted(
        name
        for name in variables
        if name.startswith("INVOKER_") and name.removesuffix("_FILE") not in known and not SERVICE_LINK.fullmatch(name)
    )
