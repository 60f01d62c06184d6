"""What decides a result beside its options: data files, installed packages, its own source."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Any

from bitsmith.data.fetch import cache_folder, data_folder

__all__ = ["changes", "source_digest", "surroundings"]


def surroundings() -> dict[str, Any]:
    """Return what there is, as plain data.

    ``files``: each file beside which data sets and weights are looked for (the folder
    ``BITSMITH_DATA`` and the cache), with bytes and time of change; ``versions``: of the packages
    that bitsmith needs; ``packages``: the names of all that are installed, for some carry weights.

    Raises:
        DataError: ``BITSMITH_DATA`` is set and is no folder.
    """
    files: dict[str, list[int]] = {}
    for place in (data_folder(), cache_folder()):
        if place is not None and place.is_dir():
            stats = {p: p.stat() for p in sorted(place.iterdir()) if p.is_file()}
            files |= {str(p): [s.st_size, s.st_mtime_ns] for p, s in stats.items()}
    names = {d.metadata["Name"] for d in distributions()}
    return {"files": files, "versions": _versions(), "packages": sorted(filter(None, names))}


def changes(then: Mapping[str, Any], now: Mapping[str, Any], *, whole: bool) -> str:
    """Return what has changed that a result may depend on; empty: nothing.

    Args:
        then, now: two :func:`surroundings`.
        whole: the result lacked nothing. Otherwise what is new counts too: it may be what was
            missing.

    >>> empty = {"files": {}, "versions": {}, "packages": []}
    >>> changes(empty, {**empty, "packages": ["gguf"]}, whole=False)
    'parts were left out, and there is now gguf'
    """
    for kind in ("files", "versions"):
        other = sorted(k for k, v in then[kind].items() if now[kind].get(k) != v)
        if other:
            return f"changed since: {', '.join(other)}"
    new = [k for kind in ("files", "packages") for k in sorted({*now[kind]} - {*then[kind]})]
    if new and not whole:
        return f"parts were left out, and there is now {', '.join(new)}"
    return ""


def source_digest(cls: type) -> str:
    """Return a hash of the file that defines a class, or of its package's; empty: there is none."""
    try:
        file = Path(inspect.getfile(cls))
        paths = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
        contents = [path.read_bytes() for path in paths]
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]


def _versions() -> dict[str, str]:
    """Return name → version of bitsmith's dependencies that are installed."""
    needed = [text for text in requires("bitsmith") or [] if "extra ==" not in text]
    found = {}
    for name in (re.split(r"[^\w.-]", text)[0] for text in needed):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # needed on other systems only
            continue
    return found
