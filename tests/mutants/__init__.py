"""Mutation testing of the decision code: `python -m tests.mutants` (make mutants)."""
