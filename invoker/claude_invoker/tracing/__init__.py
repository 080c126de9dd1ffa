"""Traces of what runs did, for a collector of the operator's; off unless it is named."""
