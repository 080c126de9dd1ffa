"""What this process has signed itself: the same as if it had been verified, and nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from claude_contract import attestation as module
from claude_contract.attestation import HEADER, Signer
from claude_contract.claims import Attestation, Limits, encode
from claude_contract.identity import Identity
from claude_contract.members import AttestationError
from kong_claude import pipeline
from kong_claude.decision import Pass
from kong_claude.signed import Signed, received
from tests.core.test_claims import ATTESTATIONS, IDENTITIES, LIMITS, maybe
from tests.core.test_pipeline import ATTESTATION, ID, Fixed, Kong, attested, run

SECRET, OTHER = b"s" * 32, b"o" * 32
PRIVATE = Ed25519PrivateKey.from_private_bytes(SECRET)
SAME = Ed25519PrivateKey.from_private_bytes(SECRET)


def signer(kid: str, key: Any, **previous: Any) -> Signer:
    return Signer(kid, key, {kid: key, **previous})


def opened(by: Signer) -> Attestation:
    return by.open(method="POST", path="/claude/invoke", route="r", request_id="q")


@given(ATTESTATIONS, maybe(IDENTITIES), maybe(LIMITS))
def test_what_is_taken_is_what_would_have_been_read(
    drawn: Attestation, identity: Identity | None, limits: Limits | None
) -> None:
    """Also of an identity and limits whose tiers differ."""
    attestation = structs.replace(drawn, identity=identity, limits=limits)
    assert received(attestation) == Attestation.from_claims(json.loads(encode(attestation.to_claims())))


@pytest.mark.parametrize(
    ("by", "reader", "taken"),
    [
        (signer("1", SECRET), signer("1", SECRET), True),
        (signer("1", PRIVATE), signer("1", SAME), True),
        (signer("1", SECRET), signer("2", OTHER, **{"1": SECRET}), True),
        (signer("1", PRIVATE), signer("2", SECRET, **{"1": SAME.public_key()}), True),
        (signer("1", SECRET), signer("1", OTHER), False),
        (signer("1", SECRET), signer("2", SECRET), False),
        (signer("1", SECRET), signer("2", OTHER), False),
        (signer("1", PRIVATE.public_key().public_bytes_raw()), signer("1", PRIVATE), False),
        (signer("1", PRIVATE), signer("1", PRIVATE.public_key().public_bytes_raw()), False),
    ],
)
def test_it_is_taken_by_whom_its_key_is_known_as_if_it_were_verified(by: Signer, reader: Signer, taken: bool) -> None:
    kept, attestation = Signed(), opened(by)
    header = by.sign(attestation)
    kept.keep(header, by, attestation)
    try:
        reader.resume(header, attestation.binding)
        verified = True
    except AttestationError:
        verified = False
    assert (kept.take(header, reader) == attestation, verified) == (taken, taken)


def test_each_is_taken_once_and_only_by_its_whole_header() -> None:
    by = signer("1", SECRET)
    kept, attestation = Signed(), opened(by)
    header = by.sign(attestation)
    kept.keep(header, by, attestation)
    assert kept.take(header[:-1], by) is None
    assert kept.take(header[:-1] + ("A" if header[-1] != "A" else "B"), by) is None
    assert kept.take(header, by) == attestation
    assert kept.take(header, by) is None


def test_it_is_bounded_and_forgets_the_oldest() -> None:
    by = signer("1", SECRET)
    kept, attestation = Signed(room=2), opened(by)
    for name in ("a", "b", "c"):
        kept.keep(name, by, attestation)
    assert [kept.take(name, by) is not None for name in ("a", "b", "c")] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"expires_at": int(time.time()) - 1}, "expired"),
        ({"issued_at": int(time.time()) + 86400}, "invalid"),  # seen from a suite that takes minutes, too
        ({"binding": structs.replace(opened(signer("1", SECRET)).binding, request_id="q2")}, "mismatch"),
        ({"binding": structs.replace(opened(signer("1", SECRET)).binding, issuer="another")}, "invalid"),
    ],
)
def test_what_is_known_without_verifying_it_must_be_in_force_and_of_this_request(
    change: dict[str, Any], reason: str | None
) -> None:
    by = signer("1", SECRET)
    fresh = opened(by)
    earlier = structs.replace(fresh, **change)
    for known in (earlier, None):  # and verified the same
        try:
            assert by.resume(by.sign(earlier), fresh.binding, known) == earlier
            assert reason is None
        except AttestationError as error:
            assert error.reason == reason


@given(st.booleans())
def test_the_next_plugin_of_a_request_verifies_only_what_another_process_signed(here: bool) -> None:
    verified: list[str] = []
    really = module._verified

    def counting(header: str, keys: Any) -> Any:
        verified.append(header)
        return really(header, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "SIGNED", Signed())
        patch.setattr(module, "_verified", counting)
        first = run([Fixed(Pass(claims=Identity("alice")))], Kong(ID), attestation=ATTESTATION)
        header = first.args("service.request.set_headers")[0][HEADER]
        if not here:
            patch.setattr(pipeline, "SIGNED", Signed())
        second = run([Fixed(Pass(), "two")], Kong({**ID, HEADER.lower(): header}), attestation=ATTESTATION)
        counted = len(verified)
        assert (attested(second)["sub"], attested(second)["chk"]) == ("alice", ["one", "two"])
        assert counted == (0 if here else 1)
        # Sent once more, by another request: it is verified, and belongs to none.
        other = run(
            [Fixed(Pass(), "two")], Kong({"x-request-id": "r-2", HEADER.lower(): header}), attestation=ATTESTATION
        )
        assert "sub" not in attested(other)
