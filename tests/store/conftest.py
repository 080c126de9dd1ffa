from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_invoker.store.place import Key, Place
from claude_invoker.store.store import Store
from tests.support.s3 import ID, S3, SECRET


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty one of each kind."""
    if request.param == "file":
        return Store(Place.parse(f"file://{tmp_path}/store"), None)
    server: S3 = request.getfixturevalue("s3")
    return Store(Place.parse(server.url(f"test-{secrets.token_hex(4)}")), Key(ID, SECRET))
