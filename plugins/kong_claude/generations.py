"""What the plugin server's generations tell each other: after a `kong reload` two or more live side by side.

Code that keeps something in memory which another generation may need registers an answer here, and asks the others for
what it does not find itself. Without the plugin server, or with one generation, there is nobody to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

answers: dict[str, Callable[[Any], Any]] = {}
"""By the question's name: from its argument to the answer, both as MessagePack carries them; None: not known here."""

bequests: dict[str, Callable[[], Any]] = {}
"""By the question's name: what the next generation is told with it, once, when this one ends."""


def _nobody(_question: str, _argument: Any) -> Iterator[Any]:
    return iter(())


_others: list[Callable[[str, Any], Iterator[Any]]] = [_nobody]


def ask(question: str, argument: Any) -> Iterator[Any]:
    """The answers of the other generations, one after the other. Who says nothing in a second is left out."""
    return _others[0](question, argument)


def reach_others_by(how: Callable[[str, Any], Iterator[Any]]) -> None:
    """The plugin server says how they are asked."""
    _others[0] = how
