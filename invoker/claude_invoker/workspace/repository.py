"""Which repositories runs may work on, and where they come from: `INVOKER_REPOSITORIES`. Pure but for reading files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta, Struct

from claude_contract.claims import Repository
from claude_invoker.egress.addresses import is_loopback
from claude_invoker.problem import Problem

_NAME = re.compile(
    r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.][A-Za-z0-9._-]*(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.][A-Za-z0-9._-]*)*"
)
_REF = re.compile(r"(?![-/.])(?!.*(?:\.\.|//|@\{|/\.|\.lock(?:/|$)|[./]$))[!-~]{1,200}")
_NOT_IN_REFS = frozenset('~^:?*[\\"')
_COMMIT = re.compile(r"[0-9a-f]{40}")
_AUTHOR = re.compile(r"[^<>\s][^<>\x00-\x1f]* <[^<>\s@]+@[^<>\s@]+>")
_PLACE = "{repository}"
# What ssh, a shell or a server could take for anything else has no place in it.
_USER_AT_HOST = r"[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_SSH_PATH = r"(?:\{repository\}|[A-Za-z0-9._~/+-])+"
_SSH_URL = re.compile(rf"ssh://{_USER_AT_HOST}(?::[0-9]{{1,5}})?/{_SSH_PATH}|{_USER_AT_HOST}:(?!-){_SSH_PATH}")


class Push(Struct, frozen=True, forbid_unknown_fields=True):
    """Which branches runs may leave at the server, and as whom."""

    branches: str
    """A glob, as in `refs`. The server's default branch is none of them, whatever this says."""
    author: str
    """Of the commits: `Name <name@host>`."""
    pull_requests: bool = False
    """Whether one may be opened for such a branch, at GitHub."""

    @property
    def identity(self) -> tuple[str, str]:
        """Name and address."""
        name, _, address = self.author.partition(" <")
        return name, address.rstrip(">")


class GitHubApp(Struct, frozen=True, forbid_unknown_fields=True):
    """A GitHub App that is installed where the repositories are: each fetch has a token of its own."""

    id: int | str
    """Its client ID or app ID."""
    key_file: Path
    """A file with its private key (PEM)."""
    api: str = "https://api.github.com"
    """Of GitHub Enterprise Server: `https://HOST/api/v3`."""

    def problem(self) -> str | None:
        parts = urlsplit(self.api)
        is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
        if not is_safe or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
            return "api must be https://…, without credentials"
        return None


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the repositories of one pattern come from, and what runs may have of them."""

    url: str
    """To clone from, with `{repository}` in the place of the name: https, ssh, or http to loopback."""
    token_file: Path | None = None
    """A file with the token that is the password at an https server."""
    username: str = "x-access-token"
    github_app: GitHubApp | None = None
    """Who mints the password at an https server."""
    key_file: Path | None = None
    """A file with the private key that is let in by ssh."""
    known_hosts: Path | None = None
    """A file with the host keys of the server (ssh_known_hosts(5)): no other is spoken to."""
    refs: tuple[str, ...] = ("**",)
    """Branches and tags that may be asked for: globs, in which `*` stays within a part of the name."""
    depth: Annotated[int, Meta(ge=0)] = 1
    """Commits of history that a run has; 0: all of it."""
    refresh_s: Annotated[float, Meta(ge=0)] = 30.0
    """How long a branch is taken to be where it was last seen."""
    stale: bool = False
    """Whether what was fetched before is worked on while the server does not answer."""
    instructions: bool = False
    """Whether the repository's CLAUDE.md is shown to the model."""
    submodules: tuple[str, ...] = ()
    """Names of repositories that come along where a commit has them as submodules, whoever asks: globs."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 120.0
    """How long one fetch may take."""
    max_bytes: Annotated[int, Meta(ge=1 << 20)] = 2 << 30
    """What one fetch may bring."""
    push: Push | None = None
    """None: nothing is pushed."""

    def problem(self) -> tuple[str, str] | None:
        """The field that is wrong, and why; None where all is well."""
        found = self._problem_of_ssh() if self.is_ssh else self._problem_of_https()
        if found is not None:
            return found
        if self.push is not None and not _AUTHOR.fullmatch(self.push.author):
            return "push", "author must be a name and an address, such as Claude <claude@example.com>"
        if self.push is not None and not self.push.branches:
            return "push", "branches must be a pattern, such as claude/*"
        if self.push is not None and self.push.pull_requests and self.github_app is None:
            return "push", "pull_requests needs a github_app, which opens them"
        return None

    def _problem_of_ssh(self) -> tuple[str, str] | None:
        if not _SSH_URL.fullmatch(self.url):
            said = "must be ssh://user@host/… or user@host:…, {repository} in its path only, of ordinary characters"
            return "url", said
        for field, value in (("token_file", self.token_file), ("github_app", self.github_app)):
            if value is not None:
                return field, "is for https: name a key_file"
        if self.key_file is None:
            return "key_file", "is needed: the private key that the server knows"
        if self.known_hosts is None:
            return "known_hosts", "is needed: a file with the server's host key, as ssh-keyscan prints it"
        return None

    def _problem_of_https(self) -> tuple[str, str] | None:
        parts = urlsplit(self.url.replace(_PLACE, "x"))
        if parts.scheme not in ("https", "http") or not parts.hostname or not parts.path.strip("/"):
            return "url", "must be https://host/…, ssh://user@host/… or user@host:…"
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            return "url", "http is for servers on this machine, others can read it on its way: use https"
        if parts.username is not None or parts.password is not None:
            return "url", "must hold no credentials: name a token_file"
        if self.host != f"{parts.scheme}://{urlsplit(self.url.replace(_PLACE, 'y')).netloc}":
            return "url", "may have {repository} in its path only: else a caller would name the server"
        if "\n" in self.username or not self.username:
            return "username", "must be one line of text"
        for field, value in (("key_file", self.key_file), ("known_hosts", self.known_hosts)):
            if value is not None:
                return field, "is for ssh: name a token_file"
        if self.github_app is not None:
            if self.token_file is not None:
                return "github_app", "has no token_file beside it: name one of them"
            if problem := self.github_app.problem():
                return "github_app", problem
        return None

    @property
    def is_ssh(self) -> bool:
        return self.url.startswith("ssh:") or ("@" in self.url and "://" not in self.url)

    @property
    def scheme(self) -> str:
        """By which git asks the server, and by no other."""
        return "ssh" if self.is_ssh else urlsplit(self.url).scheme

    @property
    def host(self) -> str:
        """scheme://host[:port], to which alone a token is said."""
        parts = urlsplit(self.url.replace(_PLACE, "x"))
        return f"{parts.scheme}://{parts.netloc}"


