"""Devices at work at once: the results of each are those of it alone. tests/matrix.py asks for several."""

from __future__ import annotations

import apart
import pytest
from at_once import at_once
from conftest import DEVICES

from oclbn import device


def test_several_devices_at_once(pytestconfig: pytest.Config) -> None:
    """Those that this run is about: another one may be at work, or broken."""
    infos = [info for info in pytestconfig.stash[DEVICES] if not info.simulator]
    if len(infos) < 2:
        pytest.skip("needs two devices: --device all, or --device twice")
    alone = [apart.digests(device.queue_for(info)) for info in infos]
    together = at_once(*(lambda i=info: apart.digests(device.queue_for(i)) for info in infos))
    assert together == alone
