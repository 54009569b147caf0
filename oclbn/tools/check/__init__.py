"""`oclbn check`: every form of every kernel against the reference, in a process apart."""
