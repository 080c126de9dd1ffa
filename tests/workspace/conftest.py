"""Repositories of a real git server, without a run: what there is before and after one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from claude_contract.claims import Repository
from claude_invoker.cli.tree import Checkout
from claude_invoker.workspace import content
from claude_invoker.workspace.checkout import Stores
from claude_invoker.workspace.mirror import Mirror
from claude_invoker.workspace.repository import Repositories, Source, Wanted
from tests.support.git_server import GitServer, serving

TOKEN = "ghs_planted_token_of_the_tests"
USER = 3_000_000 + os.getpid() % 100_000 if os.geteuid() == 0 else None
"""git's, where there can be one."""


@dataclass
class Place:
    """What an invoker keeps of one server's repositories."""

    server: GitServer
    folder: Path
    bounds: content.Bounds = field(default_factory=content.Bounds)
    mirrors: dict[str, Mirror] = field(default_factory=dict)

    @property
    def token(self) -> Path:
        return self.folder / "token"

    def wanted(self, name: str, ref: str | None = "main", **source: Any) -> Wanted:
        given: dict[str, Any] = {"refresh_s": 0, "token_file": self.token} | source
        known = Repositories({"org/*": Source(url=self.server.url + "/{repository}.git", **given)})
        return known.find(Repository(name, ref))

    def mirror(self, name: str) -> Mirror:
        found = Mirror(self.folder / f"{name.replace('/', '-')}.git", USER)
        return self.mirrors.setdefault(name, found)

    @property
    def stores(self) -> Stores:
        return Stores(self.folder / "stores", USER, self.bounds)

    async def ready(self, name: str, ref: str | None = "main", **source: Any) -> Checkout:
        wanted = self.wanted(name, ref, **source)
        full, commit = await self.mirror(name).find(wanted)
        store = await self.stores.of(self.mirror(name), wanted, commit)
        return Checkout(name, ref, commit, full.removeprefix("refs/heads/"), store)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    with serving(tmp_path_factory.mktemp("served"), TOKEN) as found:
        yield found


@pytest.fixture
def place(server: GitServer) -> Iterator[Place]:
    # Not one of pytest's directories: those are closed to git's user.
    with tempfile.TemporaryDirectory(prefix="workspace-test-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        (folder / "stores").mkdir(mode=0o711)
        found = Place(server, folder)
        found.token.write_text(TOKEN)
        found.token.chmod(0o400)
        yield found
        server.down, server.redirect = False, None
