"""Claims taken out of a map one by one, each of exactly the type that it must have. What is left over is unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LARGEST = 2**53 - 1  # whole numbers beyond it are not the same for every reader of JSON (RFC 8259, section 6)
NEEDED: Any = object()


class AttestationError(Exception):
    """An attestation that must not be trusted, or that cannot be signed. `reason` is a stable word for logs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def malformed(name: str, problem: str) -> AttestationError:
    return AttestationError("malformed", f"the attestation's claim {name:.80} {problem}")


class Members:
    """The members of one JSON object.

    Every method raises AttestationError for a member that is not of its type (null is of none), or that is missing and
    has no `default`. `name`: of the claim that is the object; empty for the claims themselves.
    """

    def __init__(self, value: Any, name: str = "") -> None:
        if not isinstance(value, Mapping):
            raise malformed(name or "set", "is not an object")
        self._left = dict(value)
        self._prefix = f"{name}." if name else ""

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def text(self, name: str, default: Any = NEEDED) -> Any:
        """A string, which is empty only where it may be missing too."""
        return self._take(name, default, lambda value: isinstance(value, str) and (value or default is not NEEDED))

    def whole(self, name: str, default: Any = NEEDED) -> Any:
        """A whole number from 0 to LARGEST."""
        return self._take(name, default, lambda value: type(value) is int and 0 <= value <= LARGEST)

    def amount(self, name: str, default: Any = NEEDED) -> Any:
        """A number from 0 to LARGEST."""
        return self._take(name, default, lambda value: type(value) in (int, float) and 0 <= value <= LARGEST)

    def truth(self, name: str, default: Any = NEEDED) -> Any:
        return self._take(name, default, lambda value: isinstance(value, bool))

    def texts(self, name: str, default: Any = NEEDED) -> Any:
        """A list of strings, as a tuple."""
        found = self._take(
            name, default, lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)
        )
        return tuple(found) if isinstance(found, list) else found

    def mapping(self, name: str) -> dict[str, Any]:
        """An object whose members may have any name; empty where it is missing."""
        found: dict[str, Any] = self._take(
            name, {}, lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        )
        return found

    def inside(self, name: str) -> Members:
        """The members of an object; none where it is missing."""
        return Members(self._left.pop(name, {}), self._prefix + name)

    def pass_over(self, name: str) -> None:
        """A member that may be there and says nothing."""
        self._left.pop(name, None)

    def done(self) -> None:
        """Raises AttestationError for a member that nobody asked for: what it says could not be obeyed."""
        for name in self._left:
            raise malformed(self._prefix + str(name), "is not known here")

    def _take(self, name: str, default: Any, fits: Callable[[Any], Any]) -> Any:
        value = self._left.pop(name, NEEDED)
        if value is NEEDED:
            if default is NEEDED:
                raise malformed(self._prefix + name, "is missing")
            return default
        if not fits(value):
            raise malformed(self._prefix + name, "is not of its type")
        return value
