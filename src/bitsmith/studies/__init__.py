"""The experiments of the literature, one file each, run for real.

A study is a class that registers by being defined, ``class Memory(Study, name="memory")``, in a
file of its own in this folder. ``bitsmith study NAME`` runs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, final

from bitsmith.errors import InputError
from bitsmith.insight.exhibits import Article, Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.registry import Registry

__all__ = ["Options", "Stage", "Study", "StudyResult", "studies"]

#: Shows how far a stage is: ``with stage("training", 100) as advance: … advance(1)``.
Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def _silent(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


@final
@dataclass(frozen=True)
class Options:
    """What can be chosen of every study.

    Attributes:
        seed: of everything random.
        quick: fewer repeats or samples; the same tables and figures.
        dataset: name, file or function as ``load_dataset`` takes it; None: the study's own.
        stage: shows progress.
    """

    seed: int = 0
    quick: bool = False
    dataset: str | None = None
    stage: Stage = _silent


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
    """

    registry: ClassVar[Registry[type[Study]]] = Registry("study", __name__)

    name: ClassVar[str]
    title: ClassVar[str]
    text: ClassVar[str]
    figures: ClassVar[tuple[str, ...]]
    dataset: ClassVar[str | None] = None

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Study.registry.add(name, cls)

    @abstractmethod
    def measure(self, options: Options) -> StudyResult:
        """Do the experiment; called by :meth:`run`, with options that fit the study.

        ``options.dataset`` is a data set to load, or None where the study takes none. Records
        need neither study nor seed, which :meth:`run` adds.
        """

    @final
    def run(self, options: Options | None = None) -> StudyResult:
        """Return what the experiment gave; without options: their defaults.

        Raises:
            InputError: a data set for a study that takes none.
            DataError: data that it needs is absent.
        """
        options = options or Options()
        if self.dataset is None and options.dataset is not None:
            raise InputError(
                f"the study {self.name} takes no data set, but {options.dataset!r} was given; "
                "leave out --dataset"
            )
        result = self.measure(replace(options, dataset=options.dataset or self.dataset))
        drawn = {figure.name for figure in result.figures}
        if not result.tables or not result.findings or not result.records:
            raise TypeError(f"study {self.name}: a result has tables, findings and records")
        if unknown := drawn - set(self.figures):
            raise TypeError(f"study {self.name} does not announce figures {sorted(unknown)}")
        records = [replace(r, study=self.name, seed=options.seed) for r in result.records]
        return replace(result, records=tuple(records))

    @final
    def article(self, result: StudyResult, about: tuple[tuple[str, str], ...] = ()) -> Article:
        """Return what a page shows of a result; ``about`` says how it was made."""
        return Article(
            self.name, self.title, self.text, result.findings, result.figures, result.tables,
            result.skipped, about,
        )  # fmt: skip


studies = Study.registry
