"""What belongs together runs on one worker, so that its stack, gateways or wheels are made once."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("groups")
def test_a_group_is_known_to_the_workers(request: pytest.FixtureRequest) -> None:
    """By the end of its tests' names: where pytest keeps names elsewhere, each worker starts everything for itself."""
    grouping = bool(request.config.getoption("loadgroup", default=False))
    assert request.node.nodeid.endswith("@groups") == grouping
