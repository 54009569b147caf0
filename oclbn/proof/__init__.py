"""Kernels prove themselves on a small tensor before their first result is handed out."""
