"""What an attestation says: the same for who wrote it and who reads it, and nothing in it is passed over."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from claude_contract import claims as contract
from claude_contract import features
from claude_contract.attestation import KID_ROOM, Signer, verify
from claude_contract.claims import (
    ADDITIONS_ROOM,
    CLAMP_ROOM,
    IDENTITY_ROOM,
    MAX_HEADER,
    METHOD_ROOM,
    NAME_ROOM,
    NAMESPACE_ROOM,
    POOLS_ROOM,
    REPOSITORY_ROOM,
    VERSION,
    Additions,
    Attestation,
    Binding,
    Clamp,
    Limits,
    Place,
    Repository,
    body_hash,
    encode,
    path_claim,
    pools_size,
    size,
)
from claude_contract.destinations import Destination
from claude_contract.identity import Identity, identity_from_shared
from claude_contract.ledger import Budget, Lease, Shared, Slot, Terms
from claude_contract.ledger.limits import MAX_PERCENT
from claude_contract.ledger.periods import PERS
from claude_contract.members import LARGEST, AttestationError
from claude_contract.rules import NO_RULES, Rules, parse_all

DOCUMENT = Path(__file__).parents[2] / "docs" / "fail-closed.md"
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
RULES = Rules(parse_all(["Bash", "Edit(/src/**)"]), parse_all(["Bash(rm:*)"]), parse_all(["Read(/a)"]), four_eyes=True)
HOSTS = (Destination("pypi.org"), Destination("*.npmjs.org", 8443))


def replace(value: Any, **members: Any) -> Any:
    return (dataclasses.replace if dataclasses.is_dataclass(value) else structs.replace)(value, **members)


def padded(value: Any, member: str, room: int) -> Any:
    """The value with a longer member, so that it takes exactly its room."""
    left = room - size(value.to_claims())
    old = getattr(value, member)
    return replace(value, **{member: old + "x" * left if isinstance(old, str) else (*old[:-1], old[-1] + "x" * left)})


def place_of(shared: Shared) -> Place:
    budget = Budget(10**15, "month", "America/Argentina/ComodRivadavia")
    return Place(
        Lease("n" * NAMESPACE_ROOM, "credential:" + "x" * 96, f"v1.m.{secrets.token_urlsafe(12)}:{10**15}", shared),
        Slot(
            2**31 - 1,
            10**15,
            10**15,
            10**15,
            3_600_000,
            (budget,),
            (Terms(2**31 - 1, (budget, budget)),) * 4,
            MAX_PERCENT,
        ),
        queued=True,
    )


def largest_place() -> Place:
    """With as long names of pools as its room allows."""
    left = POOLS_ROOM - pools_size(place_of(Shared("*", ("a", "b", "c", ""))))
    return place_of(Shared("*", ("a", "b", "c", "x" * left)))


# Every part of it as large as the parts' makers let it become: see tests/gateway/test_size.py.
FULL = Attestation(
    Binding("i" * NAME_ROOM, "a" * NAME_ROOM, "M" * METHOD_ROOM, "/" + "p" * 127, UUID, "q" * 128),
    9_999_999_940,
    9_999_999_999,
    secrets.token_urlsafe(12),
    ("jwt-claims", "prompt-context", "rate-tiers"),
    padded(
        Identity(
            "s" * 255,
            "https://id.example.com/",
            "t" * NAME_ROOM,
            ("admin",),
            ("explain",),
            "ada@example.com",
            UUID,
            "ada",
            UUID,
            {"team": "core", "deep": [{"a": [1.5, None, True]}]},
        ),
        "roles",
        IDENTITY_ROOM,
    ),
    Limits(
        "t" * NAME_ROOM,
        padded(
            Clamp(
                ("haiku",),
                ("Read",),
                2**31 - 1,
                999_999_999.123456,
                HOSTS,
                "haiku",
                features.FEATURES,
                ("pdf",),
                ("pdf",),
                ("a",),
                ("b",),
                RULES,
            ),
            "tools",
            CLAMP_ROOM,
        ),
        largest_place(),
        message=True,
    ),
    padded(Additions("P ", " A", {"repository": "org/app", "branch": None}, ("model",)), "prepend", ADDITIONS_ROOM),
    body_hash(b""),
    Repository("o/" + "r" * (REPOSITORY_ROOM - 2), "b" * REPOSITORY_ROOM, True, True),
)
# What release 0.1.0 writes for a request that jwt-claims, rate-tiers and prompt-context have seen.
OLD: dict[str, Any] = {
    "iss": "kong-claude", "aud": "claude-invoker", "mth": "POST", "pth": "/claude/invoke", "rte": UUID, "rid": "q-1",
    "iat": 1_700_000_000, "exp": 1_700_000_030, "jti": "c7XnAMcTzrsMjDKj",
    "chk": ["jwt-claims", "prompt-context", "rate-tiers"],
    "sub": "alice", "tier": "pro", "roles": ["claude:invoke"], "who": {"idp": "kong-claude-dev"},
    "clamp": {"models": ["haiku", "sonnet"], "max_turns": 25, "max_usd": 2, "tools": ["Read", "Write"]},
    "lease": "claude alice vXp3Tl2YxZgZQn0A:2000000",
    "slot": {"concurrent": 4, "usd": 2_000_000, "usd_day": 50_000_000, "ttl_ms": 60_000},
    "reservation": "claude alice vXp3Tl2YxZgZQn0A:2000000",
    "add": {"prepend": "You are. ", "context": {"branch": None, "repository": "org/app"}}, "bsh": body_hash(b"{}"),
}  # fmt: skip


def from_wire(claims: Any) -> Attestation:
    return Attestation.from_claims(json.loads(encode(claims)))


# Round trip

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
NAMES = st.lists(TEXT, max_size=3).map(tuple)
WHOLE = st.integers(0, 9) | st.just(LARGEST)
AMOUNT = st.floats(0, 1e9) | st.integers(0, 10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e9, 1e9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
PART = st.text("abcdefghij:%*-_", min_size=1, max_size=9)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def or_full(strategy: st.SearchStrategy[Any], full: Any) -> st.SearchStrategy[Any]:
    """Also at its largest."""
    return strategy | st.just(full)


IDENTITIES = st.builds(
    Identity, NAME, TEXT, maybe(NAME), NAMES, NAMES, maybe(NAME), maybe(NAME), maybe(NAME), maybe(NAME),
    st.dictionaries(TEXT, JSON, max_size=3),
)  # fmt: skip
FEATURES = st.sets(st.sampled_from(features.FEATURES)).map(features.parse)
PATTERNS = st.lists(st.sampled_from(["Bash", "Bash(git log:*)", "Edit(/src/**)", "mcp__a__*"]), max_size=3).map(
    parse_all
)
RULES_OF_A_TIER = st.builds(Rules, PATTERNS, PATTERNS, PATTERNS, st.booleans()).map(lambda found: found or NO_RULES)
EGRESS = st.lists(st.sampled_from([*HOSTS, Destination("a-b.example.org")]), max_size=3).map(tuple)
SKILLS = st.sampled_from(
    [((), ()), (("pdf",), ()), (("pdf", "docx"), ("docx",), ("a",)), (("pdf",), ("pdf",), (), ("b",))]
)
CLAMPS = or_full(
    st.builds(
        lambda given, skills, rules: replace(Clamp(*given, *skills), rules=rules),
        st.tuples(maybe(NAMES), maybe(NAMES), maybe(WHOLE), maybe(AMOUNT), EGRESS, maybe(NAME), maybe(FEATURES)),
        SKILLS,
        RULES_OF_A_TIER,
    ),
    FULL.clamp,
)
BUDGETS = st.lists(
    st.builds(Budget, WHOLE, st.sampled_from(PERS), st.sampled_from(["UTC", "Europe/Berlin"]))
    | st.builds(lambda usd, per: Budget(usd, per, rolling=True), WHOLE, st.sampled_from(PERS)),
    max_size=2,
).map(tuple)
TERMS = st.builds(Terms, maybe(st.integers(0, 2**31 - 1)), BUDGETS)
SHARE = st.just(100) | st.integers(100, MAX_PERCENT)
SLOTS = st.builds(Slot, maybe(WHOLE), WHOLE, maybe(WHOLE), maybe(WHOLE), WHOLE, BUDGETS, up_to_percent=SHARE)


def place(
    parts: tuple[str, str, str], usd: int, tag: str | None, pools: dict[str, Terms], slot: Slot, q: bool
) -> Place:
    """Without a tag there are no pools."""
    shared, terms = (Shared(tag, tuple(pools)), tuple(pools.values())) if tag else (Shared(), ())
    return Place(Lease(parts[0], parts[1], f"{parts[2]}:{usd}", shared), replace(slot, pools=terms), q)


PLACES = st.builds(
    place,
    st.tuples(PART, PART, PART),
    WHOLE,
    maybe(PART),
    st.dictionaries(PART, TERMS, max_size=4),
    SLOTS,
    st.booleans(),
)
LIMITS = st.builds(Limits, maybe(NAME), CLAMPS, or_full(maybe(PLACES), FULL.place)).map(
    lambda found: structs.replace(found, message=found.place is not None and found.place.lease.is_message)
)
ADDITIONS = st.builds(Additions, TEXT, TEXT, st.dictionaries(TEXT, maybe(TEXT), max_size=3), NAMES)
BINDINGS = st.builds(Binding, NAME, NAME, NAME, NAME, TEXT, TEXT)


def consistent(found: Attestation) -> Attestation:
    """An identity travels with the tier that applies."""
    if found.identity is None or found.limits is None:
        return found
    tier = found.limits.tier or found.identity.tier
    return structs.replace(
        found, identity=structs.replace(found.identity, tier=tier), limits=structs.replace(found.limits, tier=tier)
    )


ATTESTATIONS = st.builds(
    Attestation,
    or_full(BINDINGS, FULL.binding),
    WHOLE,
    WHOLE,
    NAME,
    or_full(NAMES, FULL.checks),
    or_full(maybe(IDENTITIES), FULL.identity),
    or_full(maybe(LIMITS), FULL.limits),
    or_full(ADDITIONS, FULL.additions),
    or_full(maybe(TEXT), FULL.body_hash),
).map(consistent)


@given(ATTESTATIONS)
def test_what_is_written_is_what_is_read(attestation: Attestation) -> None:
    assert from_wire(attestation.to_claims()) == attestation


def test_what_is_full_too() -> None:
    assert from_wire(FULL.to_claims()) == FULL


@given(IDENTITIES)
def test_an_identity_is_read_whole_from_the_shared_context(identity: Identity) -> None:
    """What a later plugin finds of an earlier one where nothing is attested: with its tier and roles, or the caller would
    be somebody else. The mark and others' keys are beside it."""
    left = json.loads(encode(identity.to_claims() | {"mark": "r1", "claude_admission": {}}))
    assert identity_from_shared(left) == identity


