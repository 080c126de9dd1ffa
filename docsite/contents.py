"""What the site has, in its order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """`pages`: paths from the root of the repository, without `.md`; those below `reference/` are generated."""

    title: str
    pages: tuple[str, ...]


SECTIONS = (
    Section("Start", ("README", "docs/deploy", "docs/clients", "docs/deck")),
    Section(
        "How to",
        (
            *("docs/identity/README", "docs/rate-tiers", "docs/prompt-context", "docs/workspace", "docs/catalog"),
            *(
                "docs/approvals",
                "docs/recipes",
                "docs/jobs",
                "docs/scale",
                "docs/upgrade",
                "docs/incidents",
                "docs/compatibility",
            ),
        ),
    ),
    Section(
        "Reference",
        (
            *("reference/settings", "reference/plugins", "reference/routes", "reference/problems"),
            *("reference/metrics", "docs/api", "docs/admin-api", "docs/graphql", "docs/audit", "docs/glossary"),
        ),
    ),
    Section(
        "How it works",
        (
            *("docs/architecture", "docs/fail-closed", "SECURITY", "docs/invoker", "docs/gateway", "docs/pluginserver"),
            *("docs/jwt-claims", "docs/metrics", "docs/dependencies", "minikong/README"),
        ),
    ),
    Section("The project", ("CONTRIBUTING", "CHANGELOG")),
)
