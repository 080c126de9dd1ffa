"""The chain on a real Kong, against Kong's own plugins: see `__main__`."""
