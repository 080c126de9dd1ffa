"""Errors that a person can act on."""


class Problem(Exception):
    """One line that says what is wrong and what to do about it; the command ends with exit code 2."""
