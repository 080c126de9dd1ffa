"""Recorded cases that minikong does not meet, each with its reason (also in docs/minikong.md)."""

MISSES = {
    "process/kong-reload": "minikong has no reload: `kong reload` runs two generations of workers for a while, and "
    "minikong is one process. A new configuration comes by POST /config; a new process by a restart.",
}
