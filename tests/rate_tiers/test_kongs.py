"""What Kong's rate-limiting calls otherwise: the record `redis` of Kong 3.6 and newer, its flat names, fault_tolerant."""

from __future__ import annotations

from typing import Any

import pytest

from claude_contract.errors import ConfigError
from kong_claude.rate_tiers.kongs import folded
from kong_claude.rate_tiers.plugin import RateTiers
from kong_claude.rate_tiers.redis_ledger import Settings
from kong_claude.rate_tiers.schema import RedisConfig
from kong_claude.schema import read
from minikong.schema import bundled
from tests.rate_tiers.test_schema import load
from tests.support.stages import stage_of

# As `deck gateway dump` of Kong 3.9 has it: all defaults filled in, null where there is none.
DUMPED = {
    "second": None,
    "minute": 60,
    "hour": 500,
    "day": None,
    "month": None,
    "year": 100_000,
    "limit_by": "ip",
    "header_name": None,
    "path": None,
    "policy": "redis",
    "fault_tolerant": True,
    "redis": {
        "host": "redis.example.com",
        "port": 6380,
        "username": None,
        "password": "{vault://env/redis-password}",
        "database": 2,
        "timeout": 2000,
        "ssl": True,
        "ssl_verify": False,
        "server_name": "redis.internal",
    },
    "hide_client_headers": False,
    "error_code": 429,
    "error_message": "API rate limit exceeded",
    "sync_rate": -1,
}


def settings(**config: Any) -> Settings:
    return Settings.from_config(read(RedisConfig, config))


def test_a_dump_of_kongs_rate_limiting_loads_and_means_the_same() -> None:
    made = load(DUMPED, {"REDIS_PASSWORD": "q8Zr1xJ0f7VbN3"})
    assert isinstance(made, dict), made
    assert settings(**made) == Settings(
        "rediss://redis.example.com:6380/2", "", "q8Zr1xJ0f7VbN3", False, "", 2.0, server_name="redis.internal"
    )
    started = stage_of(RateTiers, made)
    assert started.on_error == "allow"


def test_the_record_of_a_plugin_that_counts_in_its_process_is_not_looked_at() -> None:
    empty = {"host": None, "port": 6379, "database": 0, "timeout": 2000, "ssl": False, "ssl_verify": False}
    made = load({"minute": 60, "policy": "local", "redis": empty, "fault_tolerant": False})
    assert isinstance(made, dict), made
    assert stage_of(RateTiers, made).on_error == "deny"


def test_both_ways_at_once_as_the_admin_api_of_kong_shows_them() -> None:
    both = {"redis": {"host": "redis"}, "redis_host": "redis", "redis_port": 6379, "redis_timeout": 2000}
    assert settings(**both) == settings(redis_host="redis", timeout_ms=2000)


def test_sentinels_with_a_password_of_their_own() -> None:
    nodes = [{"host": "one"}, {"host": "::1", "port": 26379}]
    record = {"sentinel_nodes": nodes, "sentinel_master": "main", "sentinel_role": "master", "database": 3, "ssl": True}
    found = settings(redis=record | {"password": "of-redis", "sentinel_username": "u", "sentinel_password": "of-them"})
    assert found.url == "rediss+sentinel://one:6379,[::1]:26379/main/3"
    assert (found.password, found.sentinel_username, found.sentinel_password) == ("of-redis", "u", "of-them")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"redis_url": "redis://a", "redis": {"host": "b"}}, "redis"),
        ({"redis_host": "a", "redis": {"host": "b"}}, "redis.host"),
        ({"redis": {"host": "b", "sentinel_nodes": [{}], "sentinel_master": "m"}}, "redis.host"),
        ({"redis": {"sentinel_nodes": [{}]}}, "redis.sentinel_master"),
        ({"redis": {"host": "a", "sentinel_master": "m"}}, "redis.sentinel_nodes"),
        ({"redis_host": "a", "fault_tolerant": True, "on_error": "local"}, "fault_tolerant"),
        ({"redis_host": "a", "fault_tolerant": False, "on_error": "allow"}, "fault_tolerant"),
        ({"redis_url": "redis+sentinel://a/m", "redis_server_name": "x"}, "redis_server_name"),
    ],
)
def test_two_that_contradict_each_other_are_refused(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(**config)
    assert refused.value.field_name == field


@pytest.mark.parametrize("said", [{"on_error": "allow"}, {"on_error": "local"}, {"on_error": "deny"}, {}])
def test_what_says_nothing_of_kongs_stays(said: dict[str, str]) -> None:
    config = read(RedisConfig, {"redis_host": "a"} | said)
    assert folded(config) == config


def test_every_field_of_kongs_plugin_is_known() -> None:
    (config,) = [f["config"] for f in bundled.schemas()["rate-limiting"]["fields"] if "config" in f]
    given = {name: None for field in config["fields"] for name in field}
    assert isinstance(load(given | {"minute": 1}), dict)
