"""The audit log: who did what, on disk, so that a line that was changed, moved or cut is found (docs/audit.md)."""
