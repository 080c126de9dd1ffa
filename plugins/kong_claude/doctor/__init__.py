"""Finds the openings in a Kong configuration through which a request could reach the invoker unchecked."""
