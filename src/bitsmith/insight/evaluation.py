"""How good and how fast something that maps samples to logits is, on one split of a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.insight.measure import Latency, latency, paired_difference, wilson_interval
from bitsmith.model.evaluate import Inputs, correct, evaluating, inputs_and_labels, predict

__all__ = ["LATENCY_BATCHES", "Difference", "Evaluation", "difference", "evaluate"]

#: Batch sizes whose latency is reported: one sample at a time, and throughput.
LATENCY_BATCHES = (1, 128)


@final
@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one model gave on one set of samples.

    Attributes:
        name: of the model or file.
        runtime: what executed it.
        method: ``float``, ``ptq`` … as in a record; None where it is not known.
        predictions: index of the largest logit of each sample, int64 [N].
        right: whether it is the label, bool [N]; None without labels.
        bytes: of the file; None where there is none.
        latencies: batch size → time of one call.
    """

    name: str
    runtime: str
    method: str | None
    predictions: Tensor
    right: Tensor | None
    bytes: int | None
    latencies: dict[int, Latency]

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.predictions)

    @property
    def accuracy(self) -> float | None:
        """In per cent; None without labels."""
        return None if self.right is None else 100 * float(self.right.double().mean())

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the accuracy (Wilson), in per cent; None without labels."""
        return None if self.right is None else wilson_interval(int(self.right.sum()), self.n)


@final
@dataclass(frozen=True)
class Difference:
    """Two evaluations on the same samples.

    Attributes:
        delta, low, high: difference in accuracy and its 95 % interval, in percentage points;
            None without labels.
        changed: samples on which the two predict another class.
        n: samples.
    """

    delta: float | None
    low: float | None
    high: float | None
    changed: int
    n: int

    @property
    def agreement(self) -> float:
        """Share of samples on which the two predict the same, in per cent."""
        return 100 * (1 - self.changed / self.n)


def evaluate(
    name: str,
    call: Callable[..., Any],
    batches: Iterable[Any],
    *,
    runtime: str,
    method: str | None = None,
    bytes: int | None = None,
    latency_repeats: int = 30,
    latency_seconds: float = 3.0,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run ``call`` over ``batches`` once, then time it.

    Args:
        name, runtime, method, bytes: kept as they are.
        call: batch x [B, …], or several such inputs, → logits [B, classes].
        batches: as :func:`~bitsmith.model.evaluate.predict` takes them: ``(x, y)``, ``x``,
            ``((ids, mask), y)`` …; can be iterated more than once.
        latency_repeats: timed calls at each of `LATENCY_BATCHES`; 0 times nothing.
        latency_seconds: no timed call starts after this time.
        advance: told the number of samples of each batch.

    Raises:
        DataError: no batches, or no samples left to time; outputs that are not logits
            [B, classes]; inputs or labels that do not fit.
    """
    logits, labels = predict(call, _counted(batches, advance))
    if logits.ndim != 2:
        raise DataError(
            f"{name} gives outputs of shape [N, {', '.join(map(str, logits.shape[1:]))}]; an "
            "evaluation needs logits [N, classes]"
        )
    right = None if labels is None else correct(logits, labels)
    times = {}
    if latency_repeats:
        first = _first(batches)
        for size in LATENCY_BATCHES:
            batch = first.of_size(size)
            with evaluating(call), torch.no_grad():
                times[size] = latency(
                    functools.partial(batch.call, call),
                    repeats=latency_repeats,
                    seconds=latency_seconds,
                )
    return Evaluation(name, runtime, method, logits.argmax(1), right, bytes, times)


def difference(subject: Evaluation, reference: Evaluation) -> Difference:
    """Return ``subject − reference``, sample by sample.

    Raises:
        DataError: the two saw other samples (by their number).
    """
    if subject.n != reference.n:
        raise DataError(f"{subject.n} and {reference.n} samples are not the same samples")
    changed = int((subject.predictions != reference.predictions).sum())
    if subject.right is None or reference.right is None:
        return Difference(None, None, None, changed, subject.n)
    delta, low, high = paired_difference(subject.right, reference.right)
    return Difference(delta, low, high, changed, subject.n)


def _counted(batches: Iterable[Any], advance: Callable[[int], None] | None) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        yield batch
        if advance is not None:
            advance(len(inputs_and_labels(batch, number)[0]))


def _first(batches: Iterable[Any]) -> Inputs:
    """Return the inputs of the first batch that has samples."""
    for number, batch in enumerate(batches):
        inputs, _ = inputs_and_labels(batch, number)
        if len(inputs):
            return inputs
    raise DataError(
        "no samples are left to time: the batches are empty, or an iterator is used up; give a "
        "list, or latency_repeats=0"
    )
