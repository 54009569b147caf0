"""`oclbn bench`: times beside the best copy of the same tensor, and beside other implementations."""
