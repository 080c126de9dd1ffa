"""docs/recipes.md as it stands, block by block in one shell, against a stack that it starts itself. The stand-in writes
what lies ready in examples/recipes; commands it has from the SKILL.md alone. What comes out is opened with other libraries."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docx
import PIL.Image
import pypdf
import pypdfium2
import pytest

from claude_invoker.catalog.catalog import OURS
from tests.e2e.conftest import COMMAND, ROOT, free_port, gateway_option, own_environment
from tests.support.waiting import HANG_S

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="which users runs have is tested as root"),
    pytest.mark.skipif(
        shutil.which("python3", path="/usr/local/bin:/usr/bin") is None,
        reason="the scripts of skills need a Python of runs",
    ),
]


@dataclass(frozen=True)
class Kitchen:
    """`record`: what reached the stand-in of the Messages API."""

    place: Path
    said: str
    record: list[dict[str, Any]]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    checkout = tmp_path_factory.mktemp("recipes")
    shutil.copy(ROOT / "kong.yml", checkout)
    shutil.copytree(ROOT / "examples/recipes", checkout / "examples/recipes")
    shown = "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.DOTALL))
    port = free_port()
    for was, now in (
        ("127.0.0.1:8000", f"127.0.0.1:{port}"),
        ("kong-claude up ", f"kong-claude up --port {port} {shlex.join(gateway_option())} "),
        ("$PWD/.venv/bin", str(Path(sys.executable).parent)),
    ):
        assert was in shown
        shown = shown.replace(was, now)
    home = checkout / "home"
    own = own_environment(home)
    command = ["bash", "-euo", "pipefail", "-c", shown]
    try:
        done = subprocess.run(
            command, cwd=checkout, env=own, capture_output=True, text=True, check=False, timeout=3 * HANG_S
        )
    finally:
        subprocess.run([COMMAND, "down"], env=own, check=True, timeout=HANG_S)  # where it has not come to its own
    assert done.returncode == 0, done.stdout + done.stderr
    record = [json.loads(line) for line in (home / "standin.jsonl").read_text().splitlines()]
    yield Kitchen(checkout / "build/recipes", done.stdout, record)


def test_a_weekly_pdf(kitchen: Kitchen) -> None:
    content = (kitchen.place / "week.pdf").read_bytes()
    text = "".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(content)).pages)
    assert all(word in text for word in ("Claude gateway", "By tier", "pro", "claude-invoke")), text
    assert json.loads((kitchen.place / "report.json").read_text())["by_tier"]["pro"]["requests"] >= 1
    page = pypdfium2.PdfDocument(content)[0].render(scale=1).to_pil().convert("L")
    assert page.getextrema() == (0, 255)


def test_patterns_across_weeks(kitchen: Kitchen) -> None:
    """The second week's run has the first one's figures from its memory, and not from its prompt."""
    assert "week 47: 2 requests" in (kitchen.place / "pattern.txt").read_text()


def test_a_status_page(kitchen: Kitchen) -> None:
    assert "<h1>All is well.</h1>" in (kitchen.place / "status.html").read_text()
    assert "page.html: stands by itself" in shown_to_the_model(kitchen)


def test_a_review_in_word(kitchen: Kitchen) -> None:
    document = docx.Document(str(kitchen.place / "review.docx"))
    assert document.paragraphs[0].text == "Review of basket.py"
    [table] = document.tables
    assert [cell.text for cell in table.rows[0].cells] == ["Where", "Severity", "Finding", "What to do"]
    assert [row.cells[1].text for row in table.rows[1:]] == ["high", "low"]


def test_a_figure(kitchen: Kitchen) -> None:
    picture = PIL.Image.open(kitchen.place / "figure.png")
    assert picture.format == "PNG" and picture.width > picture.height > 500
    assert (200, 112, 42) in {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()}
    assert (kitchen.place / "figure.svg").read_text().startswith("<svg")


def test_a_fix_that_begins_with_a_test(kitchen: Kitchen, tmp_path: Path) -> None:
    said = json.loads((kitchen.place / "fix.json").read_text())
    steps = [line for line in said["result"].splitlines() if re.fullmatch(r"\w+: (not )?done.*", line)]
    assert steps == ["start: done", "red: done", "green: done", "refactor: done"]
    assert said["check"]["passed"] and "True" in kitchen.said
    shutil.copy(kitchen.place / "test_quantities.py", tmp_path)

    def passes(source: str) -> bool:
        shutil.copy(kitchen.place / source, tmp_path / "basket.py")
        ran = subprocess.run(
            [sys.executable, "-B", "-m", "unittest", "-q"], cwd=tmp_path, capture_output=True, check=False
        )
        return ran.returncode == 0

    assert passes("basket-fixed.py") and not passes("basket.py")


def test_every_command_stood_in_the_text_of_a_skill(kitchen: Kitchen) -> None:
    told = "".join(path.read_text() for path in (OURS / "skills").glob("*/SKILL.md"))
    wanted = {
        text.replace("${CLAUDE_SKILL_DIR}", "").strip() for text in re.findall(r"```bash\n(.*?)```", told, re.DOTALL)
    }
    calls = [block for line in kitchen.record for block in blocks(line) if block.get("name") == "Bash"]
    ran = {re.sub(r" /\S+/skills/[a-z-]+/", " /", call["input"]["command"]).strip() for call in calls}
    assert ran == wanted, "all of them, and nothing else"


def blocks(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for message in line.get("messages") or ():
        if isinstance(message["content"], list):
            yield from message["content"]


def test_a_model_is_told_nothing_of_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTHROPIC_API_KEY", "a key")
        done = subprocess.run(
            [sys.executable, ROOT / "examples/recipes/standin.py", "pdf"], capture_output=True, text=True, check=True
        )
    assert done.stdout == ""


def shown_to_the_model(kitchen: Kitchen) -> str:
    return json.dumps([line for line in kitchen.record if line["path"] == "/v1/messages"])
