"""From a commit to the directory that a run works in.

Of each commit that runs work on a store is made, which holds what can be reached from it within `depth`, and nothing
else; its content is checked once. A run's tree gets that store as its `.git`, and git, as the run's user and within the
boundary around runs, writes the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from claude_invoker.cli import usage, walk
from claude_invoker.cli.launcher import Launcher
from claude_invoker.cli.tree import Checkout, Tree
from claude_invoker.disk import Kept
from claude_invoker.ending import ended
from claude_invoker.problem import Problem
from claude_invoker.workspace import content, git, modules
from claude_invoker.workspace.content import Unacceptable
from claude_invoker.workspace.git import Bounds, GitFailed, SaysTooMuch
from claude_invoker.workspace.mirror import Mirror
from claude_invoker.workspace.repository import Wanted, unavailable

_log = logging.getLogger(__name__)
_WALK = walk.Bounds(depth=8, entries=10_000)
_LISTING = 256 << 20
_LINE = 320
"""Bytes of what is listed of a file or directory, on the average of all: most of it is the path."""
_INSTRUCTIONS = 64 << 10
_FREE = 0.1
"""The part of the disk that stores leave to others, but for those of the last `_RECENT_S`."""
_RECENT_S = 60.0
_CONFIG = """[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\thooksPath = /dev/null
[gc]
\tauto = 0
"""
ATTRIBUTES = (
    "* !text !eol !filter !ident !working-tree-encoding !diff !merge !export-ignore !export-subst !crlf !whitespace\n"
)
"""What stands over all `.gitattributes` of a tree (gitattributes(5)): files have the bytes of their blobs."""


class Stores:
    """One for each commit, in a directory that only we can enter. Each is made once, by user `uid` of git's (None: by
    us), and is ours from then on."""

    def __init__(self, directory: Path, uid: int | None, bounds: content.Bounds) -> None:
        self._directory = directory
        self._uid = uid
        self._bounds = bounds
        self._making: dict[Path, asyncio.Task[None]] = {}

    async def of(self, mirror: Mirror, wanted: Wanted, commit: str) -> Path:
        """Where it is. Raises Problem 422 for a commit that is not checked out, 503 where no store can be made."""
        shown = ".shown" if wanted.source.instructions else ""
        path = self._directory / f"{mirror.path.stem}.{commit}.{wanted.source.depth}{shown}"
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
            return path
        if path not in self._making:
            task = self._making[path] = asyncio.create_task(self._make(mirror, wanted, commit, path))
            task.add_done_callback(lambda done: self._made(path, done))
        try:
            await asyncio.shield(self._making[path])
        except Unacceptable as error:
            raise Problem(422, "repository", f"{wanted.name} at {commit} cannot be worked on: {error}") from error
        except (GitFailed, OSError, walk.TooMuch) as error:
            said = error.strerror if isinstance(error, OSError) else error
            _log.warning("%s at %s cannot be made ready: %s", wanted.name, commit, said)
            raise cannot_be_ready(wanted.name) from error
        return path

    def _made(self, path: Path, task: asyncio.Task[None]) -> None:
        del self._making[path]
        if not task.cancelled():
            task.exception()

    async def _make(self, mirror: Mirror, wanted: Wanted, commit: str, path: Path) -> None:
        making = self._directory / f".making-{secrets.token_hex(8)}"
        making.mkdir(mode=0o700)
        try:
            if self._uid is not None:
                os.chown(making, self._uid, self._uid)
            shown, holds = await self._fill(mirror, wanted, commit, making)
            if self._uid is not None:
                await asyncio.to_thread(walk.take_back, making, self._uid, _WALK)
            modules.note(making, holds)  # not before: it was not ours
            if shown is not None:
                with (making / "instructions").open("xb") as file:
                    file.write(shown)
            with contextlib.suppress(OSError):  # another invoker was faster
                making.rename(path)
        finally:
            await asyncio.to_thread(walk.delete, making)

    async def _fill(
        self, mirror: Mirror, wanted: Wanted, commit: str, making: Path
    ) -> tuple[bytes | None, modules.Holds]:
        """Brings the objects and looks at them; what is shown of the repository's CLAUDE.md, and what it holds."""
        env = git.environment(GIT_DIR=str(making))

        async def do(*arguments: str, stdin: bytes = b"", output: int = _LISTING) -> bytes:
            return await git.run(
                arguments,
                cwd=making,
                uid=self._uid,
                env=env,
                # The objects were checked when they came into the mirror.
                configuration={"protocol.file.allow": "always", "fetch.fsckObjects": "false"},
                bounds=Bounds(wanted.source.timeout_s, wanted.source.max_bytes, output),
                stdin=stdin,
            )

        await do("init", "--quiet", "--bare", "--template=")
        deep = [f"--depth={wanted.source.depth}"] if wanted.source.depth else []
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", *deep)
        await do("fetch", *options, "--", f"file://{mirror.path}", commit)
        listed, links = await checked(do, commit, self._bounds)
        holds = modules.Holds(listed.entries, listed.bytes, links, await modules.of(do, commit, listed))
        shown = None
        if wanted.source.instructions:
            with contextlib.suppress(GitFailed):  # there is none, it is a directory, or larger than what is shown
                shown = await do("cat-file", "blob", f"{commit}:CLAUDE.md", output=_INSTRUCTIONS)
        return shown, holds

    async def close(self) -> None:
        """Breaks off what is being made."""
        await asyncio.gather(*map(ended, self._making.values()))

    def sweep(self, unused_s: float, in_use: Iterable[Path]) -> None:
        """Deletes those that nobody has asked for so long, and earlier ones where the disk fills: a caller may name any
        commit of a history. Not those `in_use`: what a run has changed is compared with its store when it is over.
        Other invokers see by its time that one is."""
        for path in in_use:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
        now = time.time()
        found: list[tuple[float, Path]] = []
        for path in self._directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path))
        for used_at, path in sorted(found):
            if used_at + unused_s < now or (used_at + _RECENT_S < now and self._disk_is_full()):
                self._delete(path)

    def kept(self) -> list[Kept]:
        """What is here, by the names of the directories. Raises OSError."""
        found = []
        for path in self._directory.iterdir():
            if path.name.startswith("."):  # it is being made, or goes
                continue
            with contextlib.suppress(FileNotFoundError):
                used_at = path.stat().st_mtime
                found.append(Kept(path.name, None, used_at, usage.files(path).bytes, used_at + _RECENT_S > time.time()))
        return found

    def drop(self, name: str) -> bool:
        """Whether it is gone: not one that was asked for a moment ago. Raises OSError."""
        path = self._directory / name
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime + _RECENT_S > time.time():
                return False
        self._delete(path)
        return True

    def _delete(self, path: Path) -> None:
        """At once: nobody may find half of it."""
        with contextlib.suppress(FileNotFoundError):
            walk.delete(path.rename(self._directory / f".making-{secrets.token_hex(8)}"))

    def _disk_is_full(self) -> bool:
        space = shutil.disk_usage(self._directory)
        return space.free < space.total * _FREE


