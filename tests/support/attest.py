"""Attestations with any claims at all, signed as a gateway's plugin signs them."""

from __future__ import annotations

from typing import Any

from claude_contract.attestation import Signer, verify


def signed(
    signer: Signer,
    method: str,
    path: str,
    *,
    route: str = "r",
    request_id: str = "q",
    now: float | None = None,
    **claims: Any,
) -> str:
    """The header of a fresh attestation with these claims; None leaves one out."""
    fresh = signer.open(method=method, path=path, route=route, request_id=request_id, now=now).to_claims()
    return signer.sign_claims({name: value for name, value in (fresh | claims).items() if value is not None})


def claims_in(header: str, signer: Signer) -> dict[str, Any]:
    """The claims of a header that the invoker would believe."""
    return verify(header, signer.keys, issuer=signer.issuer, audience=signer.audience).to_claims()
