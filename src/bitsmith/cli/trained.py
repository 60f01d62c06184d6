"""What ``bitsmith train`` says while it trains, and says and writes once it has."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from bitsmith.cli.artefact import (
    quantized_records,
    simulation,
    summary,
    write_artefact,
)
from bitsmith.cli.output import Output, phase
from bitsmith.cli.pack import write_packed
from bitsmith.cli.tables import coverage_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitsmith.cli.staging import Staging
    from bitsmith.data import Split
    from bitsmith.insight.measure import Record
    from bitsmith.model.quantized import QuantizedModel
    from bitsmith.model.train import TrainingRun
    from bitsmith.zoo import LoadedModel

__all__ = ["Told", "learned_from", "losses_table", "write_graph", "write_modules"]


def learned_from(labels: bool) -> str:
    """Return what was learned, in words."""
    return "the labels" if labels else "the float model"


@final
class Told:
    """Says the loss of every epoch as soon as it is over: on standard error, above the bar.

    Args:
        epochs: how many there will be.
        labels: they are learned; else the outputs of the float model.
    """

    def __init__(self, epochs: int, labels: bool) -> None:
        from bitsmith.model.qat.fit import cross_entropy, distillation

        self._epochs, self._measure = epochs, cross_entropy if labels else distillation
        self._index, self._total, self._samples, self._started = 0, 0.0, 0, 0.0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch, and count it."""
        value = self._measure(output, target)
        self._total += float(value.detach()) * len(output)
        self._samples += len(output)
        return value

    def epoch(self, index: int, module: nn.Module) -> None:
        """End the epoch before, if there was one, and begin epoch ``index``."""
        self.end()
        self._index, self._started = index, time.perf_counter()

    def end(self) -> None:
        """Say the mean over the samples since the epoch began."""
        if self._samples:
            mean, seconds = self._total / self._samples, time.perf_counter() - self._started
            said = f"epoch {self._index + 1}/{self._epochs}: loss {mean:.5g}, {seconds:.1f} s"
            print(said, file=sys.stderr, flush=True)
        self._total, self._samples = 0.0, 0


def losses_table(output: Output, run: TrainingRun, labels: bool) -> None:
    """Print the loss of each epoch."""
    output.heading(
        f"Training, to give what {learned_from(labels)} " + ("say" if labels else "gives")
    )
    output.table(
        [">epoch", ">learning rate", ">loss", ">samples", ">seconds"],
        [
            (
                *(f"{e.index + 1}", f"{e.lr:.3g}", f"{e.loss:.5g}"),
                *(f"{e.samples:,}", f"{e.seconds:.1f}"),
            )
            for e in run.history
        ],
    )


def _epoch_records(run: TrainingRun, keys: dict[str, Any]) -> list[Record]:
    """Return the mean loss of each epoch, in order; ``outcome`` says which."""
    from bitsmith.insight.measure import Record

    return [
        Record(
            **keys,
            outcome=f"epoch {e.index + 1}",
            metric="loss",
            value=e.loss,
            n=e.samples,
            quantize_seconds=e.seconds,
        )
        for e in run.history
    ]


def write_graph(
    output: Output,
    staging: Staging,
    quantized: QuantizedModel,
    loaded: LoadedModel,
    origin: dict[str, Any],
    run: TrainingRun,
    out: Path,
    weights_as: str,
    seconds: dict[str, float],
) -> list[Record]:
    """Write and print a graph in integers; return its records."""
    with phase(seconds, "write"):
        paths = staging.path(out), staging.path(simulation(out))
        write_artefact(quantized, origin, *paths, weights_as)
    size = staging.path(out).stat().st_size
    coverage_table(output, quantized.coverage)
    summary(output, quantized, loaded, size, seconds)
    from bitsmith.insight.records import quantized_keys

    of_epochs = _epoch_records(run, quantized_keys(quantized))
    return quantized_records(quantized, size, _spent(seconds), of_epochs)


def write_modules(
    output: Output,
    staging: Staging,
    quantized: nn.Module,
    loaded: LoadedModel,
    samples: Split,
    run: TrainingRun,
    out: Path,
    seed: int,
    seconds: dict[str, float],
) -> list[Record]:
    """Write and print a model with packed weights; return its records."""
    recipe: Any = quantized.recipe
    about = {"method": "qat", "seed": seed, "dataset": samples.dataset, "split": samples.name}
    about |= {"data_sha256": samples.sha256}
    example, _ = next(iter(samples.batches(2, limit=min(2, samples.n))))
    first, *layers = write_packed(
        output, staging, quantized, loaded, out, seconds, about, (example,), _spent(seconds)
    )
    keys = {"model": loaded.name, "recipe": recipe.name, **about}
    return [first, *_epoch_records(run, keys), *layers]


def _spent(seconds: dict[str, float]) -> float:
    return seconds["prepare"] + seconds["train"]
