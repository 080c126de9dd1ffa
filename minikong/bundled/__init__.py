"""Kong's bundled plugins, as far as minikong has them; any other name is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minikong.schema import bundled as _schemas

if TYPE_CHECKING:
    from minikong.conf import KongConf

BUNDLED: dict[str, Callable[[Any], Any]] = {}


def schemas(conf: KongConf) -> dict[str, Any]:
    """Their Schemas by name."""
    return _schemas.schemas()
