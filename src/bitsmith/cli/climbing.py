"""``--effort medium`` and ``high``: what they learn from, how far they go, what each stage gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, get_args

from bitsmith.cli.texts import is_text
from bitsmith.errors import DataError, InputError, UnknownNameError

if TYPE_CHECKING:
    from bitsmith.cli.calibration import TextBatches
    from bitsmith.cli.output import Output
    from bitsmith.data import Batches
    from bitsmith.data.training import EpochBatches, TrainingBatches
    from bitsmith.insight.measure import Record
    from bitsmith.model.qat.ladder import Effort, Ladder
    from bitsmith.model.quantized import QuantizedModel

__all__ = [
    "CALIBRATION",
    "LEARNING",
    "Staged",
    "check_checkpoint",
    "checked_effort",
    "ladder_of",
    "method_of",
    "rung_records",
    "rungs_table",
    "training_of",
]

CALIBRATION = 256
"""Samples for ranges, unless another number is asked for."""
LEARNING = 2048
"""Samples that learned rounding takes at most, unless another number is asked for."""
_TRAINED_AT_ONCE = 64

_Begin = Callable[[str, int | None], Callable[[int], None]]


def checked_effort(effort: str) -> Effort:
    """Return the effort of that name.

    Raises:
        UnknownNameError: there is none.
    """
    from bitsmith.model.qat.ladder import Effort

    choices: dict[str, Effort] = {choice: choice for choice in get_args(Effort)}
    if effort not in choices:
        raise UnknownNameError("effort", effort, choices)
    return choices[effort]


def check_checkpoint(checkpoint: Path | None, outputs: list[Path | None], folder: bool) -> None:
    """Refuse a place that no checkpoint can be written to, before any work.

    Args:
        checkpoint: a folder or a file; None: none was asked for.
        outputs: of the command.
        folder: whether it is to be a folder.

    Raises:
        InputError: something else is there, or in its way.
    """
    if checkpoint is None:
        return
    wanted = "a folder" if folder else "a file"
    if checkpoint.exists() and checkpoint.is_dir() != folder:
        raise InputError(f"--checkpoint {checkpoint}: {wanted} is needed, and that is not one")
    if checkpoint.absolute() in [o.absolute() for o in outputs if o is not None]:
        raise InputError(f"--checkpoint {checkpoint} is an output too; name another place")
    above = next(p for p in checkpoint.absolute().parents if p.exists())
    if not above.is_dir():
        raise InputError(f"--checkpoint {checkpoint} cannot be written: {above} is not a folder")


def ladder_of(effort: Effort, data: str, samples: int, goal: float | None) -> Ladder | None:
    """Return how far to go; None: no further than ranges and rounding.

    Raises:
        InputError: the goal is no share in percent; the data is of texts.
        DataError: too few samples for a step of learned rounding.
    """
    from bitsmith.model.qat.ladder import Ladder

    if effort == "low":
        return None
    if goal is not None and not 0 < goal <= 100:
        raise InputError(f"--goal {goal:g}: a goal in (0, 100], in percent of the predictions")
    if samples < 1:
        raise DataError(f"--calibration-samples {samples}: effort {effort} needs samples")
    ladder = Ladder(samples=samples, goal=goal)
    if is_text(data):
        raise InputError(
            f"effort {effort} learns from samples of one input, and {data!r} is a text data set; "
            "leave --effort out, or train in Python (bs.qat)"
        )
    left, step = samples - max(samples // 8, 1), ladder.blocks.batch_size
    if left < step:
        enough = next(n for n in range(step, 2 * step + 2) if n - max(n // 8, 1) >= step)
        raise DataError(
            f"--calibration-samples {samples}: effort {effort} keeps an eighth of them to judge "
            f"by, and learns from {step} at a time; ask for at least {enough}"
        )
    return ladder


def training_of(batches: Batches | TextBatches, seed: int) -> TrainingBatches | None:
    """Return every sample of the training split for each epoch anew, without labels.

    None for texts, which are not trained on.
    """
    from bitsmith.data import Batches
    from bitsmith.data.training import TrainingBatches

    if not isinstance(batches, Batches):
        return None
    return TrainingBatches(batches.split, _TRAINED_AT_ONCE, seed=seed, labelled=False)


@final
class Staged:
    """Moves a bar through calibration, learned rounding and distillation.

    Args:
        begin: begins a stage of the bar, see :func:`bitsmith.cli.output.stages`.
        samples: to calibrate on; what is counted after them are steps.
        training: batches for distillation.
    """

    def __init__(self, begin: _Begin, samples: int, training: TrainingBatches | None) -> None:
        self._begin, self._left, self._training = begin, samples, training
        self._advance = begin("calibrating", samples)

    def advance(self, count: int) -> None:
        """Count samples, and then steps."""
        if self._left == 0:
            self._advance = self._begin("learning the rounding, steps", None)
        self._left -= count
        self._advance(count)

    def epoch(self, index: int) -> _Watched:
        """Return the batches of an epoch; each moves the bar."""
        assert self._training is not None
        batches = self._training(index)
        return _Watched(batches, self._begin(f"distilling, epoch {index + 1}", len(batches)))


@final
class _Watched:
    """Batches that tell when they were taken."""

    def __init__(self, batches: EpochBatches, advance: Callable[[int], None]) -> None:
        self._batches, self._advance = batches, advance

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        for batch in self._batches:
            yield batch
            self._advance(1)


def method_of(model: QuantizedModel) -> str:
    """Return what a record calls how ``model`` was made; distillation that was kept is a finetune.

    >>> from types import SimpleNamespace
    >>> method_of(SimpleNamespace(provenance={"rungs": [{"name": "distillation", "kept": False}]}))
    'ptq'
    """
    kept = [r["name"] for r in model.provenance.get("rungs", []) if r["kept"]]
    return "ptq+finetune" if "distillation" in kept else "ptq"


def rungs_table(output: Output, rungs: list[dict[str, Any]], goal: float | None) -> None:
    """Print what each stage gave, and whether the goal was reached before the last one."""
    output.heading("Stages")
    output.table(
        ["stage", ">distance from float", ">same prediction", ">seconds", "kept"],
        [
            (
                r["name"],
                f"{r['distance']:.4g}",
                "-" if r.get("agreement") is None else f"{r['agreement']:.2f} %",
                f"{r['seconds']:.1f}",
                "yes" if r["kept"] else "no: not better",
            )
            for r in rungs
        ],
    )
    best = max((r.get("agreement") or 0.0 for r in rungs), default=0.0)
    if goal is not None and best >= goal:
        output.line(f"the goal is reached: {best:g} % of the predictions are the float model's")


def rung_records(rungs: list[dict[str, Any]], keys: dict[str, Any]) -> list[Record]:
    """Return a record or two for each stage, which ``algorithm`` names: distance and agreement."""
    from bitsmith.insight.measure import Record

    records = []
    for r in rungs:
        name = r["name"]
        own = keys | {"algorithm": name, "outcome": "kept" if r["kept"] else "not better"}
        own |= {"method": "ptq+finetune" if name == "distillation" else "ptq"}
        found = {"distance": r["distance"], "agreement": r.get("agreement")}
        records += [
            Record(**own, metric=metric, value=value, quantize_seconds=r["seconds"])
            for metric, value in found.items()
            if value is not None
        ]
    return records
