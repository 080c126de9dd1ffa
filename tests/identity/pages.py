"""The examples of docs/identity, read from the pages themselves.

An example is a section with: the header after the word Header, the payload, the configuration, a table of what becomes of the
token, what is different in a token that must be refused, and the refusal.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "identity"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")

_SECTION = re.compile(r"^## ", re.MULTILINE)
_HEADER = re.compile(r"^Header `(\{.*\})`$", re.MULTILINE)
_JSON = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIGURATION = re.compile(r"^```yaml\n(issuers:.*?)^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| (subject|tier|roles|repositories) \| .* \| (.*) \|$", re.MULTILINE)
_REFUSAL = re.compile(r"^(\d{3}): `(.*)`$", re.MULTILINE)
_QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Example:
    """One section's texts, as they stand on the page."""

    name: str
    header: str
    payload: str
    configuration: str
    becomes: dict[str, str]
    """subject, tier, roles, repositories → the table's last column."""
    different: str
    status: int
    refusal: str

    def __str__(self) -> str:
        return self.name

    def named(self, what: str) -> list[str]:
        """The quoted names in a row's last column; none for "none" and "any"."""
        found = [name.replace("\\|", "|") for name in _QUOTED.findall(self.becomes[what])]
        assert found or self.becomes[what] == ("any" if what == "repositories" else "none"), self.becomes[what]
        return found

    @property
    def repositories(self) -> tuple[list[str], list[str]]:
        """The repositories that the page says pass, and those that do not."""
        allowed, _, refused = self.becomes["repositories"].partition(" not ")
        return _QUOTED.findall(allowed), _QUOTED.findall(refused)


def examples(path: Path) -> list[Example]:
    """The examples of a page. An AssertionError names a section in which a piece is missing or twice."""
    return [_example(path, section) for section in _SECTION.split(path.read_text())[1:] if _JSON.search(section)]


def _example(path: Path, section: str) -> Example:
    name = f"{path.stem}: {section.splitlines()[0]}"
    (header,) = _HEADER.findall(section)
    payload, different = _JSON.findall(section)
    (configuration,) = CONFIGURATION.findall(section)
    rows = _ROW.findall(section)
    becomes = dict(rows)
    assert [what for what, _ in rows] == ["subject", "tier", "roles", "repositories"], name
    ((status, refusal),) = _REFUSAL.findall(section)
    return Example(name, header, payload, configuration, becomes, different, int(status), refusal)


EXAMPLES = [example for page in PAGES for example in examples(page)]


def moved(text: str, base: str) -> str:
    """The one substitution: each https address of a page is a path of the server at `base`."""
    return text.replace("https://", f"{base}/")


def issued(claims: dict[str, Any], now: int) -> dict[str, Any]:
    """The claims of a token that was issued `now`, in Unix seconds."""
    times = ("iat", "nbf", "exp", "auth_time")
    shift = now - claims["iat"]
    return {name: value + shift if name in times else value for name, value in claims.items()}


def changed(claims: dict[str, Any], different: str) -> dict[str, Any]:
    """The claims with what a page says is different; null takes a claim out."""
    return {name: value for name, value in {**claims, **json.loads(different)}.items() if value is not None}
