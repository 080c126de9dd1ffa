"""Keys that a role has, and none that anybody has written down: asked of the machine or of a container's agent, renewed
before they lapse. (Web identity is asked for by https only, of hosts that public authorities vouch for: not tried here.)"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from claude_invoker.store.place import Place
from claude_invoker.store.store import Away, Store
from tests.support.waiting import until

METADATA = "/latest/meta-data/iam/security-credentials/"


@dataclass
class Amazon:
    """What gives a role its keys, and a bucket, on one port."""

    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """By whom or with which key, and for what."""
    given: int = 0
    lives_s: float = 3600.0
    objects: dict[str, bytes] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Amazon]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield self
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                line, *rest = head.splitlines()
                method, path, _ = line.split(" ")
                headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, answer = self._answer(method, path, headers, body)
                said = f"HTTP/1.1 {status} X\r\nETag: x\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
                writer.write(f"{said}Content-Length: {len(answer)}\r\n\r\n".encode() + answer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    def _answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if path == "/latest/api/token":
            return 200, b"token-of-the-machine"
        if path == METADATA:
            return 200, b"a-role"
        if path in (METADATA + "a-role", "/agent"):
            by = headers.get("authorization") or headers.get("x-aws-ec2-metadata-token", "")
            self.asked.append((by, path))
            self.given += 1
            until = (datetime.now(UTC) + timedelta(seconds=self.lives_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
            key = {"AccessKeyId": f"KEY{self.given}", "SecretAccessKey": "hunter2", "Token": f"token{self.given}"}
            return 200, json.dumps(key | {"Expiration": until, "Code": "Success"}).encode()
        key_id = re.search("Credential=([^/]*)/", headers.get("authorization", ""))
        self.asked.append((f"{key_id[1] if key_id else ''} {headers.get('x-amz-security-token', '')}", method))
        if method == "PUT":
            self.objects[path] = body
        return 200, self.objects.get(path, b"")


@pytest.fixture
async def amazon() -> AsyncIterator[Amazon]:
    async with Amazon().running() as found:
        yield found


@pytest.fixture(autouse=True)
def no_keys_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)


def role(kind: str, amazon: Amazon, monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[str, str]:
    """Sets what the platform sets. Who asks for the key then, and where."""
    if kind == "machine":
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", amazon.url)
        return "token-of-the-machine", METADATA + "a-role"
    (folder / "token").write_text("token-of-the-pod")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{amazon.url}/agent")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(folder / "token"))
    return "token-of-the-pod", "/agent"


@pytest.mark.parametrize("kind", ["machine", "pod"])
async def test_a_roles_key_is_asked_for_used_and_renewed(
    amazon: Amazon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    asking = role(kind, amazon, monkeypatch, tmp_path)
    store = Store(Place.parse(f"s3://bucket/p?endpoint={amazon.url}"), None)
    with caplog.at_level(logging.DEBUG):
        await store.put("a", b"1")
        assert await store.get("a") == b"1"
        assert amazon.asked == [asking, ("KEY1 token1", "PUT"), ("KEY1 token1", "GET")], "one key for both"
        amazon.asked.clear()
        amazon.lives_s = 1.0  # all that are given from now on lapse at once
        store = Store(Place.parse(f"s3://bucket/p?endpoint={amazon.url}"), None)
        await store.put("a", b"2")

        async def renewed() -> bool:
            await store.put("a", b"3")
            return amazon.asked[-1] == ("KEY3 token3", "PUT")

        await until(renewed, "another key")
    assert amazon.asked[:2] == [asking, ("KEY2 token2", "PUT")]
    assert "hunter2" not in caplog.text


async def test_a_key_of_the_environment_has_its_token(amazon: Amazon, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "KEY"), ("SECRET_ACCESS_KEY", "hunter2"), ("SESSION_TOKEN", "token")):
        monkeypatch.setenv(f"AWS_{name}", value)
    await Store(Place.parse(f"s3://bucket?endpoint={amazon.url}"), None).put("a", b"1")
    assert amazon.asked == [("KEY token", "PUT")]


async def test_without_any_key_the_store_is_away(amazon: Amazon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Away):
        await Store(Place.parse(f"s3://bucket?endpoint={amazon.url}"), None).put("a", b"1")
    assert not amazon.objects
