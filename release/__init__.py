"""What a release consists of: `make release`, `make lock`, `make pin` (docs/releasing.md)."""
