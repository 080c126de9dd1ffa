"""Configurations: what Kong is told and what an instance gets come from the same fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_contract.errors import ConfigError
from kong_claude.gateway.plugin import Plugin as Gateway
from kong_claude.gateway.schema import GatewayConfig
from kong_claude.jwt_claims.plugin import Plugin as JwtClaims
from kong_claude.jwt_claims.schema import IssuerConfig, JwtClaimsConfig, RuleConfig
from kong_claude.metrics.schema import AccessLogConfig, MetricsConfig
from kong_claude.prompt_context.plugin import Plugin as PromptContext
from kong_claude.prompt_context.schema import ContextConfig, ProfileConfig, PromptContextConfig
from kong_claude.rate_tiers.plugin import Plugin as RateTiers
from kong_claude.rate_tiers.schema import RateTiersConfig, TierConfig
from kong_claude.schema import Field, fields, read
from kong_claude.stage import AttestationConfig, Shared
from tests.core.test_pipeline import Ended, Kong

KINDS: list[type] = [
    AccessLogConfig,
    AttestationConfig,
    ContextConfig,
    GatewayConfig,
    IssuerConfig,
    JwtClaimsConfig,
    MetricsConfig,
    ProfileConfig,
    PromptContextConfig,
    RateTiersConfig,
    RuleConfig,
    Shared,
    TierConfig,
]


def rules(kind: type) -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields as Kong gets them: by the dump's JSON."""
    schema: list[Field] = json.loads(json.dumps(fields(kind)))
    for field in schema:
        yield from field.items()


@pytest.mark.parametrize("kind", KINDS)
def test_what_kong_fills_in_is_what_the_object_has(kind: type) -> None:
    filled = {name: rule["default"] for name, rule in rules(kind) if "default" in rule}
    assert read(kind, filled) == read(kind, {}) == kind()
    for name, value in filled.items():
        found = getattr(kind(), name)
        assert (list(found) if isinstance(found, tuple) else found) == value


def nothing(rule: dict[str, Any], absent: Any) -> list[Any]:
    """What Kong may hand over for a field that nobody gave, beside leaving it out."""
    values = [None, *([rule["default"]] if "default" in rule else [])]
    if rule["type"] == "string" and not rule.get("referenceable"):
        values.append("")
    if rule["type"] == "map" or absent == ():
        values += [[], {}]  # one in Lua
    if rule["type"] in ("integer", "number") and "default" in rule:
        values.append(float(rule["default"]))
    return values


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_kong_makes_of_what_nobody_gave_is_the_same_object(kind: type, data: st.DataObject) -> None:
    given_fields = {name: st.sampled_from(nothing(rule, getattr(kind(), name))) for name, rule in rules(kind)}
    config = data.draw(st.fixed_dictionaries({}, optional=given_fields))
    assert read(kind, config) == kind()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_reference_is_not_an_absent_one(kind: type) -> None:
    """Kong makes "" of a vault reference that it cannot resolve."""
    for name, rule in rules(kind):
        if rule.get("referenceable"):
            assert getattr(read(kind, {name: ""}), name) == ""


def test_an_empty_list_is_a_value_where_absent_means_any() -> None:
    assert (read(TierConfig, {}).tools, read(TierConfig, {"tools": []}).tools) == (None, ())
    assert read(JwtClaimsConfig, {"header_names": []}).header_names == ()


def test_the_presence_of_a_section_switches_it_on() -> None:
    """Kong fills it with defaults; should it ever not, nothing is switched off by that."""
    assert read(GatewayConfig, {}).jwt_claims is None
    assert read(GatewayConfig, {"jwt_claims": {}}).jwt_claims == JwtClaimsConfig()
    assert read(Shared, {"attestation": []}).attestation == AttestationConfig()


