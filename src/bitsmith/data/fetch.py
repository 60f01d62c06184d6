"""Where a data set's files are: the user's folder, else the cache, else the public source."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bitsmith.data.npz import write_npz
from bitsmith.errors import DataError

__all__ = ["Source", "cache_folder", "data_folder", "obtain"]

_CHUNK = 1 << 20
_NETWORK = (urllib.error.URLError, http.client.HTTPException, OSError, ValueError)

Convert = Callable[[Path], Mapping[str, Mapping[str, NDArray[Any]]]]


@final
@dataclass(frozen=True)
class Source:
    """Archives on the network.

    Attributes:
        mirrors: base addresses that end in ``/``, tried in this order.
        md5: archive name → the MD5 its publisher states. It shows a damaged transfer; it is no
            protection against somebody who forges an archive.
        most_bytes: no archive is larger; a transfer that exceeds it is cut off.
    """

    mirrors: tuple[str, ...]
    md5: Mapping[str, str]
    most_bytes: int = 200 * 2**20


def data_folder() -> Path | None:
    """Return the folder that ``BITSMITH_DATA`` names, or None where it is not set.

    Raises:
        DataError: it is set and is not a folder.
    """
    named = os.environ.get("BITSMITH_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(f"BITSMITH_DATA is {named!r}, which is not a folder; correct or unset it")
    return folder


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/bitsmith``, by default ``~/.cache/bitsmith``; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitsmith"


def obtain(name: str, files: Sequence[str], source: Source, convert: Convert) -> Path:
    """Return the path of the first of ``files`` that there is, downloaded if there is none.

    Looks in ``BITSMITH_DATA``, then in the cache. Otherwise the archives of ``source`` are
    downloaded beside the cache's files, their checksums compared, and what ``convert`` makes of
    them written to the cache, each file under a temporary name and renamed when complete.

    Args:
        name: the data set, for messages.
        files: acceptable file names, the preferred one first.
        source: where the archives are.
        convert: from the folder with the archives to ``{file name: {array name: array}}``; one
            of the file names is ``files[0]``.

    Raises:
        DataError: there is none and the download failed; says where it was looked for.
    """
    places = [place for place in (data_folder(), cache_folder()) if place is not None]
    for place in places:
        for file in files:
            if (place / file).is_file():
                return place / file
    try:
        _fill_cache(source, convert)
    except _NETWORK as error:
        looked = ", ".join(str(place) for place in places)
        unset = "" if len(places) > 1 else " (BITSMITH_DATA is not set)"
        raise DataError(
            f"data set {name!r}: no {' or '.join(files)} in {looked}{unset}, and fetching it "
            f"failed: {error}. Set BITSMITH_DATA to a folder that holds {files[0]}, or run again "
            "with a network"
        ) from error
    return cache_folder() / files[0]


def _fill_cache(source: Source, convert: Convert) -> None:
    """Download, convert and store every file of a source."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as scratch:
        for archive in source.md5:
            _download(source, archive, Path(scratch))
        for file, arrays in convert(Path(scratch)).items():
            part = Path(scratch) / file
            write_npz(part, arrays)
            part.replace(cache / file)


def _download(source: Source, archive: str, folder: Path) -> None:
    """Fetch one archive from the first mirror that gives it whole.

    Raises:
        DataError: every mirror failed; says how each did.
    """
    failures = []
    for mirror in source.mirrors:
        address = mirror + archive
        try:
            digest = _transfer(address, folder / archive, source.most_bytes)
        except _NETWORK as error:
            failures.append(f"{address}: {error}")
            continue
        if digest == source.md5[archive]:
            return
        failures.append(
            f"{address}: the checksum (MD5) is {digest}, not {source.md5[archive]}; the file is "
            "truncated or altered"
        )
    raise DataError("; ".join(failures))


def _transfer(address: str, path: Path, most_bytes: int) -> str:
    """Write what ``address`` gives to ``path``; return its MD5 in hex."""
    digest = hashlib.md5(usedforsecurity=False)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with urllib.request.urlopen(address, timeout=30) as answer, path.open("wb") as file, bar:
        length = answer.headers.get("Content-Length")
        task = bar.add_task(path.name, total=int(length) if length else None)
        done = 0
        while chunk := answer.read(_CHUNK):
            done += len(chunk)
            if done > most_bytes:
                raise DataError(f"more than {most_bytes} bytes, which {path.name} cannot have")
            digest.update(chunk)
            file.write(chunk)
            bar.update(task, advance=len(chunk))
    return digest.hexdigest()
