"""Which integer instructions this processor has: what decides whether 8-bit products saturate.

x86 without VNNI adds pairs of unsigned × signed byte products in 16 bits with saturation; VNNI,
AMX and the ARM dot product add them exactly in 32 bits.
"""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from pathlib import Path

__all__ = ["has_vnni", "instruction_sets"]

# Name here → what Linux writes in /proc/cpuinfo, what sysctl says on macOS.
_NAMES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "avx2": (frozenset({"avx2"}), frozenset({"hw.optional.avx2_0"})),
    "avx512f": (frozenset({"avx512f"}), frozenset({"hw.optional.avx512f"})),
    "avx512_vnni": (
        frozenset({"avx512_vnni", "avx512vnni"}),
        frozenset({"hw.optional.avx512vnni"}),
    ),
    "avx_vnni": (frozenset({"avx_vnni"}), frozenset({"hw.optional.avx_vnni"})),
    "amx_int8": (frozenset({"amx_int8"}), frozenset({"hw.optional.amx_int8"})),
    "neon": (
        frozenset({"asimd", "neon"}),
        frozenset({"hw.optional.neon", "hw.optional.AdvSIMD"}),
    ),
    "dotprod": (frozenset({"asimddp"}), frozenset({"hw.optional.arm.FEAT_DotProd"})),
}


@functools.cache
def instruction_sets() -> frozenset[str]:
    """Return those of avx2, avx512f, avx512_vnni, avx_vnni, amx_int8, neon, dotprod that are here.

    Read from /proc/cpuinfo on Linux (what every processor has) and from sysctl on macOS; empty
    where neither can be read, which means unknown.
    """
    if sys.platform == "darwin":
        return _from_sysctl(_sysctl())
    try:
        return _from_cpuinfo(Path("/proc/cpuinfo").read_text())
    except OSError:
        return frozenset()


def has_vnni() -> bool | None:
    """Return whether an x86 processor adds byte products in 32 bits (VNNI or AMX).

    None means that the question has no answer: not x86, or its instructions cannot be read.
    """
    return _vnni(platform.machine(), instruction_sets())


def _vnni(machine: str, names: frozenset[str]) -> bool | None:
    if machine.lower() not in ("x86_64", "amd64", "i386", "i686") or not names:
        return None
    return bool(names & {"avx512_vnni", "avx_vnni", "amx_int8"})


def _from_cpuinfo(text: str) -> frozenset[str]:
    """Return the names that every processor of a /proc/cpuinfo text has."""
    processors = [
        frozenset(values.split())
        for key, colon, values in (line.partition(":") for line in text.splitlines())
        if colon and key.strip() in ("flags", "Features")
    ]
    if not processors:
        return frozenset()
    common = frozenset.intersection(*processors)
    return frozenset(name for name, (linux, _) in _NAMES.items() if linux & common)


def _from_sysctl(text: str) -> frozenset[str]:
    """Return the names whose ``hw.optional`` line of a sysctl listing says 1."""
    on = {
        key.strip()
        for key, colon, value in (line.partition(":") for line in text.splitlines())
        if colon and value.strip() == "1"
    }
    return frozenset(name for name, (_, mac) in _NAMES.items() if mac & on)


def _sysctl() -> str:
    """Return what ``sysctl hw.optional`` prints; nothing if it cannot be run."""
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "hw.optional"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
