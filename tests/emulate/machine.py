"""Run a program as if on an x86 machine without VNNI, AMX or AVX-512.

ONNX Runtime picks its integer kernels by CPUID. Without VNNI, products of unsigned by signed
bytes are added in pairs in 16 bits with saturation, and no test on a newer machine sees that.
``cpuid_mask.c`` makes CPUID deny the features; this module builds and preloads it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PROFILES = ("avx2", "avx512")
"""``avx2``: no AVX-512, VNNI, AMX. ``avx512``: AVX-512 F, BW, DQ, VL without VNNI and AMX."""

_SOURCE = Path(__file__).with_name("cpuid_mask.c")
_REFUSED = 86


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the feature flags of the first processor in /proc/cpuinfo (empty elsewhere)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), ":")
    return frozenset(flags.partition(":")[2].split())


@functools.cache
def _library() -> Path:
    """Compile the preloaded library once per source text; returns its path."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cpuid-mask-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        compiler = os.environ.get("CC") or shutil.which("cc") or "cc"
        part = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(part), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        part.replace(library)
    return library


def run_as(
    profile: str,
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` with the CPU features of ``profile`` (one of :data:`PROFILES`)."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    full = {**(os.environ if env is None else env)}
    full |= {"LD_PRELOAD": str(_library()), "BITSMITH_CPUID": profile}
    return subprocess.run(
        list(argv), env=full, capture_output=True, text=True, timeout=timeout, check=False
    )


@functools.cache
def emulation_available() -> str | None:
    """Return None when :func:`run_as` works here, otherwise the reason why it does not."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"CPUID is masked on x86-64 Linux only, not {platform.system()} {platform.machine()}"
    if not any("vnni" in flag for flag in cpu_flags()):
        return "this machine has no VNNI itself: the native run is the run without VNNI"
    try:
        probe = run_as("avx2", [sys.executable, "-c", ""])
    except (OSError, subprocess.CalledProcessError) as error:
        return f"cannot compile cpuid_mask.c: {error}"
    if probe.returncode == _REFUSED:
        return "the kernel or the hypervisor refuses CPUID faulting (arch_prctl ARCH_SET_CPUID)"
    if probe.returncode:
        return f"a masked process ended with {probe.returncode}: {probe.stderr[-300:]}"
    return None


def machines() -> list[str]:
    """Return ``["native"]`` and every profile that can be run here."""
    return ["native", *(PROFILES if emulation_available() is None else ())]


def has_exact_products(machine: str) -> bool:
    """Return whether that machine's u8×s8 kernels are exact (VNNI, AMX, or not x86 at all)."""
    if machine != "native":
        return False
    return platform.machine() != "x86_64" or any("vnni" in flag for flag in cpu_flags())