@pytest.mark.parametrize(
    "left",
    [
        None,
        "alice",
        [],
        {},
        {"mark": "r1"},
        {"sub": ""},
        {"sub": 1},
        {"sub": None},
        {"tier": "pro"},
        {"roles": ["admin"]},
        {"sub": "alice", "roles": "admin"},
        {"sub": "alice", "roles": [1]},
        {"sub": "alice", "tier": 1},
        {"sub": "alice", "who": {"uid": 0}},
        {"sub": "alice", "who": []},
    ],
)
def test_no_other_value_in_the_shared_context_is_an_identity(left: Any) -> None:
    assert identity_from_shared(left) is None


def test_pools_and_budgets_take_what_they_add_to_a_place() -> None:
    """A place without any has the end of its lease's tag alone: a byte more would refuse a tier that has its room."""
    plain = Place(Lease("claude", "alice", "vX:1"), Slot(1, 1, 1, 1, 1))
    budgets = (Budget(1, "month", "UTC"),)
    slot = replace(plain.slot, budgets=budgets)
    assert pools_size(plain) == 1
    assert pools_size(replace(plain, slot=slot)) == 1 + size({"budgets": slot.claim()["budgets"]})
    pooled = replace(plain, lease=replace(plain.lease, shared=Shared("org", ("a", "bc"))))
    assert pools_size(pooled) == len("org ") + len("a ") + len("bc ")


