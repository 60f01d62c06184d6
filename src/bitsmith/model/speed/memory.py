"""How much memory lies between the processor and its weights: caches, and how to get past them."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

__all__ = ["copies", "last_level_cache"]

_UNKNOWN = 32 << 20
_BEYOND = 1.25
"""Times the cache that weights take which are to lie beyond it."""
_MOST = 1024
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@lru_cache(maxsize=1)
def last_level_cache() -> int:
    """Return the bytes of this machine's largest cache, as the system reports it.

    From sysfs on Linux (a virtual machine sees its host's), sysctl on macOS; 32 MiB where neither
    says.
    """
    if sys.platform == "darwin":
        return _of_sysctl() or _UNKNOWN
    return _of_sysfs(Path("/sys/devices/system/cpu/cpu0/cache")) or _UNKNOWN


def copies(nbytes: int, working_set: float = math.inf, memory: float = math.inf) -> int:
    """Return how many copies of a layer to go round so that it is read from where it really is.

    As many as exceed the last-level cache by a quarter, or as fill ``working_set`` where that is
    less: the layers of a model that fits in the cache are found there. At least 1, at most 1024,
    and no more than fit in ``memory``.

    Args:
        nbytes: of one copy.
        working_set: bytes that are read between two uses of a layer.
        memory: bytes that all copies may take.

    >>> copies(1 << 16, working_set=4 << 16)  # in the cache of any machine
    4
    >>> copies(64 << 20, memory=100 << 20)
    1
    """
    if nbytes <= 0:
        return 1
    wanted = math.ceil(min(_BEYOND * last_level_cache(), working_set) / nbytes)
    fits = _MOST if math.isinf(memory) else int(memory // nbytes)
    return max(1, min(wanted, fits, _MOST))


def _of_sysfs(folder: Path) -> int:
    """Return the largest size of a folder such as ``/sys/devices/system/cpu/cpu0/cache``."""
    sizes = [0]
    for file in folder.glob("index*/size"):
        try:
            text = file.read_text().strip()
            unit = _UNITS.get(text[-1:], 1)
            sizes.append(int(text.rstrip("KMG")) * unit)
        except (OSError, ValueError):
            continue
    return max(sizes)


def _of_sysctl() -> int:
    """Return the largest cache that macOS tells of; 0 where it tells of none."""
    names = ["hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize"]
    sizes = [0]
    for name in names:
        try:
            done = subprocess.run(
                ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=10,
                check=False,
            )  # fmt: skip
            sizes.append(int(done.stdout.strip() or 0))
        except (OSError, ValueError, subprocess.TimeoutExpired):
            continue
    return max(sizes)
