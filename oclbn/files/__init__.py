"""Files: written whole or not at all, and what they hold. Nothing here knows OpenCL."""
