"""A team's budget, from the token's claim to the invoker's booking: with small figures in the example's place."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from claude_contract.ledger import micro_usd
from claude_invoker.audit.log import locked, pairs
from kong_claude_local.stack import METRICS_PORT
from tests.e2e.conftest import COMMAND, ROOT, Gateway, standing
from tests.support.prometheus import needs_prometheus, scraping
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.xdist_group("pools")
PROMPT = {"prompt": "hi", "system": "Be brief."}
FIGURES = {"max_usd_per_run: 2": "max_usd_per_run: 1", "usd: 500,": "usd: 1,", "concurrent: 20": "concurrent: 1"}
# A dollar a day, which the first run takes; and what is done then.
MORE_TIERS = """\
          - {name: talker, usd_per_day: 1, max_usd_per_run: 0.2, models: [haiku], pools: [everybody],
             messages: {minute: 9, concurrent: 1}}
          - {name: thrifty, usd_per_day: 1, max_usd_per_run: 1, models: [haiku, sonnet], pools: [], on_budget: model,
             cheaper: {model: haiku, up_to_percent: 130, max_usd_per_run: 0.25}}
          - {name: patient, usd_per_day: 1, max_usd_per_run: 1, pools: [], on_budget: queue}
"""
MORE_ROUTES = """
  - name: claude-messages
    paths: ["~/claude/v1/messages$"]
    methods: [POST]
    strip_path: false
    plugins:
    - name: claude-gateway
      config: {attestation: *signed, jwt_claims: *caller, rate_tiers: {<<: *limits, by_model: true}}
  - name: claude-dashboard-limits
    paths: ["~/claude/dashboard/(limits|catalog)$"]
    methods: [GET]
    strip_path: false
    plugins:
    - name: claude-gateway
      config: {attestation: *signed, jwt_claims: *caller, rate_tiers: {<<: *limits, tell: true}}
  - name: claude-dashboard
    paths: [/claude/dashboard]
    methods: [GET]
    strip_path: false
    plugins:
    - name: claude-gateway
      config: {attestation: *signed, jwt_claims: *caller}
"""
METRICS = """
plugins:
- name: claude-metrics
  config: {{access_log: {{file: {home}/access.jsonl}}}}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("pools")
    text = (ROOT / "examples" / "pools.yml").read_text()
    for given, small in FIGURES.items():
        assert given in text
        text = text.replace(given, small)
    text = (
        text.replace("          pools:\n", MORE_TIERS + "          pools:\n", 1)
        + MORE_ROUTES
        + METRICS.format(home=home)
    )
    (home / "kong.yml").write_text(text)
    with standing(home, config=home / "kong.yml") as found:
        yield found


def pools_of(stack: Gateway, subject: str, team: str) -> dict[str, Any]:
    with stack.client(subject, "--tier", "pro", "--claim", f"team={team}") as client:
        report = client.get("/claude/limits")
    assert report.status_code == 200, report.text
    return {pool["name"]: pool for pool in report.json()["pools"]}


def spent(stack: Gateway, team: str, pool: str) -> float:
    return float(pools_of(stack, "nobody-yet", team)[pool]["usd"]["budgets"][0]["spent"])


