"""What the end of a check means, and what the model is told of one that has failed: pure."""

from __future__ import annotations

from claude_invoker.cli.aside import Said
from claude_invoker.model import Check

_SHOWN = 20_000


def judged(said: Said, command: str, duration_ms: int, repairs: int) -> Check:
    text = said.tail.decode("utf-8", "replace")
    return Check(
        command=command,
        passed=said.exit_code == 0,
        exit_code=said.exit_code,
        ended_for=said.was,
        output=text[-_SHOWN:],
        truncated=len(text) > _SHOWN or said.size > len(said.tail),
        duration_ms=duration_ms,
        repairs=repairs,
    )


def of_failure(check: Check) -> str:
    """What it has printed may be anybody's words: they stand in a frame, and after what is asked for."""
    output = check.output.replace("</output", "<\\/output")
    how = {"": f"has ended with exit code {check.exit_code}", "timeout": "took too long", "output": "printed too much"}
    return (
        f"When you had finished, this command was run in your working directory:\n\n{check.command}\n\n"
        f"It {how[check.ended_for]}. Change what is needed for it to succeed, without making it check less. The end of "
        f"what it has printed:\n\n<output>\n{output}\n</output>"
    )
