"""``bitsmith study all``: every study, one page; what is done is kept, and a next run goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, final

from bitsmith.cli.folder import result_folder
from bitsmith.cli.interrupted import InterruptedWorkError
from bitsmith.cli.output import Output, json_path, progress
from bitsmith.cli.staging import Staging
from bitsmith.cli.study_page import Ended, study_page, study_records
from bitsmith.errors import (
    BitsmithError,
    CheckFailedError,
    DataError,
    InputError,
    RuntimeMissingError,
    WeightsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bitsmith.insight.report.kept import Kept
    from bitsmith.studies import Study

__all__ = ["ALL", "PAGE", "study_all"]

ALL = "all"
"""In place of a study's name: every study."""
PAGE = "report.html"
"""The file in ``--out`` that is for people."""

#: What a study raises where something that it needs is not at hand.
_NOT_AT_HAND = (DataError, WeightsError, RuntimeMissingError)


@final
@dataclass(frozen=True)
class _Shelf:
    """Where results are kept, and what all of them are made with.

    Attributes:
        folder: one file for each study; other seeds have folders of their own.
        seed, quick: of every study.
    """

    folder: Path
    seed: int
    quick: bool

    def path(self, study: type[Study]) -> Path:
        return self.folder / f"{study.name}.json"

    def made(self, study: type[Study]) -> dict[str, Any]:
        """Return what decides a result of ``study`` now, as plain data."""
        from bitsmith.insight.report.surroundings import source_digest, surroundings

        options = {"study": study.name, "seed": self.seed, "quick": self.quick}
        return {"options": options, "source": source_digest(study), **surroundings()}


def study_all(
    out: Path | None, only: str | None, *, seed: int, quick: bool, json: str | None
) -> None:
    """Run every study, or those that ``only`` names, and write one page.

    Each result is kept in ``out`` as its study ends; a next run with the same options takes it
    over, unless the data, the study or the version has changed since.

    Raises:
        InputError: no folder to write to.
        UnknownNameError: ``only`` names what is no study.
        CheckFailedError: a study failed; the others are on the page.
        InterruptedWorkError: interrupted; says what is kept.
    """
    output = Output("study", json)
    chosen = _chosen(only)
    if out is None:
        raise InputError(
            "study all writes a page and keeps each result: name a folder with --out DIR"
        )
    shelf = _Shelf(out / "kept" / (f"seed-{seed}" + "-quick" * quick), seed, quick)
    with result_folder(out):
        page = out / PAGE
        staging = Staging([page, json_path(json)])  # refuses before anything is run
        ended = _run_all(chosen, shelf, output)
        command = f"bitsmith study {ALL} --out DIR --seed {seed}" + " --quick" * quick
        command += f" --only {','.join(c.name for c in chosen)}" if only else ""
        with staging:
            text = study_page(ended, command, quick=quick, seconds=output.seconds)
            staging.path(page).write_text(text, encoding="utf-8")
            output.json(study_records(ended, seed), staging)
    output.heading("Files")
    output.facts([("page", str(page)), ("kept for a next run", f"{shelf.folder}/")])
    if failed := [one for one in ended if one.outcome == "failed"]:
        reasons = "; ".join(f"{one.study.name}: {one.reason}" for one in failed)
        raise CheckFailedError(f"{len(failed)} of {len(ended)} studies failed: {reasons}")


def _chosen(only: str | None) -> list[type[Study]]:
    """Return the studies that are asked for, in the order of their names."""
    from bitsmith.studies import studies

    if only is None:
        return [studies[name] for name in studies]
    names = sorted({name for part in only.split(",") if (name := part.strip())})
    if not names:
        raise InputError(f"--only takes names of studies with commas between, not {only!r}")
    return [studies[name] for name in names]


