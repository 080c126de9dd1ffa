"""Each line of the table (`cli.py`), as the invoker reads it."""

from __future__ import annotations

import pytest

from claude_invoker.cli.messages import Malformed, Result, parse
from claude_invoker.cli.outcome import failure
from claude_invoker.metering.figures import Figures
from tests.interop.cli import LINES, Line


@pytest.mark.parametrize("line", LINES, ids=str)
def test_what_the_cli_says(line: Line) -> None:
    if line.refused:
        with pytest.raises(Malformed):
            parse(line.text)
        return
    message = parse(line.text)
    if not isinstance(message, Result):
        assert message == line.becomes
        return
    assert line.becomes is Result
    problem = failure(message, Figures())
    assert (problem and (problem.status, problem.kind)) == line.answer


def test_each_line_is_told_apart() -> None:
    assert len({str(line) for line in LINES}) == len(LINES)