async def checked(do: git.Git, tree: str, bounds: content.Bounds) -> tuple[content.Listed, dict[str, str]]:
    """What a commit or tree holds, and what its symbolic links say. Raises Unacceptable where that may not be written
    to a disk, GitFailed, OSError."""
    # A tree that holds itself in many places is small as objects, and endless as a list.
    most = min(_LISTING, (1 << 20) + bounds.entries * _LINE) if bounds.entries else _LISTING
    try:
        listing = await do("ls-tree", "-r", "-t", "-l", "-z", "--full-tree", tree, output=most)
        listed = await asyncio.to_thread(content.check, listing, bounds)
        asked = "".join(f"{blob}\n" for blob in listed.links.values()).encode()
        said = await do("cat-file", "--batch", stdin=asked) if listed.links else b""
    except SaysTooMuch as error:
        raise Unacceptable("more files, or longer paths, than can be listed (INVOKER_TREE_ENTRIES_LIMIT)") from error
    except GitFailed as error:
        raise Unacceptable(f"it cannot be listed: {error}") from error
    targets = dict(zip(listed.links, _blobs(said), strict=True))
    await asyncio.to_thread(content.check_links, targets)
    return listed, targets


def cannot_be_ready(name: str) -> Problem:
    return unavailable(f"{name} cannot be checked out here now")


def instructions(store: Path) -> str | None:
    """What the repository's CLAUDE.md says, where it is to be shown."""
    try:
        return (store / "instructions").read_text("utf-8", "replace")
    except FileNotFoundError:
        return None


def copy(store: Path, into: Path, uid: int | None, head: str, refs: str = "") -> None:
    """A git directory with a store's objects, user `uid`'s (None: ours), with this HEAD and these packed refs.

    Packs are shared where the run has another user than we, who could neither change them nor let others: else copied.
    Raises OSError, walk.TooMuch.
    """
    made = [into, into / "objects", into / "objects" / "pack", into / "objects" / "info", into / "refs", into / "info"]
    for path in made:
        path.mkdir(mode=0o700)
    files = {"HEAD": head, "config": _CONFIG, "info/attributes": ATTRIBUTES} | ({"packed-refs": refs} if refs else {})
    for name, text in files.items():
        (into / name).write_text(text)
    if uid is not None:
        for path in (*made, *(into / name for name in files)):
            os.chown(path, uid, uid, follow_symlinks=False)
    add_objects(store, into, uid, "shallow")


