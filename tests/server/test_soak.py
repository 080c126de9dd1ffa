"""The short form of `make soak`: every kind of event, many times, and nothing is left."""

from __future__ import annotations

from tests.server.soak import clean, soak


def test_nothing_is_left_after_a_mixed_load() -> None:
    result = soak(events=1500, warm_up=1000)
    if not clean(result):  # a leak is there each time; memory that the allocator took in one piece is not
        result = soak(events=1500, warm_up=1000)
    assert clean(result), result
