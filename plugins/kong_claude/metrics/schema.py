"""Configuration of claude-metrics. Without an access log it has nothing to configure."""

from __future__ import annotations

from dataclasses import dataclass

from kong_claude.schema import Field, boolean, choice, fields, integer, number, record, string


@dataclass(frozen=True, slots=True)
class AccessLogConfig:
    """Where lines go; any number of the three places."""

    stdout: bool = boolean("Write lines to the plugin server's stdout, which Kong copies to its log.", default=False)
    file: str | None = string(
        "Absolute path of a file to append to. Renaming it is enough to rotate it.",
        match="^/",
    )
    url: str | None = string(
        "Collector to POST batches of lines to: Loki's push API, or Vector.", referenceable=True, match="^https?://"
    )
    url_style: str = choice(
        "Form of a batch: Loki's push document, or one JSON object per line.", ("loki", "ndjson"), default="ndjson"
    )
    queue_size: int = integer(
        "Lines that wait for the collector at most; more are dropped and counted.",
        default=10000,
        between=[1, 1000000],
    )
    flush_seconds: float = number(
        "Seconds after which a batch is sent even if it is not full.", default=1, between=[0.05, 60]
    )


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The whole configuration."""

    access_log: AccessLogConfig | None = record(
        "Writes one JSON line per request. Prompts, tokens and query strings are never in it.", AccessLogConfig
    )


SCHEMA: list[Field] = fields(MetricsConfig)
