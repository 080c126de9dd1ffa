"""One execution of the CLI from request to result, usable without HTTP (a queue's worker uses it too)."""
