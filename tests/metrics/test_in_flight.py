"""What is in flight: ended once, by whom it belongs to, and never kept for ever."""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from claude_contract.claims import Attestation, Binding, Limits
from claude_contract.identity import Identity
from kong_claude import in_flight


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Begins with none in flight, whatever other tests of this process have let through."""
    monkeypatch.setattr(in_flight, "_entries", OrderedDict())
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
    with monkeypatch.context() as patched:
        patched.setattr(in_flight, "MAX_SECONDS", -1.0)
        assert in_flight.count() == 0
    monkeypatch.setattr(in_flight, "MAX_ENTRIES", 3)
    for number in range(9):
        in_flight.begin(replace(ATTESTED, id=str(number)))
    assert in_flight.count() == 3


def test_what_begins_before_anybody_watches_is_found(watched: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """claude-metrics begins with its first log phase, which is after the first request; and anew with each
    configuration. Without it no more than the newest are kept, and none counts as in flight."""
    in_flight.unwatch(watched)
    monkeypatch.setattr(in_flight, "MAX_UNWATCHED", 3)
    for number in range(9):
        in_flight.begin(replace(ATTESTED, id=str(number)))
    assert in_flight.count() == 0
    in_flight.watch(watched)
    assert in_flight.count() == 3
    assert in_flight.end(header({"jti": "5"})) is None
    found = in_flight.end(header({"jti": "8"}))
    assert found is not None
    assert found.subject == "ada"
    for kept in ("6", "7"):
        in_flight.end(header({"jti": kept}))


def test_one_generation_ends_what_another_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a `kong reload`, while both live and when the older one has left what it knew."""
    from kong_claude import generations

    in_flight.begin(ATTESTED)
    ((_, *ada),) = in_flight._entries.values()
    left = generations.bequests[in_flight.INHERITED]()
    monkeypatch.setattr(in_flight, "_entries", OrderedDict())
    monkeypatch.setattr(generations, "_others", [lambda question, jti: iter([[0.0, *ada]] if jti == "abc" else [])])
    asked = in_flight.end(header(CLAIMS))
    assert asked is not None
    assert asked[1:] == ("ada", "pro", "core")
    assert in_flight.end(header({"jti": "unknown"})) is None
    assert generations.answers[in_flight.INHERITED](left)
    monkeypatch.setattr(generations, "_others", [generations._nobody])
    inherited = in_flight.end(header(CLAIMS))
    assert inherited is not None
    assert inherited[1:] == asked[1:]