class Wanted(Struct, frozen=True):
    """A repository that a run is to work on, with all that decides how; `ref` None: the server's default branch."""

    name: str
    ref: str | None
    source: Source
    may_push: bool = False
    """Whether the caller's token allows that."""
    may_open: bool = False
    """Whether it allows pull requests."""

    @property
    def url(self) -> str:
        return self.source.url.replace(_PLACE, self.name)

    def allows(self, ref: str) -> bool:
        """Whether a branch or tag may be worked on."""
        return any(_glob(pattern).fullmatch(ref) for pattern in self.source.refs)

    def refuse_branch(self, branch: str) -> None:
        """Raises Problem 422 for what is no name of a branch, 403 for one that may not be pushed."""
        push = self.source.push
        if push is None or not self.may_push:
            who = "a run (push in INVOKER_REPOSITORIES)" if push is None else "your token (push_claim at the gateway)"
            raise Problem(403, "forbidden", f"result.push: {who} may push nothing to {self.name}")
        if not is_ref(branch) or branch == "HEAD" or branch.startswith("refs/") or _COMMIT.fullmatch(branch):
            raise Problem(422, "invalid", f"result.push: {branch[:200]!r} is no name of a branch")
        if not _glob(push.branches).fullmatch(branch):
            raise Problem(403, "forbidden", f"result.push: {branch} may not be pushed; allowed: {push.branches}")

    def refuse_pull_request(self) -> None:
        """For who may push. Raises Problem 403 where none may be opened."""
        by_operator = self.source.push is not None and self.source.push.pull_requests
        if not by_operator or not self.may_open:
            who = "your token (pull_request_claim at the gateway)"
            if not by_operator:
                who = "a run (push.pull_requests in INVOKER_REPOSITORIES)"
            raise Problem(403, "forbidden", f"result.pull_request: {who} may open none at {self.name}")

    def is_among(self, patterns: Iterable[str]) -> bool:
        """Whether one of these globs fits its name."""
        return any(_glob(pattern).fullmatch(self.name) for pattern in patterns)

    def takes_along(self, module: Wanted) -> bool:
        """Whether another repository may be there as a submodule."""
        return module.is_among(self.source.submodules)

    @property
    def is_commit(self) -> bool:
        return self.ref is not None and _COMMIT.fullmatch(self.ref) is not None


