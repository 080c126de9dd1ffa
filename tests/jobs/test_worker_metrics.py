"""`/metrics` of a worker that is a process of its own: without it what jobs cost there is in no figure of Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from claude_invoker import metrics_server
from claude_invoker.listen import Listen
from claude_invoker.settings import Settings
from tests.jobs.conftest import until
from tests.jobs.test_workers import Scene
from tests.jobs.test_workers import scene as scene
from tests.support.ports import free_port
from tests.support.prometheus import PROGRAM, scraping
from tests.support.waiting import HANG_S

ROOT = Path(__file__).resolve().parents[2]


def figures(text: str, name: str) -> dict[str, float]:
    """Of one counter, by tier."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.labels.get("tier", ""): sample.value for sample in samples if sample.name == name}


async def test_what_jobs_cost_is_counted_where_they_run(scene: Scene, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    worker = scene.stage.worker(metrics_listen=f"127.0.0.1:{port}")
    jobs = [await scene.submit(f"job=job-{number} sleep=0") for number in range(2)]
    costs = [(await scene.ended(job)).cost_usd for job in jobs]
    async with httpx.AsyncClient(timeout=HANG_S) as client:

        async def counted() -> bool:
            found = figures((await client.get(url)).text, "claude_invoker_cost_usd_total")
            return list(found.values()) == [pytest.approx(sum(costs), abs=1e-9)] and sum(costs) > 0

        await until(counted, "what both have cost")
        if PROGRAM is not None:  # as tests/e2e/test_pools.py asks it of an invoker, and says where there is none
            with scraping(tmp_path / "prometheus", {"claude-worker": f"127.0.0.1:{port}"}) as prometheus:
                await asyncio.to_thread(prometheus.has_scraped)
                asked = prometheus.ask("sum(claude_invoker_cost_usd_total)")
            assert [round(usd * 1e6) for usd in asked.values()] == [round(sum(costs) * 1e6)]
        for path, method, status in (("/", "GET", 404), ("/claude/jobs", "GET", 404), ("/metrics", "POST", 405)):
            answer = await client.request(method, f"http://127.0.0.1:{port}{path}")
            assert answer.status_code == status, (path, method)
        second = scene.stage.worker(metrics_listen=f"127.0.0.1:{port}")
        assert second.wait(HANG_S) == 2, "its place is taken"
        assert worker.poll() is None
        worker.terminate()
        assert worker.wait(HANG_S) == 0, "a connection that is kept holds nobody up"


class Counted:
    """In the place of a run's figures."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        choose_encoder(accept)  # as the real one begins
        return b"x 1\n", "text/plain"


async def test_who_sends_junk_or_byte_by_byte_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is for one answer, and ends whatever its client does. The control is one that asks as it should
    while all the others are there."""
    monkeypatch.setattr(metrics_server, "_LIFE_S", 1.0)
    monkeypatch.setattr(metrics_server, "_HEAD_S", 10 * HANG_S)  # so that it is the other bound that ends them
    async with metrics_server.serving_metrics(Listen("127.0.0.1", 0), Counted()) as place:  # type: ignore[arg-type]
        assert place is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{place.port}", timeout=HANG_S) as client:
            for accept, status in (
                ("application/openmetrics-text;version=a", 400),
                ("text/plain;version=junk", 400),
                ("application/openmetrics-text;version=1.0.0", 200),
                ("*/*", 200),
            ):
                answer = await client.get("/metrics", headers={"Accept": accept})
                assert (answer.status_code, answer.headers["connection"]) == (status, "close"), accept

            async def dripping(head: bytes) -> bytes:
                """What it was answered until it was shut out."""
                reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
                writer.write(head)
                with contextlib.suppress(ConnectionError):
                    while not reader.at_eof():
                        writer.write(b"x")
                        await writer.drain()
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(reader.read(1), 0.05)
                writer.close()
                return head

            heads = (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Long: ", b"GET /me", b"")
            long = b"Content-Length: 100000\r\n\r\n"
            bodies = (b"POST /metrics HTTP/1.1\r\nHost: a\r\n" + long, b"GET /metrics HTTP/1.1\r\nHost: a\r\n" + long)
            slow = [asyncio.create_task(dripping(head)) for head in (*heads, *bodies)]
            assert (await client.get("/metrics")).status_code == 200
            assert await asyncio.wait_for(asyncio.gather(*slow), HANG_S) == [*heads, *bodies]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:8110", ("0.0.0.0", 8110)),
        ("[::1]:0", ("::1", 0)),
        ("worker:8110", ("worker", 8110)),
        *((text, None) for text in ("8110", ":8110", "host", "host:", "host:x", "host:65536", "host:-1", "")),
    ],
)
def test_the_setting(text: str, expected: tuple[str, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKER_METRICS_LISTEN", text)
    if expected is None:
        with pytest.raises(ValueError, match=r"must be HOST:PORT"):
            Settings()
    else:
        assert Settings().metrics_listen == Listen(*expected)


def test_prometheus_asks_where_workers_listen() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    listen = compose["services"]["worker"]["environment"]["INVOKER_METRICS_LISTEN"]
    (asked,) = [
        each
        for job in yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
        for each in job.get("dns_sd_configs", [])
    ]
    assert (asked["names"], Listen.parse(listen)) == (["worker"], Listen("0.0.0.0", asked["port"]))
    # A network for nothing else: from it nobody gets any further.
    on = {name for name, service in compose["services"].items() if "workers" in service.get("networks", ())}
    assert (on, compose["networks"]["workers"]) == ({"worker", "prometheus"}, {"internal": True})
    (pod,) = [
        d
        for d in yaml.safe_load_all((ROOT / "deploy/kubernetes/worker.yaml").read_text())
        if "template" in d.get("spec", {})
    ]
    assert {"name": "INVOKER_METRICS_LISTEN", "value": listen} in pod["spec"]["template"]["spec"]["containers"][0][
        "env"
    ]
    assert pod["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(asked["port"])
