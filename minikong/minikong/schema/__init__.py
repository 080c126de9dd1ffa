"""Kong's schema language and the schemas of its entities and bundled plugins."""
