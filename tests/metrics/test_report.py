"""`kong-claude report`: right sums, bounded memory, broken lines survived, and pages that hold what they should."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from claude_invoker.audit.line import Entry
from claude_invoker.audit.log import Log, pairs
from claude_invoker.audit.person import forget
from kong_claude.report import charts, render
from kong_claude.report.read import parse
from kong_claude.report.summary import DIMENSIONS, MAX_GROUPS, MAX_SERIES, MAX_SLOTS, OTHERS, Quantiles, Summary

COMMAND = str(Path(sys.executable).parent / "kong-claude")
NOW = time.time()


def line(**more: Any) -> dict[str, Any]:
    base = {"time": NOW - 60, "status": 200, "request_time": 1.0, "subject": "ada", "tier": "pro", "model": "haiku",
            "route": "claude-invoke", "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.5, "refusal": "",
            "repository": "org/app", "team": "core", "run_id": "run_1", "request_id": "r"}  # fmt: skip
    return base | more


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_sums_groups_and_spans(tmp_path: Path) -> None:
    lines = [line() for _ in range(6)]
    lines += [line(tier="free", model="opus", cost_usd=2, status=502)]
    lines += [line(tier="", model="", cost_usd=0, status=429, refusal="rate-tiers/rate_limited", request_time=0.001)]
    lines += [line(time=NOW - 30 * 86400)]
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    (tmp_path / "access.jsonl").write_text(text + '{"broken\nnull\n{"status": "x", "time": 1}\n[]\n\n')
    with gzip.open(tmp_path / "access.jsonl.1.gz", "wt") as packed:
        packed.write(json.dumps(line(request_time=99, run_id="run_slow")) + "\n")
    config = tmp_path / "kong.yml"
    config.write_text("x: {tiers: [{name: pro, minute: 7}, {name: free, minute: 100}]}")
    done = report(tmp_path, "--out", tmp_path / "r.json", "--config", config)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["broken_lines"] == 5
    printed = json.loads(report(tmp_path, "--json", "--config", config).stdout)
    assert printed["total"] == found["total"] and printed["by_tier"] == found["by_tier"]
    assert found["outside"] == 1
    assert found["total"] | {"p50_s": 0, "p95_s": 0, "p99_s": 0} == {
        "requests": 9, "refusals": 1, "errors": 1, "input_tokens": 90, "output_tokens": 45, "cost_usd": 5.5,
        "p50_s": 0, "p95_s": 0, "p99_s": 0}  # fmt: skip
    assert found["by_tier"]["pro"]["requests"] == 7
    assert found["by_model"]["opus"]["cost_usd"] == 2
    assert found["refusals"] == {"rate-tiers/rate_limited": 1}
    assert found["slowest"][0]["run_id"] == "run_slow"
    assert found["peaks_per_minute"]["pro"] == 7
    assert any("Tier pro" in hint and "raising" in hint for hint in found["hints"])


def test_with_the_audit_log_costs_are_its_alone(tmp_path: Path) -> None:
    """Of an answer that has said none, of what was cancelled, of jobs and messages; as far as it is still told."""
    (tmp_path / "access.jsonl").write_text("".join(json.dumps(line(cost_usd=usd)) + "\n" for usd in (0, 7)))
    tokens = {"input": 1, "output": 2, "cache_read": 3, "cache_write_5m": 4, "cache_write_1h": 5, "web_searches": 6}
    its = {"tier": "pro", "team": "core", "model": "haiku", "route": "an-id", "tokens": tokens}
    logs = [Log(tmp_path / name, rotate_bytes=400) for name in ("one", "two")]
    for log, entries in zip(
        logs,
        (
            [
                Entry("run.start", "ada", "ada", its | {"cost_usd": 100}),
                Entry("run.end", "ada", "ada", its | {"cost_usd": 0.000001, "end": "cancelled", "job": True}),
                Entry("run.end", "ada", "ada", its | {"cost_usd": 9}, datetime.now(UTC) - timedelta(days=9)),
                Entry("run.end", "eve", "eve", its | {"cost_usd": 50}),
            ],
            [
                Entry("message.end", "bob", "bob", its | {"cost_usd": 0.25, "answered_by": ["opus"], "tier": "free"}),
                Entry("run.end", "bob", "bob", its | {"cost_usd": 0, "repository": "org/lib", "tokens": {}}),
            ],
        ),
        strict=True,
    ):
        log.open()
        for entry in entries:
            log.append([entry])
    assert len(pairs(logs[0].directory)) > 1
    forget(logs[0].directory, "eve", "root")
    # A log that is named twice, as itself and as a copy of before it went on, is counted once.
    shutil.copytree(logs[1].directory, tmp_path / "copy")
    logs[1].append([Entry("message.end", "bob", "bob", its | {"cost_usd": 0.5, "tier": "free"})])
    audited = [part for place in (tmp_path / "copy", *(log.directory for log in logs)) for part in ("--audit", place)]
    audited += ["--audit", logs[0].directory]
    with pairs(logs[1].directory)[-1].lines.open("a") as being_written:
        being_written.write('{"seq":9,"at":"2026')
    found = json.loads(report(tmp_path / "access.jsonl", "--json", *audited).stdout)
    assert (found["total"]["requests"], found["total"]["cost_usd"]) == (2, 0.750001)
    assert (found["total"]["input_tokens"], found["total"]["output_tokens"]) == (39, 6)
    costs = {name: {value: group["cost_usd"] for value, group in found[f"by_{name}"].items()} for name in DIMENSIONS}
    assert costs == {
        "tier": {"free": 0.75, "pro": 0.000001},
        "team": {"core": 0.750001},
        "model": {"opus": 0.25, "haiku": 0.500001},
        # The log says on which one a run has worked, not which one a header has named: not known is not nothing.
        "repository": {"org/app": None, "org/lib": 0},
        "route": {"claude-invoke": None},
    }
    assert sum(found["cost_usd_over_time"]["tier"]["free"].values()) == 0.75
    assert (found["cost_from"], found["unpriced"]) == ("audit log", 1)
    shown = report(tmp_path / "access.jsonl", *audited).stdout
    assert "as the audit log has them" in shown and "1 runs and messages of the audit log do not say" in shown
    # The control: without it they are the access log's, which says so.
    alone = json.loads(report(tmp_path / "access.jsonl", "--json").stdout)
    assert (alone["total"]["cost_usd"], alone["cost_from"], alone["by_route"]["claude-invoke"]["cost_usd"]) == (
        7, "access log", 7)  # fmt: skip
    assert "without streams, jobs" in alone["counted"]
    # Without an access log: the same costs, and of requests nothing is said, not even 0.
    found = json.loads(report("--json", *audited).stdout)
    assert (found["total"]["requests"], found["total"]["p99_s"], found["total"]["cost_usd"]) == (None, None, 0.750001)
    assert found["by_tier"]["free"]["cost_usd"] == 0.75 and found["by_tier"]["free"]["refusals"] is None
    shown = report(*audited).stdout
    assert "- **requests**: –" in shown and "- **cost**: $0.7500" in shown and "Without an access log" in shown
    written = report(*audited, "--out", tmp_path / "r.md")
    assert (written.returncode, written.stderr) == (0, f"{tmp_path / 'r.md'}: written, without access logs\n")
    page = render.page(found)
    assert "Cost over time" in page and "Requests, refusals" not in page
    neither = report("--json")
    assert neither.returncode == 2 and "--audit DIR" in neither.stderr
    (tmp_path / "empty").mkdir()
    for place, says in (("nowhere", "nowhere: No such file"), ("empty", "empty: there is no audit log in it")):
        wrong = report(tmp_path / "access.jsonl", "--audit", tmp_path / place)
        assert wrong.returncode != 0 and says in wrong.stderr, wrong.stdout


@pytest.mark.parametrize(
    ("cost", "shown"),
    [(0.0047, "$0.0047"), (0.000224, "$0.0002"), (0.999, "$0.9990"), (1, "$1.00"), (1234.5, "$1,234.50"), (0, "$0.00")],
)
def test_a_small_cost_is_not_shown_as_none(cost: float, shown: str) -> None:
    summary = Summary(NOW - 3600, NOW)
    summary.add(line(cost_usd=cost))
    document = summary.document()
    assert ("cost", shown) in render.figures(document)
    by_tier = next(rows for title, _, rows in render.tables(document) if title == "By tier")
    assert shown in by_tier[0]


def test_what_is_charted_is_what_the_tables_say() -> None:
    summary = Summary(NOW - 7 * 86400, NOW)
    generator = random.Random(7)
    for _ in range(2000):
        at, usd = NOW - 1 - generator.uniform(0, 6 * 86400), round(generator.uniform(0, 2), 4)
        model, tier, team = (f"{name}{generator.randrange(9)}" for name in ("m", "t", ""))
        summary.add(line(time=at, cost_usd=usd, model=model, tier=tier, team=team))
    document = summary.document()
    over_time = document["cost_usd_over_time"]
    assert set(over_time) == {"tier", "team", "model"} and document["slot_s"] == 3600
    for name, series in over_time.items():
        table = {value: group["cost_usd"] for value, group in document[f"by_{name}"].items()}
        assert {value: pytest.approx(sum(slots.values())) for value, slots in series.items()} == table
        assert list(series) == list(table), "the dearest first"
        drawn = charts._dearest(series)
        assert len(drawn) == len(charts.SERIES) and list(drawn)[-1] == OTHERS
        assert sum(sum(slots.values()) for slots in drawn.values()) == pytest.approx(document["total"]["cost_usd"])
    page = render.page(document)
    assert page.count("<img ") == 4 and "Cost by model over time" in page


def test_series_and_slots_are_bounded() -> None:
    for days in (1, 14, 15, 400, 4000):
        summary = Summary(NOW - days * 86400, NOW)
        for number in range(3000):
            summary.add(line(time=NOW - 1 - number * days * 28, model=f"m{number % (2 * MAX_SERIES)}"))
        series = summary.document()["cost_usd_over_time"]["model"]
        assert len(series) == MAX_SERIES + 1 and max(map(len, series.values())) <= MAX_SLOTS + 1


def test_any_name_can_be_charted() -> None:
    summary = Summary(NOW - 3600, NOW)
    for name in ("_hidden", "$x^2$", "\\frac", "-->", "\x1b[31m", ""):
        summary.add(line(model=name, tier=name, team=""))
    page = render.page(summary.document())
    assert "Cost by model over time" in page and "Cost by team over time" not in page


def test_a_report_of_nothing_has_no_chart_of_money() -> None:
    assert render.page(Summary(NOW - 3600, NOW).document()).count("<img ") == 1


def test_percentiles_are_right_to_a_few_percent() -> None:
    generator, quantiles = random.Random(3), Quantiles()
    values = sorted(generator.lognormvariate(0, 2) for _ in range(20_000))
    for value in values:
        quantiles.add(value)
    for share in (0.5, 0.9, 0.95, 0.99):
        assert math.isclose(quantiles.at(share), values[int(share * len(values))], rel_tol=0.03)
    assert len(quantiles.counts) < 600


def test_groups_are_bounded() -> None:
    summary = Summary(0, NOW + 1)
    for number in range(MAX_GROUPS + 500):
        summary.add(line(repository=f"org/{number}"))
    assert len(summary.groups["repository"]) == MAX_GROUPS + 1
    assert summary.groups["repository"]["(others)"].requests == 500


@pytest.mark.parametrize("raw", [b"", b"\n", b"null", b"[]", b'{"status":200}', b'{"status":200,"time_local":7}', b"\xff",
                                 b"[" * 5000])  # fmt: skip
def test_what_is_no_line(raw: bytes) -> None:
    assert parse(raw) is None


@pytest.mark.parametrize("changed", [{"status": None}, {"cost_usd": "NaN"}, {"request_time": [1]}, {"time": 1e400}])
def test_lines_with_other_kinds_of_values_are_broken(changed: dict[str, Any]) -> None:
    summary = Summary(0, NOW + 1)
    summary.add(line(**changed))
    assert (summary.broken, summary.all.requests) == (1, 0)


def test_a_page_is_inert_and_complete(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    evil = "<script>alert(1)</script>|\x1b[31m$x^2$"
    log.write_text(json.dumps(line(team=evil, model=evil)) + "\n")
    for form in ("html", "md", "pdf"):
        done = report(log, "--out", tmp_path / f"r.{form}")
        assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "\x1b" not in page + (tmp_path / "r.md").read_text()
    assert (tmp_path / "r.pdf").read_bytes().startswith(b"%PDF")
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", tmp_path / "r.pdf", "-"], capture_output=True, text=True).stdout
        assert "Claude gateway" in text
        assert "By tier" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nonexistent/a.jsonl"], "not there"),
        (["a", "--out", "r.doc"], ".pdf"),
        (["a", "--since", "x"], "length of time"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    done = report(*arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """The long form reads a gigabyte: make metrics-long."""
    size = int(os.environ.get("REPORT_BYTES", 20 << 20))
    block = b"".join(
        json.dumps(line(subject=f"u{i}", request_time=i / 100, run_id=f"run_{i:024x}", pad="x" * 300)).encode() + b"\n"
        for i in range(2000)
    )
    log = tmp_path / "big.jsonl"
    with log.open("wb") as out:
        for _ in range(size // len(block) + 1):
            out.write(block)
    began = time.monotonic()
    command = [COMMAND, "report", str(log), "--out", str(tmp_path / "r.json")]
    with open(tmp_path / "stderr", "wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    peak, watched = 0, psutil.Process(process.pid)
    # Polled, since ru_maxrss of a child starts with what its parent had when it forked.
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            if "report" in watched.cmdline():
                peak = max(peak, watched.memory_info().rss)
        time.sleep(0.02)
    print(f"{log.stat().st_size >> 20} MiB in {time.monotonic() - began:.1f} s", file=sys.stderr)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    log.unlink()
    print(f"peak {peak >> 20} MiB", file=sys.stderr)
    assert 0 < peak < 250 << 20


def test_cost_of_streams_and_jobs_comes_from_prometheus(tmp_path: Path) -> None:
    queries: list[str] = []

    class Prometheus(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            queries.extend(parse_qs(urlsplit(self.path).query)["query"])
            result = [{"metric": {"tier": "pro"}, "value": [NOW, "12.5"]}]
            body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    log = tmp_path / "a.jsonl"
    log.write_text(json.dumps(line()) + "\n")
    with http.server.HTTPServer(("127.0.0.1", 0), Prometheus) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = report(log, "--since", "2h", "--prometheus", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert queries == ["sum by (tier) (increase(claude_invoker_cost_usd_total[7200s]))"]
    assert "| pro | $12.50 |" in done.stdout
    assert report(log, "--prometheus", "http://127.0.0.1:1").returncode == 2


def test_a_caller_cannot_drop_out_by_bytes_that_are_no_utf8() -> None:
    """nginx's escape=json passes them on."""
    raw = b'{"time": 50, "status": "200", "request_time": "1", "tier": "pro", "http_user_agent": "\xff\xfe"}'
    summary = Summary(0, 100)
    summary.add(parse(raw))
    summary.add(parse(raw.replace(b"\xff\xfe", b"fine")))
    summary.add(parse(b"\xff" + raw))
    document = summary.document()
    assert document["total"]["requests"] == 2
    assert document["by_tier"]["pro"]["requests"] == 2
    assert (document["not_utf8_lines"], document["broken_lines"]) == (1, 1)
    assert any("no UTF-8" in hint for hint in document["hints"])
