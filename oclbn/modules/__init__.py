"""Layers with parameters, running statistics and PuzzleLib's contract; the mathematics is oclbn.functional's."""