def _run_all(chosen: Sequence[type[Study]], shelf: _Shelf, output: Output) -> list[Ended]:
    """Return how it went with each study, and say so as each ends."""
    ended: list[Ended] = []
    try:
        for number, study in enumerate(chosen, 1):
            of = f"{number} of {len(chosen)}"
            one = _ended(study, shelf, output, f"{of}, {study.name}")
            output.line(f"{of}  {study.name}: {_said(one)}; {output.seconds:.0f} s since the start")
            ended.append(one)
    except KeyboardInterrupt:
        done = sum(one.kept is not None for one in ended)
        raise InterruptedWorkError(
            f"interrupted; {done} of {len(chosen)} studies are kept in {shelf.folder}, and the "
            "same command goes on from there"
            if done
            else "interrupted before a study ended; nothing was written"
        ) from None
    return ended


def _said(one: Ended) -> str:
    if one.outcome == "taken over":
        return f"taken over from {one.at} ({one.seconds:.1f} s then)"
    reason = f" ({one.reason})" if one.reason else ""
    return f"{one.outcome} in {one.seconds:.1f} s{reason}"


def _ended(study: type[Study], shelf: _Shelf, output: Output, label: str) -> Ended:
    """Take a result over or run the study, and keep what it gave."""
    from bitsmith.insight.report.kept import keep

    kept, note = _taken(shelf.path(study), shelf.made(study))
    if kept is not None:
        return Ended(study, "taken over", kept.seconds, at=kept.at, kept=kept)
    if note:
        output.line(f"note: {note}; {study.name} is run anew")
    begun = time.perf_counter()
    try:
        kept = _run(study, shelf, partial(_stage, label))
    except _NOT_AT_HAND as error:
        return Ended(study, "left out", time.perf_counter() - begun, str(error))
    except Exception as error:
        reason = str(error) if isinstance(error, BitsmithError) else _unexpected(error)
        return Ended(study, "failed", time.perf_counter() - begun, reason)
    try:
        keep(shelf.path(study), kept)
    except OSError as error:
        output.line(f"note: the result of {study.name} is not kept: {error}")
    return Ended(study, "done", kept.seconds, at=kept.at, kept=kept)


def _unexpected(error: Exception) -> str:
    """Return what an error says that no one raised on purpose, and where it came from."""
    *_, last = extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def _stage(
    label: str, what: str, total: int | None
) -> AbstractContextManager[Callable[[int], None]]:
    return progress(f"{label}: {what}", total)


def _taken(path: Path, made: dict[str, Any]) -> tuple[Kept | None, str]:
    """Return what an earlier run kept where it is of use; else nothing, and why if it is there."""
    from bitsmith.insight.report.kept import read_kept
    from bitsmith.insight.report.surroundings import changes

    try:
        kept = read_kept(path)
    except FileNotFoundError:
        return None, ""
    except (OSError, DataError) as error:
        return None, str(error)
    then = kept.made
    if then["options"] != made["options"]:
        return None, f"{path} was made with other options"
    if then["source"] != made["source"]:
        return None, f"{path} was made by other source code of the study"
    note = changes(then, made, whole=not kept.article.skipped)
    return (None, f"{path}: {note}") if note else (kept, "")


def _run(study: type[Study], shelf: _Shelf, stage: Any) -> Kept:
    """Run a study and draw its figures."""
    from bitsmith.insight.report.article import drawn
    from bitsmith.insight.report.kept import Kept
    from bitsmith.studies import Options
    from bitsmith.version import __version__

    one, begun = study(), time.perf_counter()
    result = one.run(Options(shelf.seed, shelf.quick, stage=stage))
    article = drawn(one.article(result))
    seconds = time.perf_counter() - begun
    at = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    command = f"bitsmith study {study.name} --seed {shelf.seed}" + " --quick" * shelf.quick
    about = (
        ("command", command),
        ("bitsmith", __version__),
        ("made", at),
        ("seconds", f"{seconds:.1f}"),
    )
    made = shelf.made(study)  # afterwards: with the data that was fetched
    return Kept(replace(article, about=about), result.records, made, at, seconds)
