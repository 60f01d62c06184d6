"""The experiments of the literature, one file each, run for real.

A study is a class that registers by being defined, ``class Memory(Study, name="memory")``, in a
file of its own in this folder. ``bitsmith study NAME`` runs it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

from bitsmith.errors import InputError, UnknownNameError
from bitsmith.insight.exhibits import Article, Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.registry import Registry

__all__ = ["Options", "Setting", "Stage", "Study", "StudyResult", "studies"]

#: Shows how far a stage is: ``with stage("training", 100) as advance: … advance(1)``.
Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def _silent(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


@final
@dataclass(frozen=True)
class Setting:
    """What can be chosen of one study alone: ``--set NAME=VALUE``.

    Attributes:
        default: what it is unless told otherwise; its type is that of the setting.
        about: what it is, in a few words.
        low, high: ends of a number.

    >>> Setting(4, "bits of the weight", 2, 8).read("bits", "3")
    3
    """

    default: int | float | str
    about: str
    low: float = -math.inf
    high: float = math.inf

    def read(self, name: str, given: int | float | str) -> int | float | str:
        """Return what was given, in the setting's type.

        Raises:
            InputError: it is no number where one is needed, or beyond the ends.
        """
        if isinstance(self.default, str):
            return str(given)
        kind = type(self.default)
        try:
            value = kind(given)
            whole = isinstance(given, str) or value == given
        except (ValueError, OverflowError):
            value, whole = kind(0), False
        if not (whole and math.isfinite(value) and self.low <= value <= self.high):
            what = "a whole number" if kind is int else "a number"
            ends = f"from {self.low:g} to {self.high:g}"
            raise InputError(f"setting {name} ({self.about}) is {what} {ends}, not {given!r}")
        return value


@final
@dataclass(frozen=True)
class Options:
    """What can be chosen of every study.

    Attributes:
        seed: of everything random.
        quick: fewer repeats or samples; the same tables and figures.
        dataset: name, file or function as ``load_dataset`` takes it; None: the study's own.
        stage: shows progress.
        settings: of this study alone, by name; a study finds all of its settings here.
    """

    seed: int = 0
    quick: bool = False
    dataset: str | None = None
    stage: Stage = _silent
    settings: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class StudyResult:
    """What one run of a study gave.

    Attributes:
        tables: the numbers, for people.
        figures: the pictures.
        records: the numbers, for programs.
        findings: sentences made from the numbers of this run.
        skipped: parts that could not run, each with its reason (``ResNet-20: no weights …``).
    """

    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    records: tuple[Record, ...]
    findings: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __init__(
        self,
        tables: Iterable[Table],
        figures: Iterable[Figure],
        records: Iterable[Record],
        findings: Iterable[str],
        skipped: Iterable[str] = (),
    ) -> None:
        parts = {"tables": tables, "figures": figures, "records": records}
        parts |= {"findings": findings, "skipped": skipped}
        for name, items in parts.items():
            object.__setattr__(self, name, tuple(items))


class Study(ABC):
    """One experiment. Members are constructed without arguments and keep no state.

    Contract, checked on every run: a result has at least one table, one finding and one record;
    its figures are among :attr:`figures`; records carry the study's name and the seed. Tested
    for every registered study: the same options give the same result.

    Attributes:
        name: under which it is registered.
        title: a line that says what it is about.
        text: one paragraph: what is done and what to look for, before any result is known.
        figures: names of the figures it draws; each becomes files of that name.
        dataset: the data set it runs on unless told otherwise; None: it takes no data set.
        settings: what else can be chosen of it.
    """

    registry: ClassVar[Registry[type[Study]]] = Registry("study", __name__)

    name: ClassVar[str]
    title: ClassVar[str]
    text: ClassVar[str]
    figures: ClassVar[tuple[str, ...]]
    dataset: ClassVar[str | None] = None
    settings: ClassVar[Mapping[str, Setting]] = {}

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Study.registry.add(name, cls)

    @abstractmethod
    def measure(self, options: Options) -> StudyResult:
        """Do the experiment; called by :meth:`run`, with options that fit the study.

        ``options.dataset`` is a data set to load, or None where the study takes none, and
        ``options.settings`` holds every setting of the study, in its type. Records need neither
        study nor seed, which :meth:`run` adds.
        """

    @final
    def run(self, options: Options | None = None) -> StudyResult:
        """Return what the experiment gave; without options: their defaults.

        Raises:
            InputError: a data set for a study that takes none; a setting out of range.
            UnknownNameError: the study has no such setting.
            DataError: data that it needs is absent.
        """
        options = options or Options()
        if self.dataset is None and options.dataset is not None:
            raise InputError(
                f"the study {self.name} takes no data set, but {options.dataset!r} was given; "
                "leave out --dataset"
            )
        chosen = self.chosen(options.settings)
        result = self.measure(
            replace(options, dataset=options.dataset or self.dataset, settings=chosen)
        )
        drawn = {figure.name for figure in result.figures}
        if not result.tables or not result.findings or not result.records:
            raise TypeError(f"study {self.name}: a result has tables, findings and records")
        if unknown := drawn - set(self.figures):
            raise TypeError(f"study {self.name} does not announce figures {sorted(unknown)}")
        records = [replace(r, study=self.name, seed=options.seed) for r in result.records]
        return replace(result, records=tuple(records))

    @final
    def chosen(self, given: Mapping[str, int | float | str]) -> dict[str, int | float | str]:
        """Return every setting of the study: what is given, read and checked, else its default.

        Raises:
            InputError: out of range, or no number where one is needed.
            UnknownNameError: the study has no such setting.
        """
        for name in given:
            if name not in self.settings:
                raise UnknownNameError(f"setting of the study {self.name}", name, self.settings)
        return {n: s.read(n, given.get(n, s.default)) for n, s in self.settings.items()}

    @final
    def article(self, result: StudyResult, about: tuple[tuple[str, str], ...] = ()) -> Article:
        """Return what a page shows of a result; ``about`` says how it was made."""
        return Article(
            self.name, self.title, self.text, result.findings, result.figures, result.tables,
            result.skipped, about,
        )  # fmt: skip


studies = Study.registry
