"""What the site has, in its order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """`pages`: paths from the root of the repository, without `.md`; those below `reference/` are generated."""

    title: str
    pages: tuple[str, ...]


def _docs(*names: str) -> tuple[str, ...]:
    return tuple(f"docs/{name}" for name in names)


SECTIONS = (
    Section(
        "Start",
        (
            *("README", "docs/start/local", "docs/start/docker", "docs/start/kong", "docs/start/kubernetes"),
            *_docs("deploy", "clients", "deck"),
        ),
    ),
    Section(
        "How to",
        (
            *_docs("identity/README", "rate-tiers", "prompt-context", "workspace", "catalog", "approvals", "recipes"),
            *_docs("jobs", "tracing", "scale", "upgrade", "restarts", "backup", "clocks", "incidents", "compatibility"),
        ),
    ),
    Section(
        "Reference",
        (
            *(f"reference/{name}" for name in ("settings", "plugins", "routes", "problems", "metrics")),
            *_docs("api", "admin-api", "graphql", "audit", "glossary"),
        ),
    ),
    Section(
        "How it works",
        (
            *_docs("architecture", "fail-closed", "invoker", "gateway", "pluginserver", "jwt-claims", "metrics"),
            *("SECURITY", "docs/dependencies", "minikong/README"),
        ),
    ),
    Section("The project", ("CONTRIBUTING", "docs/releasing", "CHANGELOG")),
)
