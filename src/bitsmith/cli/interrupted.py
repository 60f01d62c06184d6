"""Work that was interrupted and yet left something."""

from __future__ import annotations

from typing import final

from bitsmith.errors import BitsmithError

__all__ = ["InterruptedWorkError"]


@final
class InterruptedWorkError(BitsmithError):
    """Interrupted, and something is on the disk; the message says what."""

    exit_code = 130
