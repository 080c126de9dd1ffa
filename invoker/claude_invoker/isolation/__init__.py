"""The boundary around a run: what its processes may still ask of the kernel, and how strong that is on this machine."""
