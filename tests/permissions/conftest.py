"""Runs of the real CLI that ask before they act, in real invokers behind attestations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.invoker.conftest import (  # noqa: F401 invokers and their stand-in, as there
    Invoker,
    invoker_processes,
    invokers_end_with_their_test,
    stand_in,
    start_invoker,
    tool,
)
from tests.jobs.conftest import SECRET
from tests.replicas.test_replicas import client

STREAM = {"Accept": "text/event-stream"}


def clamp(**rules: Any) -> dict[str, Any]:
    """The claims of a caller whose tier has these rules."""
    return {"clamp": {"rules": rules}}


BASH = clamp(ask=["Bash"])
APPROVER = {"who": {"perms": ["claude:approve"]}}


def bash(command: str) -> str:
    return tool("Bash", command=command)


class Stream:
    """The events of a run, read one by one."""

    def __init__(self, answer: httpx.Response) -> None:
        self.run = answer.headers["location"]
        self._lines = answer.iter_lines()
        self.seen: list[tuple[str, Any]] = []

    def until(self, *names: str) -> Any:
        """The data of the next event with one of these names."""
        name = ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                self.seen.append((name, json.loads(line.removeprefix("data: "))))
                if name in names:
                    return self.seen[-1][1]
        raise AssertionError(f"no {names} in {[name for name, _ in self.seen]}")

    def all(self, name: str) -> list[Any]:
        return [data for known, data in self.seen if known == name]

    def path(self, permission: dict[str, Any]) -> str:
        return f"{self.run}/permissions/{permission['id']}"


@contextmanager
def asking(api: httpx.Client, prompt: str, tools: tuple[str, ...] = ("Bash",), **more: Any) -> Iterator[Stream]:
    """A run that has begun."""
    body = {"prompt": prompt, "tools": list(tools)} | more
    with api.stream("POST", "/claude/invoke", json=body, headers=STREAM) as answer:
        if answer.status_code != 200:
            raise AssertionError(answer.read().decode())
        yield Stream(answer)


@pytest.fixture(scope="session")
def start(start_invoker: Callable[..., Invoker]) -> Callable[..., Invoker]:  # noqa: F811 the fixture
    def started(**more: Any) -> Invoker:
        return start_invoker(**({"attestation_key": SECRET, "trust": "attested", "pool_max": 2} | more))

    return started


@pytest.fixture(scope="session")
def one(start: Callable[..., Invoker]) -> Invoker:
    return start(session_idle_s=600)


@pytest.fixture(scope="module")
def worker(start: Callable[..., Invoker], settings: dict[str, Any]) -> Iterator[Invoker]:
    """With the `settings` of the module that asks for it."""
    invoker = start(**settings, worker="embedded")
    yield invoker
    invoker.stop()


@pytest.fixture
def alice(one: Invoker) -> Iterator[httpx.Client]:
    """Her tier asks about every command."""
    with client(one, "alice", **BASH) as api:
        yield api


@pytest.fixture
def bob(one: Invoker) -> Iterator[httpx.Client]:
    """Who decides about others' runs."""
    with client(one, "bob", **APPROVER) as api:
        yield api
