"""The documents as a site: `python -m docsite`, or `make site`."""
