"""The page and the records of all studies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from bitsmith.insight.measure import Record
    from bitsmith.insight.report.kept import Kept
    from bitsmith.studies import Study

__all__ = ["Ended", "study_page", "study_records"]

_TITLE = "Quantization, experiment by experiment"
_NAMES = {"instruction_sets": "instruction sets", "memory_mb": "memory, MiB", "os": "system"}


@final
@dataclass(frozen=True)
class Ended:
    """How it went with one study.

    Attributes:
        study: which.
        outcome: ``done``, ``taken over``, ``left out`` (what it needs is not at hand) or
            ``failed``.
        seconds: how long it took, when it was run.
        reason: why there is no result.
        at: when there was one.
        kept: the result.
    """

    study: type[Study]
    outcome: str
    seconds: float
    reason: str = ""
    at: str = ""
    kept: Kept | None = None


def study_page(ended: Sequence[Ended], command: str, *, quick: bool, seconds: float) -> str:
    """Return the HTML of one page of all studies.

    Args:
        ended: each study, in the order of the page.
        command: that made it.
        quick: fewer repeats and samples.
        seconds: that this run took.
    """
    from bitsmith.insight.report.collection import Absent, Collection, render_collection
    from bitsmith.version import __version__

    kept = [one.kept for one in ended if one.kept is not None]
    lead = (
        f"The experiments through which people come to quantization, run by bitsmith {__version__} "
        "on real data. Every figure and every number was made by the command below each of them; "
        "accuracies carry the number of samples and a 95 % interval, differences are paired."
    )
    if quick:
        lead += " This is a quick run: fewer repeats, samples and epochs, the same pictures."
    absent = [
        Absent(one.study.name, one.study.title, one.outcome, one.reason)
        for one in ended
        if one.kept is None
    ]
    page = Collection(
        _TITLE, lead, _tiles(ended), tuple(k.article for k in kept), tuple(absent),
        _about(ended, command, seconds),
    )  # fmt: skip
    return render_collection(page)


def _tiles(ended: Sequence[Ended]) -> tuple[tuple[str, str, str], ...]:
    kept = [one.kept for one in ended if one.kept is not None]
    figures = sum(len(k.article.figures) for k in kept)
    rows = sum(len(table.rows) for k in kept for table in k.article.tables)
    records = sum(len(k.records) for k in kept)
    seconds = sum(k.seconds for k in kept)
    others = len(ended) - len(kept)
    return (
        (
            "studies",
            f"{len(kept)}",
            f"{others} more: not on this page" if others else "one command each",
        ),
        ("figures", f"{figures}", "drawn from the numbers of these runs"),
        ("measurements", f"{records:,}", f"records for programs; {rows:,} rows in tables"),
        ("time", _time(seconds), "of all studies together"),
    )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _about(ended: Sequence[Ended], command: str, seconds: float) -> tuple[tuple[str, str], ...]:
    from bitsmith.insight.measure import machine

    here = {k: ", ".join(v) if isinstance(v, list) else str(v) for k, v in machine().items()}
    over = [one.study.name for one in ended if one.outcome == "taken over"]
    return (
        ("command", command),
        ("this run", _time(seconds)),
        ("taken over from earlier runs", ", ".join(over) or "nothing"),
        *((_NAMES.get(name, name), value) for name, value in here.items()),
    )


def study_records(ended: Sequence[Ended], seed: int) -> list[Record]:
    """Return how it went with each study, then everything that it measured."""
    from bitsmith.insight.measure import Record

    records = []
    for one in ended:
        own: dict[str, Any] = {"study": one.study.name, "seed": seed, "outcome": one.outcome}
        own |= {"reason": one.reason} if one.reason else {}
        records.append(Record(**own, metric="seconds", value=one.seconds))
        records += one.kept.records if one.kept is not None else ()
    return records