def test_integers_are_integers() -> None:
    found = read(RateTiersConfig, {"minute": 5.0, "error_code": 429.0})
    assert [type(found.minute), type(found.error_code)] == [int, int]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a boolean": ({"rate_tiers": {"report": "yes"}}, "rate_tiers.report: must be true or false"),
    "a number": ({"rate_tiers": {"timeout_ms": "1"}}, "rate_tiers.timeout_ms: must be a whole number"),
    "true is no number": ({"rate_tiers": {"minute": True}}, "rate_tiers.minute: must be a whole number"),
    "half": (
        {"rate_tiers": {"tiers": [{"hour": 1}, {"hour": 0.5}]}},
        "rate_tiers.tiers[2].hour: must be a whole number",
    ),
    "no number": ({"rate_tiers": {"minute": float("nan")}}, "rate_tiers.minute: must be a whole number"),
    "money": ({"rate_tiers": {"tiers": [{"usd_per_day": "1"}]}}, "rate_tiers.tiers[1].usd_per_day: must be a number"),
    "a text": ({"jwt_claims": {"issuers": [{"issuer": 1}]}}, "jwt_claims.issuers[1].issuer: must be a text"),
    "a list": ({"jwt_claims": {"audience": "a"}}, "jwt_claims.audience: must be a list"),
    "in a list": ({"jwt_claims": {"audience": ["a", None]}}, "jwt_claims.audience[2]: must be a text"),
    "a record": ({"jwt_claims": ["x"]}, "jwt_claims: must be a map"),
    "in a map": ({"prompt_context": {"context": {"a": {"render": 1}}}}, "prompt_context.context.a.render: must be"),
}


@pytest.mark.parametrize(("config", "said"), WRONG.values(), ids=WRONG)
def test_a_value_of_another_kind_is_named_as_kong_names_it(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(GatewayConfig, config)
    assert str(caught.value).startswith(said)


class Sealed(Mapping[str, Any]):
    """A configuration that may be looked into while an instance is made, and no longer."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.sealed = False
        self.parts = {name: Sealed(value) if isinstance(value, dict) else value for name, value in config.items()}

    def seal(self) -> None:
        self.sealed = True
        for part in self.parts.values():
            if isinstance(part, Sealed):
                part.seal()

    def __getitem__(self, name: str) -> Any:
        assert not self.sealed, name
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        assert not self.sealed
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


JWT = {"issuers": [{"issuer": "i", "algorithms": ["HS256"], "secret": "s" * 32}], "audience": ["a"]}
RATE = {"minute": 10, "limit_by": "ip"}
CONTEXT = {"prepend": "Hello {{who}}. ", "context": {"who": {"source": "const:you"}}}
BOUND = {"route_id": "r", "attestation": {"secret": "a" * 32}}
STARTED: dict[str, tuple[type, dict[str, Any]]] = {
    "jwt-claims": (JwtClaims, {**JWT, **BOUND}),
    "rate-tiers": (RateTiers, {**RATE, **BOUND}),
    "prompt-context": (PromptContext, {**CONTEXT, **BOUND}),
    "gateway": (Gateway, {"rate_tiers": RATE, "prompt_context": CONTEXT, **BOUND}),
}


@pytest.mark.parametrize(("plugin", "config"), STARTED.values(), ids=STARTED)
def test_no_configuration_is_looked_into_once_the_instance_is_made(plugin: Any, config: dict[str, Any]) -> None:
    handed = Sealed(config)
    instance = plugin(handed)
    handed.seal()
    with pytest.raises(AssertionError):  # the control
        handed.get("route_id")
    headers = {"x-request-id": "r", "content-type": "application/json", "content-length": "15"}
    answers = {
        "nginx.get_var": "POST /p HTTP/1.1",
        "client.get_forwarded_ip": "10.0.0.1",
        "request.get_raw_body": b'{"prompt":"hi"}',
    }
    kong = Kong(headers, **answers)
    try:
        instance.access(kong)
    except Ended:
        status, _, sent = kong.args("response.exit")
        assert (status, sent["X-Claude-Refusal"]) == (401, "jwt-claims/no_token")
    else:
        assert kong.methods[-1] == "ctx.shared.set"
    assert "log.err" not in kong.methods
