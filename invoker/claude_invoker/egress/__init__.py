"""The way out of a run: a filter in a process of its own that lets through to named hosts on the internet."""