# Junk


@given(JSON | st.dictionaries(st.sampled_from([*FULL.to_claims(), "reservation", "x"]), JSON, max_size=20))
def test_junk_is_an_attestation_or_refused(claims: Any) -> None:
    try:
        found = Attestation.from_claims(claims)
    except AttestationError as error:
        assert error.reason in ("malformed", "version")
    else:
        assert from_wire(found.to_claims()) == found


PLACES_FOR_JUNK = [
    (name,) if inner is None else (name, inner)
    for name, value in FULL.to_claims().items()
    for inner in [None, *(value if isinstance(value, dict) else ())]
]


@given(st.sampled_from(PLACES_FOR_JUNK), JSON | st.sampled_from([-1, LARGEST + 1, 10**400, float("inf"), float("nan")]))
def test_one_claim_of_junk_is_refused_by_its_name_or_read_as_it_is(place: tuple[str, ...], junk: Any) -> None:
    claims = json.loads(encode(FULL.to_claims()))
    *outer, last = place
    (claims[outer[0]] if outer else claims)[last] = junk
    try:
        found = Attestation.from_claims(claims)
    except AttestationError as error:
        assert error.reason == "version" or ".".join(place) in str(error)
    else:
        again = found.to_claims() | ({"v": claims["v"]} if "v" in claims else {})
        assert encode(again) == encode(claims) or not junk


