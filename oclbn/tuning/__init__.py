"""The choices that belong to a device, from the general to the particular, key by key (oclbn.tuning.choices)."""

from __future__ import annotations

from oclbn.tuning.choices import Level, forget, levels, shipped_for, tuning_for, using

__all__ = ["Level", "forget", "levels", "shipped_for", "tuning_for", "using"]
