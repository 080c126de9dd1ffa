"""A file that is put by itself, for a run or a job that comes later: whose it is, how long, and what it costs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from claude_contract.attestation import HEADER
from claude_contract.claims import body_hash
from claude_invoker.disk import Bounds
from claude_invoker.problem import Problem
from claude_invoker.workspace.intake import Intake
from claude_invoker.workspace.uploads import Uploads
from tests.invoker.conftest import Invoker, StandInProcess, wait_for
from tests.invoker.test_forms import Peak, incompressible
from tests.jobs.conftest import OVER, SECRET, SIGNER, raw_path
from tests.rate_tiers.servers import RedisProcess
from tests.support.attest import signed
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.xdist_group("uploads")  # its invoker is started once

MB = 1 << 20
PLAIN: dict[str, Any] = {"prompt": "hi", "tools": []}


class As(httpx.Auth):
    """The gateway, which reads nothing of what is put."""

    def __init__(self, subject: str, **claims: Any) -> None:
        self._claims = {"sub": subject, "chk": ["jwt-claims", "rate-tiers"]} | claims

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        request.headers[HEADER] = signed(SIGNER, request.method, raw_path(request), **self._claims)
        yield request


def client(of: Invoker, subject: str = "alice", **claims: Any) -> httpx.Client:
    return httpx.Client(base_url=of.url, auth=As(subject, **claims), timeout=HANG_S)


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(api: httpx.Client, content: bytes) -> str:
    answer = api.put(f"/files/{of(content)}", content=content)
    assert answer.status_code in (200, 201), answer.text
    return of(content)


@pytest.fixture(scope="module")
def invoker(start_invoker: Callable[..., Invoker]) -> Iterator[Invoker]:
    found = start_invoker(
        trust="attested", attestation_key=SECRET, max_upload=120_000_000, uploads_per_subject=130 * MB
    )
    yield found
    found.stop()


def kept(invoker: Invoker) -> list[Path]:
    return [path for folder in ("uploads", "intake") for path in (invoker.state / folder).rglob("*") if path.is_file()]


def test_what_was_put_is_there_when_a_run_begins(invoker: Invoker) -> None:
    content = os.urandom(5000)
    with client(invoker) as api:
        first, again = (api.put(f"/claude/files/{of(content)}", content=content) for _ in range(2))
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.headers["location"] == f"/claude/files/{of(content)}"
        said = first.json()
        assert (said["sha256"], said["size"]) == (of(content), 5000) and said["expires_at"] > time.time() + 86_000
        assert [file["sha256"] for file in api.get("/files").json()["files"]] == [of(content)]
        got = api.get(f"/files/{of(content)}")
        assert got.content == content and got.headers["etag"] == f'"{of(content)}"'
        assert "sandbox" in got.headers["content-security-policy"]
        head = api.head(f"/files/{of(content)}")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "5000", b"")
        part = api.get(f"/files/{of(content)}", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, content[10:20])
        assert api.get(f"/files/{of(content)}", headers={"If-None-Match": got.headers["etag"]}).status_code == 304
        files = [
            {"path": "data/a.bin", "upload": of(content)},
            {"path": "b.txt", "content": "b"},
            {"path": "again.bin", "upload": of(content)},
        ]
        answer = api.post("/invoke", json=PLAIN | {"files": files, "check": "sha256sum data/a.bin again.bin b.txt"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["check"]["output"].split() == [
            of(content), "data/a.bin", of(content), "again.bin", of(b"b"), "b.txt",
        ]  # fmt: skip
        assert answer.json()["artifacts"] == [], "what the run leaves as it was is none"
        assert api.delete(f"/files/{of(content)}").status_code == 204
        gone = [api.request(method, f"/files/{of(content)}").status_code for method in ("GET", "HEAD", "DELETE")]
        assert gone == [404, 404, 404] and api.get("/files").json() == {"files": []}
        late = api.post("/invoke", json=PLAIN | {"files": files})
        assert late.status_code == 422 and "files[0].upload: there is no such file" in late.json()["detail"]
    assert kept(invoker) == []


def test_a_file_is_its_issuer_s_and_subject_s_alone(invoker: Invoker, stand_in: StandInProcess) -> None:
    content = b"of a tenant"
    ours = {"who": {"idp": "https://one.example"}}
    with client(invoker, "alice", **ours) as api:
        name = put(api, content)
        asked = PLAIN | {"files": [{"path": "a", "upload": name}]}
        for other in (
            client(invoker, "bob", **ours),
            client(invoker, "alice", who={"idp": "https://two.example"}),
            client(invoker, "alice"),
            client(invoker, "root", roles=["admin"], **ours),
        ):
            with other:
                spent = len(stand_in.lines())
                found = [other.request(method, f"/files/{name}").status_code for method in ("GET", "HEAD", "DELETE")]
                assert found == [404, 404, 404] and other.get("/files").json() == {"files": []}
                refused = other.post("/invoke", json=asked)
                assert refused.status_code == 422 and len(stand_in.lines()) == spent
                # The very bytes put by another are another file: whether somebody has them is not told.
                assert other.put(f"/files/{name}", content=content).status_code == 201
                assert other.delete(f"/files/{name}").status_code == 204
        assert api.post("/invoke", json=asked).status_code == 200, "the control"
        assert api.delete(f"/files/{name}").status_code == 204


@pytest.mark.parametrize(
    ("name", "content", "status", "said"),
    [
        (of(b"x"), b"y", 422, f"has the SHA-256 {of(b'y')}"),
        (of(b"x").upper(), b"x", 422, "sha256 must match pattern"),
        ("a.bin", b"x", 422, "sha256 must match pattern"),
        ("%2e%2e", b"x", 422, "sha256 must match pattern"),
        (of(b"x") + "%0a", b"x", 422, "sha256 must match pattern"),
        (of(b"x")[1:], b"x", 422, "sha256 must match pattern"),
        (of(b"x"), 121_000_000, 413, "INVOKER_MAX_UPLOAD"),
    ],
)
def test_what_cannot_be_put_leaves_nothing(
    invoker: Invoker, name: str, content: bytes | int, status: int, said: str
) -> None:
    """`content`: of so many bytes, which shall not stand in the name of the test."""
    content = content if isinstance(content, bytes) else bytes(content)
    with client(invoker) as api:
        answer = api.put(f"/files/{name}", content=content)
        assert answer.status_code == status and said in answer.text, answer.text
    wait_for(lambda: not kept(invoker), what="nothing that is left of it")


@pytest.mark.parametrize("bounds", [Bounds(per_subject=10), Bounds(in_all=10)])
async def test_what_arrives_while_it_is_counted_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: Bounds
) -> None:
    """Else whoever puts many at once has room for twice as much, and the more the slower the store is."""
    found = Uploads(None, tmp_path / "uploads", bounds, 60.0, Intake(tmp_path / "intake", Bounds(), lambda size: None))
    found.open()
    (tmp_path / "file").write_bytes(bytes(8))
    counted = found._all
    first = found.room("alice", of(b"first"), 8)

    async def meanwhile() -> int:
        in_all = await counted()
        await found.keep("alice", of(b"first"), tmp_path / "file")
        await first.__aexit__(None, None, None)
        return in_all

    await first.__aenter__()
    monkeypatch.setattr(found, "_all", meanwhile)
    with pytest.raises(Problem) as refused:
        await found.room("alice", of(b"second"), 8).__aenter__()
    assert refused.value.status == 507


def test_who_is_not_vouched_for_puts_nothing(invoker: Invoker) -> None:
    path = f"/files/{of(b'x')}"
    used = signed(SIGNER, "PUT", path, sub="alice", chk=["jwt-claims"])
    with invoker.client() as api:
        for header, status in (
            (used, 201),
            (used, 401),  # it is good for one request
            (None, 401),
            (signed(SIGNER, "PUT", path, sub="alice", chk=[]), 401),
            (signed(SIGNER, "GET", path, sub="alice", chk=["jwt-claims"]), 401),
            (signed(SIGNER, "PUT", f"/files/{of(b'y')}", sub="alice", chk=["jwt-claims"]), 401),
            # What the gateway has seen is to be held against what comes, and this body is read when that is too late.
            (signed(SIGNER, "PUT", path, sub="alice", chk=["jwt-claims"], bsh=body_hash(b"x")), 401),
        ):
            answer = api.put(path, content=b"x", headers={} if header is None else {HEADER: header})
            assert answer.status_code == status, answer.text
    with client(invoker) as api:
        assert api.delete(path).status_code == 204


def test_a_subject_has_room_for_so_much_and_others_have_theirs(invoker: Invoker) -> None:
    big = bytes(90 * MB)
    with client(invoker, "eve") as eve, client(invoker, "bob") as bob:
        name = put(eve, big)
        refused = eve.put(f"/files/{of(b'x')}", content=bytes(41 * MB))
        assert (refused.status_code, refused.json()["setting"]) == (507, "INVOKER_UPLOADS_PER_SUBJECT")
        assert put(eve, big) == name, "the same again takes no second place"
        assert bob.delete(f"/files/{put(bob, b'x')}").status_code == 204
        assert eve.delete(f"/files/{name}").status_code == 204
        assert eve.delete(f"/files/{put(eve, bytes(41 * MB))}").status_code == 204, "the control"
    with invoker.client() as api:
        assert 'claude_invoker_disk_bytes{kind="uploads"}' in api.get("/metrics").text


def test_a_key_stands_for_what_a_request_names(invoker: Invoker) -> None:
    key = {"Idempotency-Key": f"upload-{os.getpid()}"}
    with client(invoker) as api:
        one, other = put(api, b"one"), put(api, b"other")
        asked = PLAIN | {"files": [{"path": "a", "upload": one}]}
        first = api.post("/invoke", json=asked, headers=key)
        assert first.status_code == 200, first.text
        changed = api.post("/invoke", json=PLAIN | {"files": [{"path": "a", "upload": other}]}, headers=key)
        assert changed.status_code == 422 and "another request" in changed.text
        for name in (one, other):
            assert api.delete(f"/files/{name}").status_code == 204
        # Whoever lost the answer has it, also when the file is gone.
        assert api.post("/invoke", json=asked, headers=key).json()["id"] == first.json()["id"]


def test_a_hundred_megabytes_are_never_in_memory(invoker: Invoker) -> None:
    content = incompressible(100 * MB)
    with client(invoker) as api:
        put(api, b"x")  # what it has anyway
        peak = Peak(invoker.pid)
        name = put(api, content)
        asked = PLAIN | {"files": [{"path": "a", "upload": name}], "check": "sha256sum a"}
        answer = api.post("/invoke", json=asked)
        assert answer.status_code == 200 and name in answer.json()["check"]["output"], answer.text
        digest = hashlib.sha256()
        with api.stream("GET", f"/files/{name}") as got:
            for piece in got.iter_bytes():
                digest.update(piece)
        assert digest.hexdigest() == name
        assert peak.grown < 40 * MB
        for each in (name, of(b"x")):
            assert api.delete(f"/files/{each}").status_code == 204
    wait_for(lambda: not kept(invoker), what="nothing that is left of it")


def test_who_leaves_in_the_middle_leaves_nothing(invoker: Invoker) -> None:
    path = f"/files/{of(b'x')}"
    attestation = signed(SIGNER, "PUT", path, sub="alice", chk=["jwt-claims"])
    address = httpx.URL(invoker.url)
    with socket.create_connection((address.host, address.port or 80)) as leaver:
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\n{HEADER}: {attestation}\r\nContent-Length: {100 * MB}\r\n\r\n"
        leaver.sendall(head.encode() + bytes(3 * MB))
        wait_for(lambda: kept(invoker), what="the file")
        with client(invoker) as api:
            refused = api.put(f"/files/{of(b'y')}", content=bytes(31 * MB))
            assert refused.status_code == 507, "what is on its way has its room"
    wait_for(lambda: not kept(invoker), what="nothing that is left of it")


def test_any_invoker_has_it_by_the_store_and_none_without(
    start_invoker: Callable[..., Invoker], invoker: Invoker, shared_redis: RedisProcess, tmp_path_factory: Any
) -> None:
    """Put at one, named in jobs at it, which a worker of another runs; one of them after its file has gone."""
    store = tmp_path_factory.mktemp("store")
    store.chmod(0o700)
    shared = {"trust": "attested", "attestation_key": SECRET, "redis_url": shared_redis.url, "store": f"file://{store}"}
    one = start_invoker(**shared)
    content = os.urandom(3 * MB)
    with client(one) as api:
        name, gone = put(api, content), put(api, b"gone")
        missing = api.post("/jobs", json=PLAIN | {"files": [{"path": "a", "upload": of(b"none")}]})
        assert missing.status_code == 422 and "files[0].upload" in missing.json()["detail"]
        jobs = []
        for each in (name, gone):
            asked = PLAIN | {"files": [{"path": "a.bin", "upload": each}], "check": "sha256sum a.bin"}
            job = api.post("/jobs", json=asked)
            assert job.status_code == 202, job.text
            jobs.append(job.headers["location"])
        assert api.delete(f"/files/{gone}").status_code == 204
        other = start_invoker(**shared, worker="embedded")
        wait_for(lambda: all(api.get(job).json()["state"] in OVER for job in jobs), what="the end of the jobs")
        done, failed = (api.get(job).json() for job in jobs)
        assert done["state"] == "done" and name in done["result"]["check"]["output"], json.dumps(done)
        assert (failed["state"], failed["error"]["status"], failed["cost_usd"]) == ("failed", 422, 0), json.dumps(
            failed
        )
        assert "files[0].upload: there is no such file" in failed["error"]["detail"]
        with client(other) as elsewhere:
            assert elsewhere.get(f"/files/{name}").content == content
            assert elsewhere.delete(f"/files/{name}").status_code == 204
        assert api.get(f"/files/{name}").status_code == 404
        assert not (one.state / "uploads").exists()
        put(api, content)
    with client(invoker) as api:
        assert api.get(f"/files/{name}").status_code == 404, "it has another store: its own disk"