def until_booked(stack: Gateway, team: str) -> float:
    deadline = time.monotonic() + HANG_S
    while not (found := spent(stack, team, "team")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_two_of_one_team_meet_its_budget(stack: Gateway) -> None:
    with stack.client("ada", "--tier", "pro", "--claim", "team=red") as ada:
        answer = ada.post("/claude/invoke", json=PROMPT)
    assert answer.status_code == 200, answer.text
    cost = until_booked(stack, "red")
    assert spent(stack, "red", "everybody") == cost and spent(stack, "blue", "team") == 0
    assert pools_of(stack, "ada", "red")["team"]["concurrent"]["running"] == 0

    with stack.client("bob", "--tier", "pro", "--claim", "team=red") as bob:
        refused = bob.post("/claude/invoke", json=PROMPT)
    assert refused.status_code == 429, refused.text
    said = refused.json()
    assert (said["pool"], said["limit"], said["allowed"], said["spent"]) == ("team", "usd_per_month", 1.0, cost)
    assert int(refused.headers["retry-after"]) > 0
    # The control: the same caller in another team has its budget.
    with stack.client("bob", "--tier", "pro", "--claim", "team=blue") as bob:
        assert bob.post("/claude/invoke", json=PROMPT).status_code == 200
    until_booked(stack, "blue")
    assert spent(stack, "blue", "everybody") > cost


def test_a_job_takes_its_pools_place_when_it_starts(stack: Gateway) -> None:
    with stack.client("cyd", "--tier", "pro", "--claim", "team=green") as client:
        accepted = client.post("/claude/jobs", json=PROMPT)
        assert accepted.status_code == 202, accepted.text
        deadline = time.monotonic() + HANG_S
        while (job := client.get(accepted.headers["location"]).json())["state"] not in ("done", "failed"):
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        assert job["state"] == "done", job
    assert until_booked(stack, "green") == job["cost_usd"]
    assert pools_of(stack, "dan", "green")["team"]["concurrent"]["running"] == 0


def test_without_the_claim_nothing_passes(stack: Gateway) -> None:
    with stack.client("eve", "--tier", "pro") as eve:
        refused = eve.post("/claude/invoke", json=PROMPT)
    assert refused.status_code == 403 and "team" in refused.json()["message"]
    with stack.client("eve", "--tier", "free") as eve:  # whose tier has only what everybody shares
        assert eve.post("/claude/invoke", json=PROMPT).status_code == 200


Figures = dict[tuple[str, str], tuple[int, int, int, int, int, int]]
"""(pool, of) → limit, spent, reserved, left of its calendar's budget, in micro-dollars; start and end of the period."""


def by_limits(stack: Gateway, team: str) -> Figures:
    found: Figures = {}
    for name, pool in pools_of(stack, "ida", team).items():
        (budget,) = [each for each in pool["usd"]["budgets"] if not each.get("rolling")]
        money = [round(budget[kind] * 1_000_000) for kind in ("limit", "spent", "reserved", "left")]
        found[name, team if name == "team" else ""] = (*money, budget["start"], budget["end"])
    return found


def by_metrics(url: str, prefix: str, team: str) -> Figures:
    values: dict[tuple[str, str], dict[str, int]] = {}
    for family in text_string_to_metric_families(httpx.get(url, timeout=HANG_S).text):
        if family.name in (f"{prefix}_pool_usd", f"{prefix}_pool_period_timestamp_seconds"):
            for sample in family.samples:
                labels, factor = sample.labels, 1_000_000 if "kind" in sample.labels else 1
                if labels["of"] in ("", team) and labels["budget"] == "usd_per_month":
                    kinds = values.setdefault((labels["pool"], labels["of"]), {})
                    kinds[labels.get("kind") or labels["edge"]] = round(sample.value * factor)
    order = ("limit", "spent", "reserved", "left", "start", "end")
    return {who: tuple(kinds[kind] for kind in order) for who, kinds in values.items()}  # type: ignore[misc]


def by_dashboard(stack: Gateway, team: str) -> Figures:
    with stack.client("ida", "--tier", "pro", "--claim", f"team={team}") as client:
        page = client.get("/claude/dashboard")
    assert page.status_code == 200, page.text
    found: Figures = {}
    for row in re.findall(r"<tr>(.*?)</tr>", page.text.partition('id="h-budgets"')[2], re.S):
        cells = [
            " ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
        ]
        if len(cells) == 7 and cells[0].startswith("pool") and cells[1] == "usd_per_month":
            _, name, *of = cells[0].split()
            money = [int(Decimal(cell.lstrip("$").replace(",", "")) * 1_000_000) for cell in cells[3:]]
            edges = [int(datetime.fromisoformat(f"{edge}+00:00").timestamp()) for edge in cells[2].split(" to ")]
            found[name, of[0].strip("()") if of else ""] = (*money, *edges)  # type: ignore[assignment]
    return found


def by_page_of_limits(stack: Gateway, team: str, *admin: str, query: str = "") -> Figures:
    """Without the edges of periods, which the page says as times until then."""
    with stack.client("ida", "--tier", "pro", "--claim", f"team={team}", *admin) as client:
        page = client.get(f"/claude/dashboard/limits{query}", follow_redirects=True)
    assert page.status_code == 200, page.text
    found: Figures = {}
    for title, table in re.findall(r'<h2 id="h-part[^>]*>Pool (.*?)</h2>(.*?)</table>', page.text, re.S):
        for row in re.findall(r"<tr>(.*?)</tr>", table, re.S):
            cells = [
                " ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)
            ]
            if cells and cells[0] == "usd_per_month":
                money = [int(Decimal(cell.lstrip("$").replace(",", "")) * 1_000_000) for cell in cells[1:5]]
                found[title, team if title == "team" else ""] = (*money, 0, 0)  # type: ignore[assignment]
    return found


def test_all_reports_have_the_same_figures(stack: Gateway) -> None:
    """To the micro-dollar, while a job holds its reservation, and when what it has cost is booked."""
    plugin_server = f"http://{httpx.URL(stack.invoker).host}:{METRICS_PORT}/metrics"

    def same(spent: int, reserved: int) -> None:
        given = by_limits(stack, "violet")
        assert given.keys() == {("team", "violet"), ("everybody", "")}
        limit, *rest, left, start, end = given["team", "violet"]
        assert rest == [spent, reserved] and left == limit - spent - reserved and start < time.time() < end
        assert by_metrics(plugin_server, "claude", "violet") == given
        assert by_metrics(f"{stack.invoker}/metrics", "claude_invoker", "violet") == given
        assert by_dashboard(stack, "violet") == given
        own = {who: (*figures[:4], 0, 0) for who, figures in given.items()}
        assert by_page_of_limits(stack, "violet") == own
        # An admin of another team has only to name the caller: tier and team are those of the job.
        assert by_page_of_limits(stack, "red", "--role", "claude:invoke", "--role", "admin", query="?sub=ida") == {
            (name, "red" if name == "team" else of): figures for (name, of), figures in own.items()
        }

    with stack.client("ida", "--tier", "pro", "--claim", "team=violet") as client:
        accepted = client.post("/claude/jobs", json=PROMPT | {"prompt": "[[stall 2]] [[say one two three four]]"})
        assert accepted.status_code == 202, accepted.text
        # It takes all of the team's dollar, and the caller is told so.
        assert '"team.usd_per_month";percent=95;left=0.0;' in accepted.headers["X-Claude-Budget-Warning"]
        until_answered(client, accepted)
        same(0, 1_000_000)
        client.delete(accepted.headers["location"])
        job = until_state(client, accepted, "cancelled")
        cost = until_booked(stack, "violet")
        assert cost == job["cost_usd"]
        same(round(cost * 1_000_000), 0)


# Parts of a micro-dollar, which the ledger books as one: 903 tokens of a cache at 0.1 of them.
FRACTION = '[[usage {"cache_read_input_tokens": 903}]]'


def test_a_cost_is_the_same_everywhere(stack: Gateway) -> None:
    """To the micro-dollar: in answers, on pages, in the ledger, the audit log, Prometheus' figures and the report. Of runs,
    a stream, a job, what was cancelled, what has failed, a message to a model; of callers, tiers and pools."""
    paid = {"max_tokens": 99, "model": "claude-haiku-4-5", "messages": [{"role": "user", "content": f"hi {FRACTION}"}]}
    prompt = PROMPT | {"prompt": f"{FRACTION} [[say one two]]"}
    endless = PROMPT | {"prompt": f"{FRACTION} [[stall 2]] [[say one two three four]]"}
    broken = PROMPT | {"prompt": f"{FRACTION} [[reset 3]] [[say one two three four]]"}
    with (
        stack.client("rae", "--tier", "free") as rae,
        stack.client("sam", "--tier", "pro", "--claim", "team=ochre") as sam,
        stack.client("tim", "--tier", "talker") as tim,
    ):
        pages: dict[str, list[str]] = {"rae": [], "sam": [], "tim": []}
        answer = rae.post("/claude/invoke", json=prompt)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-claude-cost-usd"] == f"{answer.json()['cost_usd']:.6f}"
        pages["rae"].append(f"runs/{answer.headers['x-claude-run']}")
        until_booked_as(rae, answer.json()["cost_usd"])
        with rae.stream("POST", "/claude/invoke", json=prompt, headers={"Accept": "text/event-stream"}) as events:
            events.read()
        pages["rae"].append(f"runs/{events.headers['x-claude-run']}")
        accepted = sam.post("/claude/jobs", json=endless)
        until_answered(sam, accepted)
        sam.delete(accepted.headers["location"])
        until_state(sam, accepted, "cancelled")
        pages["sam"].append(f"jobs/{accepted.json()['id']}")
        failed = tim.post("/claude/invoke", json=broken)
        assert failed.status_code == 504, failed.text
        pages["tim"].append(f"runs/{failed.headers['x-claude-run']}")
        done = tim.post("/claude/jobs", json=prompt)
        assert until_state(tim, done, "done")["cost_usd"] == answer.json()["cost_usd"]
        pages["tim"].append(f"jobs/{done.json()['id']}")
        said = tim.post("/claude/v1/messages", json=paid)
        assert said.status_code == 200, said.text

        ends = wait_for(lambda: audited(stack, {"rae": 2, "sam": 1, "tim": 3}), what="the audit log's lines")
        for client, subject in ((rae, "rae"), (sam, "sam"), (tim, "tim")):
            costs = [micro_usd(end["cost_usd"]) for end in ends if end["subject"] == subject]
            assert all(costs) and [cost / 1e6 for cost in costs] == [
                end["cost_usd"] for end in ends if end["subject"] == subject
            ]
            until_booked_as(client, sum(costs) / 1e6)
            its = [cost_on_page(client, page) for page in pages[subject]]
            messages = [micro_usd(end["cost_usd"]) for end in ends if end["subject"] == subject and "message" in end]
            assert sorted([*its, *messages]) == sorted(costs), subject
        # What each has left in the access log of answers in one piece is booked, too.
        lines = wait_for(lambda: written(stack, {"rae": 1, "tim": 1}), what="the access log's lines")
        assert {micro_usd(line["cost_usd"]) for line in lines} <= {micro_usd(end["cost_usd"]) for end in ends}

        # All that this stack has done, by tier: the invoker's counter, the audit log, the report of it.
        by_tier: dict[str, int] = {}
        for end in audited(stack, {}):
            by_tier[end["tier"]] = by_tier.get(end["tier"], 0) + micro_usd(end["cost_usd"])
        assert by_counter(stack) == by_tier
        assert by_report(stack) == by_tier
        pools = pools_of(stack, "rae", "ochre")
        assert micro_usd(pools["team"]["usd"]["budgets"][0]["spent"]) == sum(
            micro_usd(end["cost_usd"]) for end in ends if end["subject"] == "sam"
        )
        everybody = by_tier["free"] + by_tier["pro"] + by_tier["talker"]
        assert micro_usd(pools["everybody"]["usd"]["budgets"][0]["spent"]) == everybody


@needs_prometheus
def test_a_cost_is_the_same_in_prometheus(stack: Gateway, tmp_path: Path) -> None:
    """In Prometheus itself, which scrapes gateway and invoker as `deploy/prometheus/` says: of all that this stack has done,
    by tier, what the audit log says, and of a pool, what its limits say."""
    invoker = httpx.URL(stack.invoker)
    places = {
        "claude-invoker": f"{invoker.host}:{invoker.port}",
        "claude-pluginserver": f"{invoker.host}:{METRICS_PORT}",
    }
    with (
        stack.client("uma", "--tier", "pro", "--claim", "team=amber") as uma,
        stack.client("vic", "--tier", "talker") as vic,
        scraping(tmp_path / "prometheus", places) as prometheus,
    ):
        prompt = PROMPT | {"prompt": f"hi {FRACTION}"}
        assert uma.post("/claude/invoke", json=prompt).status_code == 200
        until_state(vic, vic.post("/claude/jobs", json=prompt), "done")
        ends = wait_for(lambda: audited(stack, {"uma": 1, "vic": 1}), what="the audit log's lines")
        own = sum(micro_usd(end["cost_usd"]) for end in ends if end["subject"] == "uma")
        until_booked_as(uma, own / 1e6)
        limits = by_limits(stack, "amber")
        assert limits["team", "amber"][1] == own
        prometheus.has_scraped()

        by_tier: dict[str, int] = {}
        for end in audited(stack, {}):
            by_tier[end["tier"]] = by_tier.get(end["tier"], 0) + micro_usd(end["cost_usd"])
        asked = prometheus.ask("sum by (tier) (claude_invoker_cost_usd_total)")
        assert {dict(labels)["tier"]: round(usd * 1e6) for labels, usd in asked.items()} == by_tier
        # Of pools each process says the same, as docs/metrics.md has it: `max`, not `sum`.
        for metric in ("claude_pool_usd", "claude_invoker_pool_usd"):
            for at, kind in enumerate(("limit", "spent", "reserved", "left")):
                asked = prometheus.ask(
                    f'max by (pool, of) ({metric}{{kind="{kind}", of=~"|amber", budget="usd_per_month"}})'
                )
                found = {
                    (named["pool"], named.get("of", "")): usd
                    for labels, usd in asked.items()
                    if (named := dict(labels))
                }
                assert {who: round(usd * 1e6) for who, usd in found.items()} == {
                    who: figures[at] for who, figures in limits.items()
                }, (metric, kind)


def until_booked_as(client: httpx.Client, usd: float) -> None:
    wait_for(
        lambda: micro_usd(client.get("/claude/limits").json()["usd"]["day"]["spent"]) == micro_usd(usd),
        what=f"{usd} to be booked",
    )


def cost_on_page(client: httpx.Client, page: str) -> int:
    """In micro-dollars."""
    found = re.search(r'<dd id="cost">\$([0-9.]+)</dd>', client.get(f"/claude/dashboard/{page}").text)
    assert found is not None, page
    return int(Decimal(found[1]) * 1_000_000)


def audited(stack: Gateway, wanted: Mapping[str, int]) -> list[dict[str, Any]]:
    """What has ended, once so many of each subject have; before, nothing."""
    directory = stack.home / "runs" / "audit"
    with locked(directory, shared=True):
        files = [(each.lines.read_bytes(), each.details.read_bytes()) for each in pairs(directory)]
    rows = [
        json.loads(row) | json.loads(its)["details"]
        for lines, details in files
        for row, its in zip(lines.splitlines(), details.splitlines(), strict=True)
    ]
    ends = [row for row in rows if row["kind"] in ("run.end", "message.end")]
    are_there = all(sum(end["subject"] == who for end in ends) >= number for who, number in wanted.items())
    return ends if are_there else []


def written(stack: Gateway, wanted: Mapping[str, int]) -> list[dict[str, Any]]:
    """Lines of the access log that have a cost, once there are so many of each subject."""
    rows = map(json.loads, (stack.home / "access.jsonl").read_text().splitlines())
    lines = [row for row in rows if row["cost_usd"] and row["subject"] in wanted]
    return lines if len(lines) >= sum(wanted.values()) else []


def by_counter(stack: Gateway) -> dict[str, int]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{stack.invoker}/metrics", timeout=HANG_S).text):
        for sample in family.samples if family.name == "claude_invoker_cost_usd" else ():
            if sample.name.endswith("_total"):
                found[sample.labels["tier"]] = found.get(sample.labels["tier"], 0) + sample.value
    return {tier: round(usd * 1_000_000) for tier, usd in found.items()}


def by_report(stack: Gateway) -> dict[str, int]:
    command = [COMMAND, "report", str(stack.home / "access.jsonl"), "--audit", str(stack.home / "runs" / "audit")]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=HANG_S, check=True)
    groups = json.loads(done.stdout)["by_tier"]
    return {tier: round(group["cost_usd"] * 1_000_000) for tier, group in groups.items()}


