"""What this process has signed a moment ago: the next plugin of the same request, where it runs here too, need not
verify it. By the whole header, signature included, so that nothing is taken for signed that would not verify.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from claude_contract.attestation import Signer
from claude_contract.claims import Attestation

ROOM = 256  # requests between two of their plugins; one more is verified


class _Entry(NamedTuple):
    signer: Signer
    attestation: Attestation


class Signed:
    """Header → what it says. Each is taken once."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._kept: dict[str, _Entry] = {}

    def keep(self, header: str, signer: Signer, attestation: Attestation) -> None:
        if len(self._kept) >= self._room:
            del self._kept[next(iter(self._kept))]
        self._kept[header] = _Entry(signer, received(attestation))

    def take(self, header: str, signer: Signer) -> Attestation | None:
        """None for what was not signed here, or with what `signer` does not verify with."""
        entry = self._kept.pop(header, None)
        return entry.attestation if entry is not None and signer.trusts(entry.signer) else None


def received(attestation: Attestation) -> Attestation:
    """As `Attestation.from_claims` would make it of what is sent: one tier travels, that of the limits."""
    identity, limits = attestation.identity, attestation.limits
    if identity is None or limits is None or identity.tier == limits.tier:
        return attestation
    return replace(attestation, identity=replace(identity, tier=limits.tier))
