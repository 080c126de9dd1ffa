"""Schemathesis over `/openapi.json`: no 5xx, nothing that the schema does not say. INVOKER_LONG=1 asks more."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.invoker.conftest import Invoker
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("schema")  # its invoker is started once

EXAMPLES = 60 if os.environ.get("INVOKER_LONG") else 4


@pytest.fixture(scope="module")
def patient_invoker(start_invoker: Callable[..., Invoker]) -> Invoker:
    return start_invoker(max_runs=2, queue_wait_s=60, first_output_s=60, total_s=60)


@pytest.fixture(scope="module")
def schema(patient_invoker: Invoker) -> Any:
    return schemathesis.openapi.from_url(f"{patient_invoker.url}/openapi.json")


@pytest.mark.parametrize(
    "operation",
    [
        "POST /invoke",
        "POST /repos/{owner}/{name}/invoke",
        "GET /runs/{run_id}",
        "DELETE /runs/{run_id}",
        "GET /runs/{run_id}/events",
        "GET /runs/{run_id}/artifacts",
        "GET /runs/{run_id}/artifacts/{path}",
        "PUT /files/{sha256}",
        "GET /files/{sha256}",
        "DELETE /files/{sha256}",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    ],
)
def test_answers_follow_the_schema(schema: Any, operation: str) -> None:
    method, path = operation.split()

    @given(case=schema[path][method].as_strategy())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case: schemathesis.Case[Any]) -> None:
        if isinstance(case.body, dict):
            case.body.pop("timeout_s", None)  # a deadline of milliseconds is kept, with 504
        # A conversation must end with the user's message, which JSON Schema cannot say.
        answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        assert answer.status_code < 500

    check()


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/invoke", "POST"),
        ("/claude/runs/run_0", "GET, DELETE, HEAD"),
        ("/claude/jobs", "GET, POST, HEAD"),
        ("/jobs/job_0/artifacts/a/b", "GET, HEAD"),
        ("/claude/v1/messages", "POST"),
        ("/claude/openapi.json", "GET, HEAD"),
    ],
)
def test_allow_names_all_that_is_taken_at_a_path(patient_invoker: Invoker, path: str, taken: str) -> None:
    refused = httpx.put(f"{patient_invoker.url}{path}", timeout=HANG_S)
    assert (refused.status_code, refused.headers["allow"]) == (405, taken)
    # What it names is taken, whatever becomes of it.
    for method in taken.split(", "):
        assert httpx.request(method, f"{patient_invoker.url}{path}", timeout=HANG_S).status_code != 405


def test_answers_about_a_real_run_follow_the_schema(schema: Any, patient_invoker: Invoker) -> None:
    run = httpx.post(f"{patient_invoker.url}/invoke", json={"prompt": "x"}, timeout=HANG_S).json()["id"]
    for path in ("/runs/{run_id}", "/runs/{run_id}/artifacts", "/runs/{run_id}/events"):
        case = schema[path]["GET"].Case(path_parameters={"run_id": run})
        case.call_and_validate()
