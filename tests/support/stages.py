"""Stages from what Kong would hand to their plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from kong_claude.schema import read
from kong_claude.stage import Shared, Stage

S = TypeVar("S", bound=Stage[Any])


def stage_of(kind: type[S], config: Mapping[str, Any], **more: Any) -> S:
    """The stage of a plugin with this configuration, the shared fields included. Raises ConfigError."""
    return kind(read(kind.Config, config), read(Shared, config), **more)
