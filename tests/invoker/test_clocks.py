"""docs/clocks.md: an invoker whose clock is not the gateway's."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from claude_contract.attestation import HEADER
from tests.invoker.conftest import Invoker
from tests.invoker.test_trust import PATH, SECRET, application, attestation
from tests.support.waiting import HANG_S

LET_IN = (404, None)  # there is no such run
FUTURE = (401, 'X-Claude-Attestation error="invalid"')
EXPIRED = (401, 'X-Claude-Attestation error="expired"')


@pytest.mark.parametrize(
    ("gateway_s", "expected"),
    [(-3600, EXPIRED), (-60, EXPIRED), (-15, LET_IN), (4, LET_IN), (60, FUTURE), (3600, FUTURE)],
)
async def test_a_gateway_of_another_clock(tmp_path: Path, gateway_s: int, expected: tuple[int, str | None]) -> None:
    """Its attestation lives thirty seconds, and the invoker forgives five."""
    async with application(tmp_path) as client:
        header = attestation("GET", PATH, now=time.time() + gateway_s)
        answer = await client.get(PATH, headers={HEADER: header})
    assert (answer.status_code, answer.headers.get("www-authenticate")) == expected
    assert ("compare the clocks" in answer.text) == (expected == FUTURE)


@pytest.mark.slow
@pytest.mark.parametrize(("invoker_s", "expected"), [(-600, FUTURE), (600, EXPIRED)])
def test_an_invoker_of_another_clock(
    start_invoker: Callable[..., Invoker], invoker_s: int, expected: tuple[int, str | None]
) -> None:
    """A process of its own. It tells its clock, and works."""
    with start_invoker(trust="attested", attestation_key=SECRET, ahead_s=invoker_s).client() as client:
        told = parsedate_to_datetime(client.get("/healthz").headers["date"]).timestamp()
        assert abs(told - time.time() - invoker_s) < HANG_S
        answer = client.get(PATH, headers={HEADER: attestation("GET", PATH)})
        assert (answer.status_code, answer.headers.get("www-authenticate")) == expected
        same = attestation("GET", PATH, now=time.time() + invoker_s)
        assert client.get(PATH, headers={HEADER: same}).status_code == 404
