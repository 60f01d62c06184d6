"""Makes ``tests/emulate`` importable as ``emulate`` and names the machines to test on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = str(Path(__file__).parents[2])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)

from emulate.machine import PROFILES, emulation_available  # noqa: E402


@pytest.fixture(params=["native", *PROFILES])
def machine(request: pytest.FixtureRequest) -> str:
    """This machine, and the same one with its newer integer instructions denied."""
    name: str = request.param
    reason = emulation_available() if name != "native" else None
    if reason is not None:
        pytest.skip(reason)
    return name
