"""`oclbn tune`: choices for a device, each tried in a process apart and checked before it is timed."""
