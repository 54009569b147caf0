"""The one oracle: float64 NumPy, what errors are allowed, and data that is hard to get right.

Of the library only oclbn.proof imports it.
"""
