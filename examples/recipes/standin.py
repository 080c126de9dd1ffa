"""`standin.py SKILL [FILE…]`: the end of a prompt, which tells the local stand-in what a model would do by itself: call
the skill, write each FILE as it lies ready in `standin/`, and run the commands of the SKILL.md, one after each file and
the others in the end. Of the skill `memory` a FILE is a fact, to be looked for and kept.

Prints nothing where there is an API key, and so a model.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

READY = Path(__file__).with_name("standin")


def tool(name: str, **given: str) -> str:
    return f"[[tool {name} {json.dumps(given)}]]"


def remembered(fact: str) -> Iterator[str]:
    yield tool("mcp__memory__recall", query=fact)
    yield tool("mcp__memory__remember", text=fact)


def written(path: str) -> Iterator[str]:
    if Path(path).exists():  # what is there already has to be read before it is written
        yield tool("Read", file_path=path)
    yield tool("Write", file_path=path, content=(READY / path).read_text("utf-8"))
    yield "[[step]]"


if __name__ == "__main__" and not os.environ.get("ANTHROPIC_API_KEY"):
    skill, *given = sys.argv[1:]
    does = remembered if skill == "memory" else written
    print(f"[[skill {skill}]]", *(part for each in given for part in does(each)))
