"""What a reader of stored values says of their versions."""

from __future__ import annotations

import pytest

from claude_contract.versions import UnknownVersion, check


@pytest.mark.parametrize("found", [None, "", 0, "0"])
def test_what_says_no_version_is_of_0_1_0(found: int | str | None) -> None:
    check("it", found, 1)
    with pytest.raises(UnknownVersion, match="it is of version 0, read are 1 and 2: an older release wrote it"):
        check("it", found, 2)


@pytest.mark.parametrize("found", [1, "1", 2, "2"])
def test_a_reader_takes_its_own_and_the_one_before(found: int | str) -> None:
    check("it", found, 2)


@pytest.mark.parametrize("found", [3, "3", "x", "-1"])
def test_anything_else_is_of_a_newer_release(found: int | str) -> None:
    with pytest.raises(UnknownVersion, match=f"it is of version {found}, read are 1 and 2: a newer release wrote it"):
        check("it", found, 2)
