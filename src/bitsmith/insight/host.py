"""The machine a measurement was taken on, and the memory this process has used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from bitsmith.numbers.machine import instruction_sets

__all__ = ["machine", "peak_rss_mb"]


def machine() -> dict[str, Any]:
    """Return what timings depend on, ready for ``json.dumps``.

    ``cpu`` (model name), ``cores`` (logical processors this process may use), ``threads``
    (torch's), ``instruction_sets`` (sorted; see `instruction_sets`), ``memory_mb`` (MiB),
    ``os``, ``python``, ``torch``, and ``onnxruntime`` and ``openvino`` where installed.
    """
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_model(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": sorted(instruction_sets()),
        "memory_mb": psutil.virtual_memory().total // 2**20,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **_installed("onnxruntime", "openvino"),
    }


def peak_rss_mb() -> float:
    """Return the most memory this process has had resident so far, in MiB (2^20 bytes).

    On Linux this is ``VmHWM``, which, unlike ``getrusage``, does not begin with the peak of the
    process that started this one; the kernel counts it to within some hundred KiB.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 1024)


def _cpu_model() -> str:
    """Return the processor's model name, or its architecture where no name can be read."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return platform.machine()
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def _installed(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
