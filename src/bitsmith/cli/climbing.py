"""``--effort medium`` and ``high``: what they learn from, and how far they go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, get_args

from bitsmith.cli.inputs import location, overwritten
from bitsmith.cli.texts import is_text
from bitsmith.errors import DataError, InputError, UnknownNameError

if TYPE_CHECKING:
    from bitsmith.cli.calibration import TextBatches
    from bitsmith.data import Batches
    from bitsmith.data.training import EpochBatches, TrainingBatches
    from bitsmith.model.qat.ladder import Effort, Ladder

__all__ = [
    "CALIBRATION",
    "LEARNING",
    "Staged",
    "check_checkpoint",
    "checked_effort",
    "ladder_of",
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
    if (lost := overwritten(checkpoint)) is not None:
        raise InputError(
            f"--checkpoint {checkpoint}: this command reads {lost}; name another place"
        )
    at = location(checkpoint)
    taken = [location(out) for out in outputs if out is not None]
    if any(out == at or out in at.parents for out in taken):
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
