"""What the parts trust each other by: the identity and the attestation header."""
