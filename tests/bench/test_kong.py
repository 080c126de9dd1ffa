"""The bench against a real Kong: what it says without one, how it makes ratios; and with KONG set, that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench.kong.__main__ import summary


def run(*arguments: str, kong: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.kong", *arguments]
    return subprocess.run(command, env={**os.environ, "KONG": kong}, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kong", ["", "/nowhere/kong"])
def test_without_kong_it_says_so_in_one_line(kong: str) -> None:
    done = run(kong=kong)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == ["bench.kong needs a real Kong 3.9: set KONG to the path of its program"]


def test_a_ratio_is_made_within_a_round() -> None:
    """The machine was twice as fast in the second round: ratios do not see it."""
    ours, trio = (
        {"rps": [100.0, 300.0, 100.0], "p99_ms": [2.0] * 3},
        {"rps": [200.0, 200.0, 200.0], "p99_ms": [4.0] * 3},
    )
    found = summary({"gateway": ours, "trio": trio})
    assert (found["x_trio_gateway"], found["p99_vs_trio"]) == (0.5, 0.5)
    assert (found["rps_gateway"], found["rps_trio"]) == (100.0, 200.0)
    assert "x_trio_apart" not in found


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("KONG"), reason="needs a real Kong: set KONG to the path of its program")
def test_with_kong_every_row_is_answered() -> None:
    done = run("--rounds", "1", "--seconds", "0.2", kong=os.environ["KONG"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for key in ("gateway", "gateway_body", "apart", "shipped"):
        assert found[f"x_trio_{key}"] > 0 < found[f"x_trio_{key}_pair"]
    assert found["kong_us_gateway"] > 0 < found["p99_vs_trio"]