class Repositories:
    """The file, read: pattern → `Source`, of which the first that fits a name counts."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.patterns = tuple(sources.items())
        self._sources = [(_glob(pattern), source) for pattern, source in sources.items()]
        self.use_ssh = any(source.is_ssh for source in sources.values())

    def find(self, asked: Repository) -> Wanted:
        """Raises Problem 404 for a repository that no pattern fits, 422 for names that are none, 403 for a branch or
        tag that is not allowed."""
        source = None
        if _NAME.fullmatch(asked.name) and not asked.name.endswith(".git"):
            source = next((source for pattern, source in self._sources if pattern.fullmatch(asked.name)), None)
        if source is None:
            raise Problem(
                404, "no-repository", f"no repository {asked.name:.200} is known here (INVOKER_REPOSITORIES lists them)"
            )
        wanted = Wanted(asked.name, asked.ref, source, asked.push, asked.pull_request)
        if asked.ref is None or wanted.is_commit:
            return wanted
        if not is_ref(asked.ref):
            raise Problem(422, "invalid", f"{asked.ref[:200]!r} is no name of a branch or tag, and no full commit id")
        if not wanted.allows(asked.ref):
            raise refused(wanted, asked.ref)
        return wanted

    def at(self, url: str, commit: str) -> Wanted | None:
        """What is fetched from an address, however that is written; None: nothing. It is never asked by the address:
        the repository's own `url` and credential say how."""
        place = _place(url)
        if place is None or not _COMMIT.fullmatch(commit):
            return None
        for _, source in self._sources:
            host, _, path = (_place(source.url.replace(_PLACE, "\0")) or "").partition("/")
            before, is_named, after = path.partition("\0")
            name = place.removeprefix(f"{host}/{before}").removesuffix(after)
            if is_named and place == f"{host}/{before}{name}{after}":
                with suppress(Problem):
                    found = self.find(Repository(name, commit))
                    if _place(found.url) == place:  # the first pattern that fits the name may be another server's
                        return found
        return None


def _place(url: str) -> str | None:
    """`host[:port]/path` of an address by https or ssh; None for what is none."""
    if "://" in url:
        try:
            parts = urlsplit(url)
        except ValueError:
            return None
        host, path = parts.netloc.rpartition("@")[2], parts.path
    else:
        host, _, path = url.rpartition("@")[2].partition(":")
    path = path.strip("/").removesuffix(".git")
    return f"{host.lower()}/{path}" if host and path else None


def is_ref(name: str) -> bool:
    """Whether a branch or tag can be called so (git-check-ref-format(1)), in ASCII and 200 characters."""
    return _REF.fullmatch(name) is not None and not _NOT_IN_REFS.intersection(name)


def refused(wanted: Wanted, ref: str) -> Problem:
    """That a branch, tag or commit may not be worked on."""
    allowed = ", ".join(wanted.source.refs) or "nothing"
    return Problem(403, "forbidden", f"{ref} of {wanted.name} may not be worked on here; allowed: {allowed}")


def unavailable(what: str) -> Problem:
    """That a repository cannot be had now."""
    detail = f"{what}; the invoker's log says why"
    return Problem(503, "repository-unavailable", detail, {"Retry-After": "10"})


def load(path: Path) -> Repositories:
    """Reads the file. Raises ValueError, which names file, line and field."""
    try:
        text = path.read_text("utf-8")
        node = yaml.compose(text, yaml.SafeLoader)
        document = yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{path}:{line}: {error.problem}") from error
    sources: dict[str, Source] = {}
    if not isinstance(document, dict) or not document:
        raise ValueError(f"{path}:1: must map patterns of repositories, such as org/*, to where they come from")
    for pattern, entry in document.items():
        if not isinstance(pattern, str) or not re.fullmatch(r"[A-Za-z0-9._*?/-]+", pattern):
            raise ValueError(f"{path}:{_line(node, [])}: {pattern!r} is no pattern of repositories, such as org/*")
        try:
            source = msgspec.convert(entry, Source, dec_hook=_path)
        except msgspec.ValidationError as error:
            problem, _, place = str(error).partition(" - at `$")
            fields = [part for part in re.split(r"[.\[\]]", place.rstrip("`")) if part and not part.isdigit()]
            unknown = re.search(r"unknown field `([^`]*)`", problem)
            fields += [unknown[1]] if unknown else []
            raise ValueError(_said(path, node, [pattern, *fields], problem)) from error
        found = source.problem()
        if found is None and re.search(r"[*?]", pattern) and _PLACE not in source.url:
            found = "url", "must have {repository} in its path: the pattern fits several repositories"
        if found is not None:
            raise ValueError(_said(path, node, [pattern, found[0]], found[1]))
        sources[pattern] = source
    return Repositories(sources)


def _path(kind: type, value: Any) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise ValueError("must be the path of a file")
    return Path(value)


def _said(path: Path, node: Any, keys: list[str], problem: str) -> str:
    return f"{path}:{_line(node, keys)}: {'.'.join(keys)}: {problem}"


def _line(node: Any, keys: Iterable[str]) -> int:
    """Where a member stands, or what is nearest to it of what holds it; from 1."""
    line = int(node.start_mark.line) + 1
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, value) for name, value in pairs if name.value == key), None)
        if found is None:
            break
        line, node = int(found[0].start_mark.line) + 1, found[1]
    return line


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stay within a part of a path, `**` does not."""
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    known = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(part, re.escape(part)) for part in parts))