@pytest.mark.parametrize("name", sorted({"iss", "aud", "mth", "pth", "iat", "exp", "jti"}))
def test_a_missing_claim(name: str) -> None:
    claims = FULL.to_claims()
    del claims[name]
    with pytest.raises(AttestationError, match=f"^the attestation's claim {name} is missing$"):
        Attestation.from_claims(claims)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"repository": "org/app"}, "claim repository is not known here"),
        ({"repo": "org/app"}, "claim repo is not an object"),
        ({"repo": {"ref": "main"}}, "claim repo.name is missing"),
        ({"repo": {"name": "org/app", "depth": 1}}, "claim repo.depth is not known here"),
        ({"clamp": {"max_usdd": 1}}, "claim clamp.max_usdd is not known here"),
        ({"clamp": {"rules": {"never": ["Bash"]}}}, "claim clamp.rules.never is not known here"),
        ({"clamp": {"max_turns": "3"}}, "claim clamp.max_turns is not of its type"),
        ({"clamp": {"max_turns": True}}, "claim clamp.max_turns is not of its type"),
        ({"clamp": {"max_turns": 3.0}}, "claim clamp.max_turns is not of its type"),
        ({"clamp": {"max_usd": -1}}, "claim clamp.max_usd is not of its type"),
        ({"clamp": {"models": "haiku"}}, "claim clamp.models is not of its type"),
        ({"clamp": {"tools": None}}, "claim clamp.tools is not of its type"),
        ({"clamp": {"egress": ["a.example:443", "a.example:443"]}}, "claim clamp.egress "),
        ({"clamp": {"features": None}}, "claim clamp.features is not of its type"),
        ({"clamp": {"mcp": "memory"}}, "claim clamp.mcp is not of its type"),
        ({"clamp": {"skills": None}}, "claim clamp.skills is not of its type"),
        ({"clamp": {"skills": ["pdf"], "default_skills": "pdf"}}, "claim clamp.default_skills is not of its type"),
        (
            {"clamp": {"skills": ["pdf"], "default_skills": ["docx"]}},
            "claim clamp.default_skills has some that are not",
        ),
        ({"clamp": {"features": ["code_execution"]}}, "claim clamp.features code_execution is not known"),
        ({"clamp": {"features": ["web_search", "fast_mode"]}}, "claim clamp.features is not written as the gateway"),
        ({"clamp": {"features": ["fast_mode", "fast_mode"]}}, "claim clamp.features is not written as the gateway"),
        ({"clamp": None}, "claim clamp is not an object"),
        ({"who": {"uid": 0}}, "claim who.uid is not known here"),
        ({"who": {"claims": []}}, "claim who.claims is not of its type"),
        ({"roles": "admin"}, "claim roles is not of its type"),
        ({"sub": None}, "claim sub is not of its type"),
        ({"slot": {"concurrent": 1, "places": 2}}, "claim slot has members that are not known here"),
        ({"slot": {"concurrent": "1"}}, "claim slot.concurrent is not of its type"),
        ({"lease": "nonsense"}, "claim lease is not a lease"),
        ({"queue": 1}, "claim queue is not of its type"),
        ({"msg": 1}, "claim msg is not of its type"),
        ({"msg": True}, "claim lease is of another kind than the request"),
        ({"lease": "claude alice v1.m.abc:0"}, "claim lease is of another kind than the request"),
        ({"add": {"replace": "x"}}, "claim add.replace is not known here"),
        ({"add": {"context": {"a": 1}}}, "claim add.context is not of its type"),
        ({"exp": "tomorrow"}, "claim exp is not of its type"),
        ({"v": "1"}, "claim v is not of its type"),
    ],
)
def test_each_malformed_claim_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(AttestationError, match=re.escape(text)) as refused:
        Attestation.from_claims(OLD | change)
    assert refused.value.reason == "malformed"
    Attestation.from_claims(OLD)  # the control


