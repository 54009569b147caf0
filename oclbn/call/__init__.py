"""What lies between a public operation and the kernels: checking arguments, preparing, allocating, ordering work."""
