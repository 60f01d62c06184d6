"""Write ``quantization_config`` of config.json: which modules are quantized how.

A config group has ``targets``: class names (``Linear``), names of modules, or patterns ``re:…``
that match from the start of a module's name; ``ignore`` takes modules out again. Readers refuse
unknown keys inside a group and pass over unknown keys outside, where the exact schemes are kept
under ``bitsmith``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from bitsmith.deploy.export.compressed_tensors.group import Group

__all__ = ["METHOD", "SCHEMES_VERSION", "loads_dequantized", "settings", "targets"]

METHOD = "compressed-tensors"
SCHEMES_VERSION = 1
"""Of the entry ``bitsmith``."""

_LAYOUT = "0.20.0"  # the compressed-tensors release whose layout this is


def settings(grouped: Mapping[str, Group], linears: Collection[str]) -> dict[str, Any]:
    """Return ``quantization_config``.

    Args:
        grouped: quantized module → its group.
        linears: every Linear of the model, also those whose weight is tied to another's.
    """
    by_group = targets(grouped, linears)
    layouts = {group.layout for group in by_group}
    named = {f"group_{i}": group for i, group in enumerate(by_group)}
    return {
        "quant_method": METHOD,
        "version": _LAYOUT,
        "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [name for name in linears if name not in grouped],
        **({"dequantize": True} if loads_dequantized(grouped, linears) else {}),
        "config_groups": {
            name: {
                "targets": by_group[group],
                "weights": group.weights,
                "input_activations": group.inputs,
                "output_activations": None,
                "format": group.layout,
            }
            for name, group in named.items()
        },
        "bitsmith": {
            "version": SCHEMES_VERSION,
            "schemes": {name: group.scheme.to_json() for name, group in named.items()},
        },
    }


def loads_dequantized(grouped: Mapping[str, Group], linears: Collection[str]) -> list[str]:
    """Return the modules for whose sake ``transformers`` has to dequantize while it loads.

    Otherwise it keeps modules compressed until they run first, but has no room for packed zero
    points (it expects as many as rows) and cannot keep embeddings that way. While loading it
    dequantizes all modules by one and the same group.
    """
    return [
        name for name, group in grouped.items() if group.packed_zero_points or name not in linears
    ]


def targets(grouped: Mapping[str, Group], linears: Collection[str]) -> dict[Group, list[str]]:
    """Return group → targets, so that every module matches its own group and no other.

    ``Linear`` where all quantized modules are Linear and of one group. Otherwise patterns of
    names, in which numbers of layers are left open where all modules of that pattern are alike.

    >>> from bitsmith.numbers.formats.integer import int4, int8
    >>> from bitsmith.numbers.scheme import Scheme
    >>> a, b = Group(Scheme(int4)), Group(Scheme(int8))
    >>> modules = {"h.0.up": a, "h.1.up": a, "h.0.down": a, "h.1.down": b}
    >>> list(targets(modules, list(modules)).values())
    [['re:h\\\\.\\\\d+\\\\.up$', 're:h\\\\.0\\\\.down$'], ['re:h\\\\.1\\\\.down$']]
    """
    found: dict[Group, dict[str, None]] = {group: {} for group in grouped.values()}
    if len(found) == 1 and set(grouped) <= set(linears):
        return {group: ["Linear"] for group in found}
    families: dict[str, list[str]] = {}
    for name in dict.fromkeys([*grouped, *linears]):
        families.setdefault(_open(name), []).append(name)
    for pattern, names in families.items():
        alike = len({grouped.get(name) for name in names}) == 1
        for name in names:
            if name in grouped:
                found[grouped[name]][pattern if alike else f"re:{re.escape(name)}$"] = None
    return {group: list(patterns) for group, patterns in found.items()}


def _open(name: str) -> str:
    """Return the pattern of ``name`` with its numbers left open."""
    parts = [r"\d+" if part.isdigit() else re.escape(part) for part in name.split(".")]
    return "re:" + r"\.".join(parts) + "$"