def add_objects(store: Path, into: Path, uid: int | None, *names: str) -> None:
    """A store's packs, and its files of these names, beside what a git directory has. Raises OSError, walk.TooMuch."""
    for entry in walk.walk(store, _WALK):
        is_pack = entry.path.startswith("objects/pack/")
        target = into / entry.path
        if not entry.is_regular or not (is_pack or entry.path in names) or (is_pack and target.exists()):
            continue
        if is_pack and uid is not None and _linked(entry, target):
            continue
        source = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.directory)
        with open(source, "rb") as reader, target.open("xb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
        if uid is not None:
            os.chown(target, uid, uid, follow_symlinks=False)


def _linked(entry: walk.Entry, target: Path) -> bool:
    if stat.S_IMODE(entry.status.st_mode) & 0o044 != 0o044:
        os.chmod(entry.name, 0o444, dir_fd=entry.directory)
    try:
        os.link(entry.name, target, src_dir_fd=entry.directory, follow_symlinks=False)
    except OSError:  # another file system
        return False
    return True


@dataclass(frozen=True)
class Confined:
    """git in a run's tree: as the run's user, within the boundary around runs. Only while nothing of the run is alive,
    and never twice at once in a tree."""

    launcher: Launcher
    limits: Bounds

    async def git(
        self,
        tree: Tree,
        uid: int | None,
        directory: Path,
        *arguments: str,
        stdin: bytes = b"",
        output: int = 64 << 20,
        seconds: float = 0.0,
        into: Path | None = None,
        work: Path | None = None,
    ) -> bytes:
        """On `tree.work`, or on `work` in it, with `directory` as git's own. Raises GitFailed, OSError, StillAlive."""
        work = work or tree.work
        launcher, box = self.launcher, self.launcher.box
        killer = launcher.killer

        async def nobody_is_left() -> None:
            if killer is not None and uid is not None:
                await killer.end(uid, 5.0)

        bounds = Bounds(seconds or self.limits.seconds, self.limits.file_size, output, self.limits.memory)
        with contextlib.ExitStack() as inside:
            entry = None
            if box is not None:
                api = launcher.proxy.socket.parent
                entry = inside.enter_context(box.around(tree.root, box.closed, api))
            return await git.run(
                arguments,
                cwd=work,
                uid=uid,
                env=git.environment(GIT_DIR=str(directory), GIT_WORK_TREE=str(work), HOME=str(tree.home)),
                bounds=bounds,
                stdin=stdin,
                entry=entry,
                ended=nobody_is_left,
                into=into,
            )

    async def check_out(self, tree: Tree, uid: int | None, checkout: Checkout) -> None:
        """Fills a new tree. Raises GitFailed, OSError, walk.TooMuch."""
        directory = tree.work / ".git"
        await asyncio.to_thread(walk.delete, directory)  # of a session's first turn that came to nothing
        await asyncio.to_thread(copy, checkout.store, directory, uid, *head_and_refs(checkout))
        await self.git(tree, uid, directory, "reset", "--hard", "--quiet")
        await self.fill_modules(tree, uid, checkout, "reset", "--hard", "--quiet")

    async def fill_modules(self, tree: Tree, uid: int | None, checkout: Checkout, *arguments: str) -> None:
        """Gives each submodule a `.git` of ours, and has git do `arguments` there. Not where a session has put
        something else in the place of its directory. Raises GitFailed, OSError, walk.TooMuch."""
        for path, module in checkout.modules:
            work = tree.work / path
            if not await asyncio.to_thread(walk.is_within, tree.work, path):
                continue
            await asyncio.to_thread(walk.delete, work / ".git")
            await asyncio.to_thread(copy, module.store, work / ".git", uid, *head_and_refs(module))
            await self.git(tree, uid, work / ".git", *arguments, work=work)


def head_and_refs(checkout: Checkout) -> tuple[str, str]:
    """What `copy` is to write, for a `.git` of a run's."""
    if not checkout.branch:
        return f"{checkout.commit}\n", ""
    return f"ref: refs/heads/{checkout.branch}\n", f"{checkout.commit} refs/heads/{checkout.branch}\n"


def _blobs(said: bytes) -> Iterator[str]:
    """The contents in what `git cat-file --batch` prints."""
    at = 0
    while at < len(said):
        end = said.index(b"\n", at)
        size = int(said[at:end].split()[2])
        yield said[end + 1 : end + 1 + size].decode("utf-8", "surrogateescape")
        at = end + 1 + size + 1
