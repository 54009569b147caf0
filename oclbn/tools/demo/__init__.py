"""`oclbn demo`: normalization of handwritten digits, step by step, checked against the reference."""
