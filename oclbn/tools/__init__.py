"""What the command line does: checking, tuning, timing, showing. The library imports nothing of it."""
