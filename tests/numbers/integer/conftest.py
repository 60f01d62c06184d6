"""The machines to test on: this one, and the same one as an older processor."""

from __future__ import annotations

import pytest

from emulate.machine import PROFILES, emulation_available


@pytest.fixture(params=["native", *PROFILES])
def machine(request: pytest.FixtureRequest) -> str:
    """This machine, and the same one with its newer integer instructions denied."""
    name: str = request.param
    reason = emulation_available() if name != "native" else None
    if reason is not None:
        pytest.skip(reason)
    return name
