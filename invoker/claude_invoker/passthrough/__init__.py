"""Requests to a model itself, passed on to the API by the metering proxy."""
