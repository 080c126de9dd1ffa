"""Files that come with a run through the gateway, as examples/files-in.yml has it: as large as they may be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import ROOT, Gateway, standing

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="which users runs have is tested as root"),
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("files-in")
    large = {"KONG_NGINX_HTTP_CLIENT_MAX_BODY_SIZE": "129m", "INVOKER_UPLOADS_PER_SUBJECT": str(120 << 20)}
    with standing(home, config=ROOT / "examples/files-in.yml", **large) as found:
        yield found


def grown(process: psutil.Process) -> int:
    """Bytes that it has held at most, beyond what it holds since `watched`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0) * 1024


@pytest.mark.parametrize("way", ["form", pytest.param("put", marks=pytest.mark.slow)])  # at the invoker: test_uploads
def test_a_hundred_megabytes_pass_and_are_in_no_process_memory(gateway: Gateway, way: str) -> None:
    """Through the gateway, with the shown configuration: gateway, plugin server, invoker, Redis."""
    content = os.urandom(1 << 20) * 100
    with gateway.client("ada", "--tier", "team", timeout=180) as client:
        asked = {"prompt": "hi", "tools": [], "check": "sha256sum large.bin"}

        def post(sent: bytes) -> httpx.Response:
            if way == "put":
                name = hashlib.sha256(sent).hexdigest()
                assert client.put(f"/claude/files/{name}", content=sent).status_code == 201
                return client.post("/claude/invoke", json=asked | {"files": [{"path": "large.bin", "upload": name}]})
            parts: list[tuple[str, Any]] = [("request", (None, json.dumps(asked))), ("files", ("large.bin", sent))]
            return client.post("/claude/invoke/form", files=parts)

        assert post(b"x").status_code == 200  # what they have in memory anyway
        everybody = [psutil.Process(gateway.pid), *psutil.Process(gateway.pid).children(recursive=True)]
        before = {}
        for process in everybody:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")
                before[process] = process.memory_info().rss
        answer = post(content)
        assert answer.status_code == 200, answer.text
        assert hashlib.sha256(content).hexdigest() in answer.json()["check"]["output"]
        for process, rss in before.items():
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                assert grown(process) - rss < 50 << 20, process.cmdline()


@pytest.mark.parametrize(
    ("path", "length", "media", "status"),
    [
        ("/claude/invoke", 1000, "multipart/form-data; boundary=b", 415),
        ("/claude/invoke", 11 << 20, "application/json", 413),
        ("/claude/runs", 11 << 20, "application/json", 413),
        ("/claude/invoke/form", 1000, "application/json", 415),
        ("/claude/invoke/form", (128 << 20) + 1, "multipart/form-data; boundary=b", 413),
        ("/claude/invoke/form", 1000, "multipart/form-data; boundary=b", 400),  # of the invoker
        (f"/claude/files/{'0' * 64}", (128 << 20) + 1, "application/octet-stream", 413),
        (f"/claude/files/{'0' * 64}", 11 << 20, "application/octet-stream", 422),  # of the invoker: it has another name
        ("/claude/files/data.bin", 1000, "application/octet-stream", 404),
    ],
)
def test_what_is_large_passes_on_its_own_route_only(
    gateway: Gateway, path: str, length: int, media: str, status: int
) -> None:
    with gateway.client("ada", "--tier", "team") as client:
        method = "DELETE" if path == "/claude/runs" else "PUT" if path.startswith("/claude/files") else "POST"
        answer = client.request(method, path, content=bytes(length), headers={"Content-Type": media})
    assert answer.status_code == status, answer.text


def test_the_shown_command_sends_files(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("x")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/workspace.md").read_text(), re.DOTALL)
    (shown,) = [block for block in blocks if "invoke/form" in block]
    environment = os.environ | {"GATEWAY": gateway.url, "TOKEN": gateway.token("ada", "--tier", "team")}
    done = subprocess.run(["bash", "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Which files are there?" in json.loads(done.stdout)["result"], done


def test_the_shown_command_puts_a_file_for_a_job(gateway: Gateway, tmp_path: Path) -> None:
    """By a client of its own kind (curl waits for 100 Continue), through gateway, invoker and worker."""
    (tmp_path / "data.bin").write_bytes(content := os.urandom(2 << 20))
    name = hashlib.sha256(content).hexdigest()
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/workspace.md").read_text(), re.DOTALL)
    (shown,) = [block for block in blocks if "claude/files" in block]
    environment = os.environ | {"GATEWAY": gateway.url, "TOKEN": gateway.token("ada", "--tier", "team")}
    done = subprocess.run(["bash", "-c", shown], cwd=tmp_path, env=environment, capture_output=True, text=True)
    put, job = (json.loads(part) for part in done.stdout.replace("}{", "}\n{").splitlines())
    assert (put["sha256"], put["size"]) == (name, len(content)), done
    with gateway.client("ada", "--tier", "team") as client, gateway.client("bob", "--tier", "team") as bob:
        while (seen := client.get(job["links"]["self"]).json())["state"] not in ("done", "failed"):
            time.sleep(0.1)
        assert seen["state"] == "done" and "Which files are there?" in seen["result"]["result"], seen
        assert client.get(f"/claude/files/{name}").content == content
        assert [file["sha256"] for file in client.get("/claude/files").json()["files"]].count(name) == 1
        assert client.head(f"/claude/files/{name}").headers["content-length"] == str(len(content))
        asked = {"prompt": "hi", "files": [{"path": "a", "upload": name}]}
        assert bob.post("/claude/invoke", json=asked).status_code == 422
        assert [bob.request(method, f"/claude/files/{name}").status_code for method in ("GET", "DELETE")] == [404, 404]
        assert client.delete(f"/claude/files/{name}").status_code == 204


def test_who_has_no_room_left_hears_of_it_and_not_of_a_broken_connection(gateway: Gateway) -> None:
    """The invoker answers before the file has come, which the gateway is still sending."""
    with gateway.client("eve", "--tier", "team", timeout=180) as client:
        names = []
        for size, status in ((100 << 20, 201), (30 << 20, 507), (10 << 20, 201)):
            content = bytes(size)
            answer = client.put(f"/claude/files/{hashlib.sha256(content).hexdigest()}", content=content)
            assert answer.status_code == status, answer.text
            names.append(hashlib.sha256(content).hexdigest())
        assert answer.headers["location"] == f"/claude/files/{names[-1]}"
        for name in (names[0], names[2]):
            assert client.delete(f"/claude/files/{name}").status_code == 204
