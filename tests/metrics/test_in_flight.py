"""What is in flight: ended once, by whom it belongs to, and never kept for ever."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from claude_contract.claims import Attestation, Binding, Limits
from claude_contract.identity import Identity
from kong_claude import in_flight


@pytest.fixture(autouse=True)
def watched() -> Iterator[object]:
    watcher = object()
    in_flight.watch(watcher)
    yield watcher
    in_flight.unwatch(watcher)


def header(claims: object) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.sig"


ADA = Identity("ada", tier="pro", claims={"team": "core"})
ATTESTED = Attestation(Binding("i", "a", "POST", "/x", "r", "q"), 0, 30, "abc", identity=ADA)
CLAIMS = ATTESTED.to_claims()


def test_a_request_ends_once_with_what_was_found() -> None:
    in_flight.begin(ATTESTED)
    in_flight.begin(replace(ATTESTED, limits=Limits("team")))  # a later plugin of the same request
    assert in_flight.count() == 1
    found = in_flight.end(header({"jti": "abc", "sub": "mallory", "tier": "root"}))
    assert found is not None
    assert found[1:] == ("ada", "team", "core")
    assert in_flight.end(header(CLAIMS)) is None
    assert in_flight.count() == 0


@pytest.mark.parametrize("forged", ["", "x", "a.b", "a.!.c", header([]), header(7), header({"jti": 5}), header({}),
                                    header({"jti": "unknown"}), "a." + "A" * 9 + ".c", "\udcff.\udcff.x"])  # fmt: skip
def test_forged_headers_end_nothing(forged: str) -> None:
    in_flight.begin(ATTESTED)
    assert in_flight.end(forged) is None
    assert in_flight.count() == 1
    in_flight.end(header(CLAIMS))


def test_nothing_is_kept_that_nobody_ends(watched: object, monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight.begin(ATTESTED)
    monkeypatch.setattr(in_flight, "MAX_SECONDS", -1.0)
    assert in_flight.count() == 0
    monkeypatch.undo()
    monkeypatch.setattr(in_flight, "MAX_ENTRIES", 3)
    for number in range(9):
        in_flight.begin(replace(ATTESTED, id=str(number)))
    assert in_flight.count() == 3
    in_flight.unwatch(watched)
    assert in_flight.count() == 0
    in_flight.begin(ATTESTED)
    assert in_flight.count() == 0