def until_answered(client: httpx.Client, accepted: httpx.Response) -> None:
    """Until the API has begun to answer: before that a job costs nothing, though it is running."""
    with client.stream("GET", accepted.headers["location"] + "/events") as events:
        assert any("text_delta" in line for line in events.iter_lines())


def until_state(client: httpx.Client, accepted: httpx.Response, state: str) -> dict[str, Any]:
    deadline = time.monotonic() + HANG_S
    while (job := client.get(accepted.headers["location"]).json())["state"] != state:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return dict(job)


def test_where_the_budget_is_used_up_a_cheaper_model_runs(stack: Gateway) -> None:
    """And that ends, too: what is left of 130 % after a cent's run is less than another reservation."""
    with stack.client("joe", "--tier", "thrifty") as client:
        sonnet = PROMPT | {"model": "sonnet"}
        first = client.post("/claude/invoke", json=sonnet)
        assert first.status_code == 200 and "X-Claude-On-Budget" not in first.headers
        assert first.json()["instead_of"] is None
        until_spent(client)
        cheaper = client.post("/claude/invoke", json=sonnet)
        assert cheaper.status_code == 200, cheaper.text
        assert cheaper.headers["X-Claude-On-Budget"] == "model=haiku"
        assert cheaper.json()["instead_of"] == "sonnet" and "haiku" in cheaper.json()["model"]
        assert {"haiku" in request["model"] for request in stack.record()[-1:]} == {True}
        refused = client.post("/claude/invoke", json=PROMPT | {"model": "opus"})
        assert refused.status_code == 403, "of the tier's models"


def test_where_the_budget_is_used_up_jobs_wait(stack: Gateway) -> None:
    with stack.client("kim", "--tier", "patient") as client:
        assert client.post("/claude/invoke", json=PROMPT).status_code == 200
        until_spent(client)
        refused = client.post("/claude/invoke", json=PROMPT)
        assert refused.status_code == 429 and 0 < int(refused.headers["Retry-After"]) <= 86_400
        accepted = client.post("/claude/jobs", json=PROMPT)
        assert accepted.status_code == 202, accepted.text
        assert accepted.headers["X-Claude-On-Budget"] == "queue"
        deadline = time.monotonic() + HANG_S
        while not (job := client.get(accepted.headers["location"]).json())["waits_for"]:
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
        assert job["state"] == "queued" and job["waits_for"]["limit"] == "usd_per_day"
        assert 0 < job["waits_for"]["until"] - time.time() <= 86_400
        assert client.delete(accepted.headers["location"]).json()["state"] == "cancelled"


def until_spent(client: httpx.Client) -> None:
    """Of the caller's own day."""
    deadline = time.monotonic() + HANG_S
    while not client.get("/claude/limits").json()["usd"]["day"]["spent"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