@pytest.mark.parametrize("without", ["lease", "sub"])
def test_what_belongs_to_something_does_not_stand_alone(without: str) -> None:
    """A slot without its lease would be bound by nothing, roles without a subject are nobody's."""
    with pytest.raises(AttestationError):
        Attestation.from_claims({name: value for name, value in OLD.items() if name != without})


def test_a_kind_does_not_stand_without_limits() -> None:
    alone = {name: value for name, value in OLD.items() if name not in ("clamp", "lease", "slot", "tier")}
    assert Attestation.from_claims(alone).kind == "run"
    assert Attestation.from_claims(alone | {"clamp": {}, "msg": True}).kind == "message"
    with pytest.raises(AttestationError, match="claim msg"):
        Attestation.from_claims(alone | {"msg": True})


# Versions


def test_a_lease_of_a_newer_release_is_told_as_that() -> None:
    """An admin has to upgrade something; a lease that is none would be somebody's fault."""
    newer = FULL.to_claims() | {"lease": "claude alice v9.abc:1"}
    with pytest.raises(AttestationError, match=r"the lease is of version 9, .* a newer release wrote it") as refused:
        Attestation.from_claims(newer)
    assert refused.value.reason == "version"


@pytest.mark.parametrize(
    ("lease", "slot", "text"),
    [
        ("claude alice v1.abc:1 * pool.a:*", {}, r"slot\.pools are not as many"),
        ("claude alice v1.abc:1 *", {"pools": [[1]]}, r"slot\.pools are not as many"),
        ("claude alice v1.abc:1", {"pools": [[1]]}, r"slot\.pools are not as many"),
        ("claude alice v1.abc:1 * pool.a:*", {"pools": [["many"]]}, "not known here"),
        ("claude alice v1.abc:1 * pool.a:*", {"pools": [[-1]]}, "not known here"),
        ("claude alice v1.abc:1 * pool.a:*", {"pools": [[1, "5 day Europe/Atlantis"]]}, "a budget that is none"),
        ("claude alice v1.abc:1", {"budgets": ["5 year UTC"]}, "a budget that is none"),
        ("claude alice v1.abc:1", {"budgets": ["-5 day UTC"]}, "a budget that is none"),
        ("claude alice v1.abc:1", {"budgets": "5 day UTC"}, "not known here"),
        ("claude alice v1.abc:1 * " + " ".join("abcde"), {"pools": [[1]] * 5}, "is not a lease"),
    ],
)
def test_pools_that_cannot_be_obeyed_are_refused(lease: str, slot: dict[str, Any], text: str) -> None:
    good = {"lease": "claude alice v1.abc:1 * pool.a:*", "slot": {"pools": [[1, "5 day Europe/Berlin"]]}}
    assert from_wire(OLD | {"v": VERSION} | good).place  # the control
    with pytest.raises(AttestationError, match=text):
        from_wire(OLD | {"v": VERSION, "lease": lease, "slot": slot})


def test_limits_without_a_tier_leave_no_tier() -> None:
    """The identity's tier does not apply where the limits say that none does."""
    written = replace(FULL, identity=Identity("alice", tier="pro"), limits=Limits(None))
    assert (written.tier, Attestation.from_claims(written.to_claims()).tier) == (None, None)


