"""Finds the holes in a Kong configuration through which a request could reach the invoker unchecked."""
