"""What the tiers allow whose runs were here last, kept over a restart: so that the first run of each finds a process
that waits for it. The gateway alone knows its tiers; a run tells of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from claude_contract.claims import Clamp
from claude_contract.members import AttestationError, Members

_log = logging.getLogger(__name__)
MOST = 16
_MAX_BYTES = 64 << 10


class Tiers:
    """`path`: the file, which is this user's alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._claims: dict[str, Mapping[str, Any]] = {}

    def load(self) -> dict[str, Clamp]:
        """The last first. What cannot be read is as if it had not been written: the first run starts cold."""
        found: dict[str, Clamp] = {}
        try:
            with self._path.open("rb") as file:
                stored = json.loads(file.read(_MAX_BYTES))
            for tier, claims in stored.items():
                found[tier] = Clamp.take(Members(claims, "clamp"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, AttestationError, RecursionError) as error:
            _log.warning("%s cannot be read, no process waits for a tier's first run: %s", self._path, error)
            return {}
        self._claims = {tier: clamp.to_claims() for tier, clamp in found.items()}
        return dict(reversed(found.items()))

    def note(self, tier: str, clamp: Clamp) -> bool:
        """Whether that is news, to be written down."""
        if self._claims.get(tier) == clamp.to_claims():
            return False
        self._claims.pop(tier, None)
        self._claims[tier] = clamp.to_claims()
        while len(self._claims) > MOST:
            self._claims.pop(next(iter(self._claims)))
        return True

    def write(self) -> None:
        """Blocks. Raises nothing: it is worth a start, and no more."""
        made = self._path.with_name(f"{self._path.name}.new")
        try:
            made.touch(mode=0o600)
            made.write_text(json.dumps(self._claims))
            made.replace(self._path)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror)
