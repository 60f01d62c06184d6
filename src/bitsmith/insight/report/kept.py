"""Articles with their records in files, so that work that was interrupted goes on from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from bitsmith.errors import DataError
from bitsmith.insight.exhibits import Article, Picture, Table
from bitsmith.insight.measure import Record
from bitsmith.version import __version__

__all__ = ["Kept", "keep", "read_kept"]


@final
@dataclass(frozen=True)
class Kept:
    """What one piece of work gave.

    Attributes:
        article: what a page shows of it, its figures drawn.
        records: the numbers, for programs.
        made: what decided it: version, options, files; plain data.
        at: when, as people read it.
        seconds: how long it took.
    """

    article: Article
    records: tuple[Record, ...]
    made: Mapping[str, Any]
    at: str
    seconds: float


def keep(path: Path, kept: Kept) -> None:
    """Write ``kept`` to a file, whole or not at all; folders are made.

    Args:
        path: of the file; one that is there is replaced.
        kept: its article's figures are drawn.

    Raises:
        OSError: it cannot be written.
        TypeError: a figure is not drawn, or ``made`` is not plain data.
    """
    text = json.dumps(
        {
            "article": asdict(kept.article),
            "records": [record.to_json() for record in kept.records],
            "made": dict(kept.made),
            "at": kept.at,
            "seconds": kept.seconds,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(f"bitsmith {__version__} {_digest(text)}\n{text}\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_kept(path: Path) -> Kept:
    """Return what :func:`keep` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, was changed, or another version wrote it.
    """
    try:
        head, _, text = path.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    words = head.split(" ")
    if len(words) != 3 or words[0] != "bitsmith":
        raise DataError(f"{path} is damaged, or nothing that was kept")
    if words[1] != __version__:
        raise DataError(f"{path} was written by bitsmith {words[1]}, this is {__version__}")
    if words[2] != _digest(text.removesuffix("\n")):
        raise DataError(f"{path} is damaged: its content is not what was written")
    try:
        return _kept(json.loads(text))
    except (TypeError, KeyError) as error:  # this version, before its form was changed
        raise DataError(f"{path} has another form than this version's: {error}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(found: dict[str, Any]) -> Kept:
    article = dict(found["article"])
    article["figures"] = tuple(Picture(**picture) for picture in article["figures"])
    article["tables"] = tuple(Table(**table) for table in article["tables"])
    article["about"] = tuple((name, value) for name, value in article["about"])
    for name in ("findings", "skipped"):
        article[name] = tuple(article[name])
    records = tuple(Record(**record) for record in found["records"])
    return Kept(Article(**article), records, found["made"], found["at"], found["seconds"])