def test_what_release_0_1_0_wrote_is_read() -> None:
    found = from_wire(OLD)
    assert found.binding == Binding("kong-claude", "claude-invoker", "POST", "/claude/invoke", UUID, "q-1")
    assert found.identity == Identity("alice", "kong-claude-dev", "pro", ("claude:invoke",))
    assert found.clamp == Clamp(("haiku", "sonnet"), ("Read", "Write"), 25, 2)
    slot = Slot(4, 2_000_000, 50_000_000, None, 60_000)
    assert found.place == Place(Lease("claude", "alice", "vXp3Tl2YxZgZQn0A:2000000"), slot)
    assert found.additions == Additions("You are. ", "", {"branch": None, "repository": "org/app"})
    assert found.to_claims() == {name: value for name, value in OLD.items() if name != "reservation"} | {"v": VERSION}


@pytest.mark.parametrize("version", range(6))
def test_a_reader_takes_its_version_and_the_one_before(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "VERSION", 3)
    claims = OLD | {"v": version}
    if version in (2, 3):
        assert Attestation.from_claims(claims).to_claims()["v"] == 3
        return
    with pytest.raises(AttestationError) as refused:
        Attestation.from_claims(claims)
    assert refused.value.reason == "version"
    late = "the gateway's plugins" if version < 3 else "what reads it, the invoker before the gateway"
    said = f"the attestation is of version {version}, only 2 and 3 are read here: upgrade {late}"
    assert str(refused.value) == said


def test_one_without_a_version_is_of_version_0(monkeypatch: pytest.MonkeyPatch) -> None:
    Attestation.from_claims(OLD)
    monkeypatch.setattr(contract, "VERSION", 2)
    with pytest.raises(AttestationError, match=r"version 0, only 1 and 2 .* upgrade the gateway's plugins"):
        Attestation.from_claims(OLD)


# Size


def key(kind: str) -> bytes | Ed25519PrivateKey:
    return Ed25519PrivateKey.generate() if kind == "EdDSA" else b"s" * 32


@pytest.mark.parametrize("kind", ["HS256", "EdDSA"])
def test_all_parts_at_their_largest_fit_into_one_header(kind: str) -> None:
    made = key(kind)
    signer = Signer("k" * KID_ROOM, made, {"k" * KID_ROOM: made}, FULL.binding.issuer, FULL.binding.audience)
    now = signer.open(method="M", path="/", route="", request_id="")
    whole = replace(FULL, issued_at=now.issued_at, expires_at=now.expires_at)
    header = signer.sign(whole)
    assert len(header) <= MAX_HEADER
    assert verify(header, signer.keys, issuer=signer.issuer, audience=signer.audience) == whole


def test_a_larger_one_is_not_signed() -> None:
    signer = Signer("1", b"s" * 32, {})
    with pytest.raises(AttestationError, match=f"at most {MAX_HEADER} are sent") as refused:
        signer.sign(replace(FULL, checks=("x" * 2000,)))
    assert refused.value.reason == "too_large"


@pytest.mark.parametrize(
    ("path", "readable"),
    [("/claude/invoke", True), ("/" + "a" * 127, True), ("/" + "a" * 128, False), ("/a b", False), ('/"', False)],
)
def test_a_path_is_attested_as_it_is_where_it_is_short_and_plain(path: str, readable: bool) -> None:
    assert path_claim(path) == (path if readable else f"sha256:{body_hash(path.encode())}")


@given(st.text(max_size=200) | st.text("abc/%", max_size=200), st.text(max_size=200))
def test_the_claim_of_a_path_is_short_and_its_own(one: str, other: str) -> None:
    assert size(path_claim("/" + one)) <= 130  # with the quotes
    assert (path_claim("/" + one) == path_claim("/" + other)) == (one == other)


# The documents


def test_the_table_in_the_documents_names_every_claim() -> None:
    written = set()
    for name, value in FULL.to_claims().items():
        written |= {f"{name}.{inner}" for inner in value} if name in ("who", "clamp", "slot", "add", "repo") else {name}
    section = DOCUMENT.read_text().partition("| claim |")[2].partition("\n\n")[0]
    documented = {name for row in section.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1:2][0])}
    assert documented == written


def test_the_rooms_in_the_documents() -> None:
    text = DOCUMENT.read_text()
    for number in (MAX_HEADER, IDENTITY_ROOM, CLAMP_ROOM, ADDITIONS_ROOM, POOLS_ROOM):
        assert f"{number:,} bytes" in text
