"""The chaos suite: faults injected at random moments under load; what matters is who got in."""
