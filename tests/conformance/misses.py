"""Recorded cases that minikong does not meet, each with its reason (also in docs/minikong.md)."""

MISSES: dict[str, str] = {}
