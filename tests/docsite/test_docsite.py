"""The site: links as they are there, a reference without gaps, and, in the long form, the whole of it built."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from xml.etree import ElementTree

import pytest

from claude_invoker import problem
from claude_invoker.settings import Settings
from docsite import pages, reference, screenshots
from docsite.__main__ import written
from docsite.contents import SECTIONS
from docsite.trace import bars, svg

PAGES = ("README.md", "SECURITY.md", "docs/api.md", "docs/identity/README.md", "docs/identity/okta.md")


@pytest.mark.parametrize(
    ("document", "text", "expected"),
    [
        ("README.md", "[a](docs/api.md)", "[a](api.md)"),
        ("README.md", "[a](docs/api.md#b)", "[a](api.md#b)"),
        ("docs/api.md", "[a](../SECURITY.md#b)", "[a](security.md#b)"),
        ("docs/api.md", "[a](identity/README.md)", "[a](identity/readme.md)"),
        ("docs/identity/okta.md", "[a](README.md) [b](../api.md)", "[a](readme.md) [b](../api.md)"),
        ("docs/api.md", "[`x.py`](../invoker/x.py)", "`x.py`"),  # no page
        ("docs/api.md", "[a](#b) [c](https://example.com/d.md)", "[a](#b) [c](https://example.com/d.md)"),
        ("docs/api.md", "[[a]](../README.md)", "[[a]](readme.md)"),
        ("docs/api.md", "```sh\n[a](../README.md)\n```\n", "```sh\n[a](../README.md)\n```\n"),  # code
        ("docs/api.md", "~~~\n```\n~~~\n[a](../README.md)", "~~~\n```\n~~~\n[a](readme.md)"),
    ],
)
def test_links(document: str, text: str, expected: str) -> None:
    assert pages.linked(text, document, PAGES) == expected


def test_every_document_has_its_place_in_the_contents() -> None:
    named = {f"{page}.md" for section in SECTIONS for page in section.pages}
    documents = {str(path.relative_to(pages.ROOT)) for path in (pages.ROOT / "docs").glob("*.md")}
    assert documents - named == set()
    generated = {name.removeprefix("reference/") for each in SECTIONS for name in each.pages if "reference/" in name}
    assert generated == {"settings", "plugins", "routes", "problems", "metrics"}


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return reference.pages()


def rows(page: str) -> list[list[str]]:
    found = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.splitlines() if line.startswith("| ")]
    return [row for row in found if row[0] not in ("---", "field", "variable", "kind", "name", "route")]


def test_every_setting_is_there_and_said_what_it_does(generated: dict[str, str]) -> None:
    found = dict(row for row in rows(generated["settings"]))
    assert len(found) == len(Settings.model_fields)
    assert [name for name, said in found.items() if not re.match(r"`?[A-Z]", said)] == []
    assert found["`INVOKER_MAX_UPLOAD`"].endswith("*whole number*, by default `134217728` (128 MiB)")
    assert found["`INVOKER_ATTESTATION_KEY`"].endswith("*secret*")
    assert found["`INVOKER_ANTHROPIC_BASE_URL`, `ANTHROPIC_BASE_URL`"]


def test_every_field_of_a_plugin_is_said_what_it_does(generated: dict[str, str]) -> None:
    found = rows(generated["plugins"])
    assert len(found) > 150
    assert [row[0] for row in found if row[1].startswith("*")] == []
    assert any(row[0] == "`max_usd_per_run`" and "*number*" in row[1] for row in found)


def test_problems_have_the_statuses_that_the_invoker_gives_them(generated: dict[str, str]) -> None:
    found = {row[0].strip("`"): row[1] for row in rows(generated["problems"])}
    assert set(found) == set(problem.TITLES)
    assert (found["too-much-held"], found["no-room"], found["gone"]) == ("429, 507", "507", "410")


def test_routes_and_metrics_are_those_that_there_are(generated: dict[str, str]) -> None:
    assert "`POST /invoke`" in generated["routes"] and "`GET /jobs/{job_id}/events`" in generated["routes"]
    for name in ("claude_requests_total", "claude_invoker_runs_total", "claude_invoker_disk_bytes"):
        assert f"`{name}`" in generated["metrics"]


def test_pictures_are_shown_where_all_of_them_are_there(tmp_path: Path) -> None:
    taken, sources = tmp_path / "taken", tmp_path / "sources"
    taken.mkdir()
    for name in screenshots.PAGES:
        for theme in screenshots.THEMES:
            (taken / f"{name}-{theme}.png").write_bytes(b"png")
    (taken / screenshots.TRACE).write_text("<svg/>")
    written(sources, taken)
    shown = (sources / "reference" / "dashboard.md").read_text()
    named = re.findall(r"\{image\} (\S+)", shown)
    assert len(named) == 2 * len(screenshots.PAGES) + 1
    assert all((sources / "reference" / each).resolve().is_file() for each in named)
    assert "reference/dashboard" in (sources / "index.md").read_text()
    (taken / "limits-dark.png").unlink()
    written(sources, taken)
    assert not (sources / "reference" / "dashboard.md").exists() and not (sources / "screenshots").exists()
    assert "reference/dashboard" not in (sources / "index.md").read_text()


Drawn = namedtuple("Drawn", "name id parent began ended")


def test_a_trace_is_drawn_in_its_order(tmp_path: Path) -> None:
    spans = [
        Drawn("chat <b>", "3", "2", 5_000_000, 9_000_000),
        Drawn("run", "2", "1", 1_000_000, 9_000_000),
        Drawn("wait", "4", "2", 1_000_000, 1_000_000),
        Drawn("request", "1", "of its client, which is not drawn", 0, 10_000_000),
        Drawn("late", "5", "1", 9_500_000, 10_000_000),
    ]
    found = bars(spans)
    assert [(bar.name, bar.depth, bar.began, bar.took) for bar in found] == [
        ("request", 0, 0, 10),
        ("run", 1, 1, 8),
        ("wait", 2, 1, 0),
        ("chat <b>", 2, 5, 4),
        ("late", 1, 9.5, 0.5),
    ]
    drawn = ElementTree.fromstring(svg(found))
    boxes = [each for each in drawn if each.tag.endswith("rect")][1:]  # the first is the ground
    assert [float(each.attrib["x"]) for each in boxes] == [270, 322, 322, 530, 764]
    assert [float(each.attrib["width"]) for each in boxes] == [520, 416, 2, 208, 26]


@pytest.mark.slow
def test_the_site_is_built_without_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="make site installs it")
    out = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "docsite", "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = (out / "reference" / "settings.html").read_text()
    assert "INVOKER_AUDIT_IN_ALL" in written
    # Whole in itself.
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', written)
    assert loaded == []


@pytest.mark.slow
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of that."""
    pytest.importorskip("sphinx", reason="make site installs it")
    from docsite import __main__ as program

    monkeypatch.setattr(
        pages, "index", lambda generated=(): "# x\n\n[a](nowhere.md)\n\n[b](api.md#nothing-of-that-name)\n"
    )
    monkeypatch.setattr(sys, "argv", ["docsite", "--out", str(tmp_path / "site")])
    assert program.main() != 0
