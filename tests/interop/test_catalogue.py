"""The figures of the README are those of the tables."""

from __future__ import annotations

import re

from tests.interop.catalogue import AREAS, README, rows, written


def test_the_readme_says_what_there_is() -> None:
    text = README.read_text()
    assert written(text) == text, "python -m tests.interop.catalogue"


def test_more_was_read_than_was_reported() -> None:
    counted = rows().values()
    assert sum(row.read for row in counted) > sum(row.reported for row in counted)


def test_a_source_can_be_looked_up() -> None:
    """An issue of a repository, an RFC, a chapter of a standard or of a document."""
    known = re.compile(r"[\w.-]+/[\w.-]+#\d+|RFC \d+|WHATWG HTML [\d.]+|Redis: [\w ]+")
    assert not [source for row in rows().values() for source in row.sources if not known.fullmatch(source)]
    assert all(case.source == case.source.strip() for cases in AREAS.values() for case in cases)
