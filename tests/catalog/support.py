"""Catalogs that an operator could have."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

SKILL = """---
name: {name}
description: Says {name}, and nothing else.
{more}---
# {name}

Reads `reference.md` and runs:

```bash
cat ${{CLAUDE_SKILL_DIR}}/reference.md
```
"""


def write_skill(root: Path, name: str, more: str = "", **files: bytes) -> Path:
    """A skill `name` in the catalog at `root`; `more`: lines of its head."""
    folder = root / "skills" / name
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(SKILL.format(name=name, more=more))
    (folder / "reference.md").write_text(f"the reference of {name}\n")
    for path, content in files.items():
        (folder / path).write_bytes(content)
    return folder


def skip_where_python_differs(answer: httpx.Response) -> None:
    """The libraries of skills come from the invoker's Python, which has to be of the version that runs have."""
    if answer.status_code == 403 and "as the invoker's" in answer.json()["detail"]:
        pytest.skip(answer.json()["detail"])


def write_agent(root: Path, name: str, more: str = "", description: str = "") -> None:
    """An agent `name` in the catalog at `root`; `more`: lines of its head."""
    (root / "agents").mkdir(exist_ok=True)
    text = f"---\nname: {name}\ndescription: {description or f'Does what {name} does.'}\n{more}---\nYou are {name}.\n"
    (root / "agents" / f"{name}.md").write_text(text)
