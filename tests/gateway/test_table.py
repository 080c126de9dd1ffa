from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.gateway.runners import SECRET, apart, fused
from tests.gateway.table import ALL, Row, ask, prompt, rows, token
from tests.support.kong_driver import Driver, Request, RPCError

ROWS = rows()
SIGNING: dict[str, dict[str, Any]] = {
    "unsigned": {},
    "signed": {"attestation": {"secret": SECRET}},
    "fixed": {"attestation": {"secret": SECRET, "request": "POST /claude/invoke"}},
}


@pytest.mark.parametrize("signing", SIGNING)
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_one_event_does_what_three_do(kong: Driver, row: Row, signing: str) -> None:
    shared = {"mark": "m", **SIGNING[signing]}
    three, one = apart(kong, row.sections, shared), fused(kong, row.sections, shared)
    for request, status in zip(row.requests, row.statuses, strict=True):
        outcome_three, outcome_one = three.send(request), one.send(request)
        assert outcome_three.status == status, outcome_three
        assert outcome_one == outcome_three
        assert outcome_one.marked is (status is None)
        if status is None and signing != "unsigned":
            assert outcome_one.claims is not None
            assert len(outcome_one.claims["chk"]) == len(row.sections)


ADA, FREE = ("ada", "pro"), ("ada", "free")
REFUSED: dict[str, tuple[list[Request], int, tuple[str, str] | None]] = {
    "no token": ([ask(bearer=None)], 401, None),
    "a forged token": ([ask(bearer=token()[:-6] + "AAAAAA")], 401, None),
    "no role": ([ask(bearer=token(roles=["other"]))], 403, ADA),
    "over the limit": ([ask(bearer=token(tier="free"))] * 3, 429, FREE),
    "denied by a pattern": ([ask({"prompt": "forbidden"})], 400, ADA),
    "not JSON": ([ask(b"not json")], 400, ADA),
}


@pytest.mark.parametrize("signing", ["signed", "fixed"])
@pytest.mark.parametrize("arrange", [apart, fused])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_of_a_known_caller_tells_the_log_who_and_in_which_tier(
    kong: Driver, case: str, arrange: Any, signing: str
) -> None:
    """429s had neither subject nor tier in the access log. Who is not known yet is not named either."""
    requests, status, who = REFUSED[case]
    one = arrange(kong, ALL, {"mark": "m", **SIGNING[signing]})
    outcomes = [one.send(request) for request in requests]
    assert [outcome.status for outcome in outcomes] == [None] * (len(requests) - 1) + [status]
    assert one.logged == (who and {"subject": who[0], "tier": who[1], "team": ""})
    assert one.calls.count("kong.log.set_serialize_value") == (who is not None)


@pytest.mark.parametrize("apply", ["body", "attested"])
@pytest.mark.parametrize("arrange", [apart, fused])
def test_identity_reaches_the_prompt(kong: Driver, arrange: Any, apply: str) -> None:
    """Not the header that the client sent: the one that the first stage put in its place."""
    shared = {"mark": "m", **SIGNING["fixed"]}
    outcome = arrange(kong, prompt(apply=apply), shared).send(ask(headers={"x-claude-subject": "root"}))
    assert outcome.claims is not None
    added = outcome.upstream_body if apply == "body" else outcome.claims["add"]
    assert added["context"]["department"] == "research"
    assert added["context"]["caller"] == "ada"


ATTESTED = {section: copy.deepcopy(config) for section, config in ALL.items()}
ATTESTED["prompt_context"] = {
    "prepend": "You are a code review assistant. ",
    "context": {"repository": {"source": "header:X-Repo"}},
    "apply": "attested",
}


def test_calls_with_a_fixed_request(kong: Driver) -> None:
    shared = {"mark": "m", **SIGNING["fixed"]}
    one = fused(kong, ATTESTED, shared)
    assert one.send(ask(headers={"x-repo": "org/app"})).marked
    assert one.calls == [
        "kong.request.get_headers",
        "kong.service.request.set_headers",
        "kong.response.set_headers",
        "kong.ctx.shared.set",
    ]
    quiet = copy.deepcopy(ATTESTED)
    quiet["rate_tiers"]["hide_client_headers"] = True
    one = fused(kong, quiet, shared)
    assert one.send(ask(headers={"x-repo": "org/app"})).marked
    assert one.calls == ["kong.request.get_headers", "kong.service.request.set_headers", "kong.ctx.shared.set"]


def test_calls_with_a_rewritten_body(kong: Driver) -> None:
    one = fused(kong, ALL, {"mark": "m", **SIGNING["fixed"]})
    assert one.send(ask()).upstream_body is not None
    assert one.calls == [
        "kong.request.get_headers",
        "kong.request.get_raw_body",
        "kong.service.request.set_headers",
        "kong.service.request.set_raw_body",
        "kong.response.set_headers",
        "kong.ctx.shared.set",
    ]


def test_three_events_ask_more(kong: Driver) -> None:
    three = apart(kong, ATTESTED, {"mark": "m", **SIGNING["fixed"]})
    assert three.send(ask()).marked
    assert len(three.calls) == 10


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, "jwt_claims: no section"),
        ({"attestation": {"secret": SECRET}}, "jwt_claims: no section"),
        ({"prompt_context": {"profile": "nobody"}}, "prompt_context.profile"),
        ({"prompt_context": {"apply": "attested"}}, "prompt_context.apply"),
        ({"prompt_context": {"prepend": "x"}, "attestation": {"secret": "short"}}, "attestation.secret: "),
        ({"rate_tiers": {"tiers": []}}, "rate_tiers"),
    ],
)
def test_bad_configurations_do_not_start(kong: Driver, config: dict[str, Any], names: str) -> None:
    with pytest.raises(RPCError, match=names):
        kong.start_instance("claude-gateway", config)
