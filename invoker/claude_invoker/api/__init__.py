"""The HTTP face: one router a module, mounted at the root and under the public prefix."""
