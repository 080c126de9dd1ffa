"""A real Prometheus, configured as `deploy/prometheus/` has it, that scrapes what a test has started."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.waiting import HANG_S, wait_for

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
PROGRAM = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(PROGRAM is None, reason="prometheus is not installed (apt install prometheus)")
Labels = frozenset[tuple[str, str]]


@dataclass
class Prometheus:
    url: str
    targets: int

    def ask(self, expression: str) -> dict[Labels, float]:
        """What a query says now, by the labels of each series without its name."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=HANG_S)
        assert answer.status_code == 200, answer.text
        return {
            frozenset((name, value) for name, value in each["metric"].items() if name != "__name__"): float(
                each["value"][1]
            )
            for each in answer.json()["data"]["result"]
        }

    def has_scraped(self) -> None:
        """Until all its targets have been asked, and have answered, after this was called."""
        called = time.time()

        def all_since() -> bool:
            begun = self.ask("timestamp(up == 1)")
            return len(begun) == self.targets and min(begun.values()) > called

        wait_for(all_since, what="a scrape of each target", every_s=0.1)


def configured(targets: Mapping[str, str]) -> dict[str, Any]:
    """The shipped scrapes of these jobs, each at a HOST:PORT of the test's, and often."""
    shipped = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in shipped["scrape_configs"]}
    scrapes = []
    for name, target in targets.items():
        kept = {key: value for key, value in jobs[name].items() if not key.endswith("sd_configs")}
        scrapes.append(kept | {"static_configs": [{"targets": [target]}]})
    return {"global": {"scrape_interval": "500ms"}, "scrape_configs": scrapes}


@contextmanager
def scraping(home: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """One that scrapes these, by the shipped names of their jobs, as long as the block runs."""
    assert PROGRAM is not None
    home.mkdir()
    (home / "prometheus.yml").write_text(yaml.safe_dump(configured(targets)))
    address = f"127.0.0.1:{free_port()}"
    command = [PROGRAM, f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)

    def ready() -> bool:
        assert process.poll() is None, (home / "log").read_text()
        try:
            return httpx.get(f"http://{address}/-/ready", timeout=HANG_S).status_code == 200
        except httpx.ConnectError:
            return False

    try:
        wait_for(ready, what="Prometheus", every_s=0.1)
        yield Prometheus(f"http://{address}", len(targets))
    finally:
        process.terminate()
        process.wait(HANG_S)
