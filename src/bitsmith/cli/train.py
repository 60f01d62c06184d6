"""``bitsmith train``: quantization-aware training, from a trained network to a verified file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitsmith.cli.artefact import check_out, described, simulation
from bitsmith.cli.calibration import Draw, training_split
from bitsmith.cli.climbing import CALIBRATION, LEARNING, check_checkpoint
from bitsmith.cli.given import refuse_idle_in_training
from bitsmith.cli.interrupted import InterruptedWorkError
from bitsmith.cli.options import (
    AllowPickle,
    BatchSize,
    Calibrator,
    Data,
    InputShape,
    Json,
    Machine,
    Model,
    Out,
    Recipe,
    Seed,
    SplitOfNpz,
    Target,
    Weights,
    WeightsAs,
)
from bitsmith.cli.output import Output, json_path, phase
from bitsmith.cli.pack import packed_files, packed_outputs
from bitsmith.cli.samples import calibration_batches, data_name
from bitsmith.cli.staging import Staging
from bitsmith.cli.synthetic import SYNTHETIC, parsed_shape
from bitsmith.cli.texts import is_text
from bitsmith.cli.trained import Told, learned_from, losses_table, write_graph, write_modules
from bitsmith.errors import BitsmithError, DataError, InputError

if TYPE_CHECKING:
    from torch import nn

    from bitsmith.data import Batches, Split
    from bitsmith.data.training import TrainingBatches
    from bitsmith.model import recipe as recipes
    from bitsmith.model.train import TrainingRun

__all__ = ["train"]

_RANGES_AT_ONCE = 64


def train(
    context: typer.Context,
    model: Model,
    recipe: Recipe,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the train split.")],
    out: Out,
    data: Data = None,
    weights: Weights = None,
    allow_pickle: AllowPickle = False,
    labels: Annotated[
        bool,
        typer.Option("--labels", help="Learn the labels, not what the float model gives."),
    ] = False,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Of weights, at the start.", show_default=False),
    ] = None,
    scale_lr: Annotated[
        float | None,
        typer.Option("--scale-lr", help="Of quantization scales.", show_default=False),
    ] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FILE",
            help="State after every epoch; the same command goes on from it, bit for bit.",
            show_default=False,
        ),
    ] = None,
    target: Target = "onnxruntime",
    machine: Machine = "any",
    calibrator: Calibrator = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            help=f"That ranges start from, drawn from the train split. Default: {CALIBRATION}. "
            f"With --data synthetic, all that are made: {LEARNING:,}.",
            show_default=False,
        ),
    ] = None,
    split: SplitOfNpz = None,
    input_shape: InputShape = None,
    weights_as: WeightsAs = "int8",
    json: Json = None,
) -> None:
    """Train MODEL with the values it will be deployed with; write what quantize would write.

    The float model is the teacher, without labels, unless --labels says otherwise. Accuracy is
    left to: bitsmith evaluate.
    """
    output = Output("train", json)
    from bitsmith.model.presets import make_recipe

    chosen = make_recipe(recipe)
    refuse_idle_in_training(context, chosen, data)
    rates = _rates(lr, scale_lr)
    shape = parsed_shape(input_shape)
    static = chosen.lane == "static"
    if static:
        check_out(out, weights_as)
    written = [out, simulation(out)] if static else packed_outputs(out)
    outputs = [*written, json_path(json)]
    check_checkpoint(checkpoint, outputs, folder=False)
    with Staging(outputs) as staging:
        from bitsmith.zoo import load_model

        seconds: dict[str, float] = {}
        with phase(seconds, "load"):
            loaded = load_model(model, weights, allow_pickle=allow_pickle)
            name = _trainable(data_name(data, loaded.dataset), labels)
            count = calibration_samples
            if count is None:
                count = LEARNING if name == SYNTHETIC else CALIBRATION
            draw = Draw(name, split, count, _RANGES_AT_ONCE, seed, shape=shape)
            samples = training_split(loaded, draw, output)
            batches = _training(samples, batch_size, seed, labels)
            ranges = calibration_batches(samples, count, _RANGES_AT_ONCE, seed) if static else None
        with phase(seconds, "prepare"):
            prepared = _prepared(loaded.module, chosen, ranges, target, machine, calibrator)
        with phase(seconds, "train"):
            settings = {"epochs": epochs, "labels": labels, "seed": seed, **rates}
            teacher = None if labels or static else loaded.module  # a graph has its own
            run = _trained(prepared, teacher, batches, checkpoint, settings)
        quantized = _converted(prepared)
        losses_table(output, run, labels)
        if ranges is not None:
            origin = described(
                loaded, ranges, seed, method="qat", epochs=epochs, learns=learned_from(labels),
                training_batch_size=batch_size, **rates,
            )  # fmt: skip
            records = write_graph(
                output, staging, quantized, loaded, origin, run, out, weights_as, seconds
            )
        else:
            records = write_modules(
                output, staging, quantized, loaded, samples, run, out, seed, seconds
            )
        output.json(records, staging)
    if not static:
        packed_files(output, out)
        return
    output.heading("Files")
    output.facts([("file", str(out)), ("simulation", f"{simulation(out)}/")])
    judge = (loaded.dataset or "DATA") if name == SYNTHETIC else name
    output.line(f"next: bitsmith evaluate {out} --data {judge} --reference {loaded.name}")


def _rates(lr: float | None, scale_lr: float | None) -> dict[str, float]:
    """Return the learning rates that were given.

    Raises:
        InputError: one that is not positive and finite.
    """
    given = {"lr": lr, "scale_lr": scale_lr}
    known = {name: rate for name, rate in given.items() if rate is not None}
    bad = [
        f"--{name.replace('_', '-')} {rate}"
        for name, rate in known.items()
        if not (math.isfinite(rate) and rate > 0)
    ]
    if bad:
        raise InputError(f"{', '.join(bad)}: a learning rate is positive and finite")
    return known


def _trainable(name: str, labels: bool) -> str:
    """Return the name of the data, after refusing what is known to be of no use here."""
    if is_text(name):
        raise InputError(
            f"train takes samples of one shape, and {name!r} is a text data set; train on texts "
            "in Python (bs.qat.prepare, your own loop, bs.qat.convert)"
        )
    if labels and name == SYNTHETIC:
        raise DataError("--labels: synthetic samples have no labels; the float model teaches them")
    return name


def _converted(prepared: nn.Module) -> Any:
    """Return what was trained as it is deployed.

    Raises:
        InputError: its numbers have left what integers hold, or a scale fell to nothing.
    """
    from bitsmith.model.qat.check import check_finite
    from bitsmith.model.qat.prepare import convert

    try:
        check_finite(prepared)
        return convert(prepared)
    except BitsmithError as error:
        raise InputError(f"training diverged: {error}; lower the learning rate (--lr)") from error


def _training(samples: Split, batch_size: int, seed: int, labels: bool) -> TrainingBatches:
    """Return the batches of every epoch.

    Raises:
        DataError: labels are to be learned and there are none.
    """
    from bitsmith.data.training import TrainingBatches

    if labels and samples.y is None:
        raise DataError(
            f"--labels: data {samples.dataset!r} has no labels in its train split; without "
            "--labels the float model is the teacher"
        )
    return TrainingBatches(samples, batch_size, seed=seed, labelled=labels)


def _prepared(
    module: nn.Module,
    recipe: recipes.Recipe,
    ranges: Batches | None,
    target: str,
    machine: str,
    calibrator: str | None,
) -> nn.Module:
    from bitsmith.model.qat.prepare import prepare

    if ranges is None:
        return prepare(module, recipe)
    return prepare(module, recipe, ranges, target=target, machine=machine, calibrator=calibrator)


def _trained(
    prepared: nn.Module,
    teacher: nn.Module | None,
    batches: TrainingBatches,
    checkpoint: Path | None,
    settings: dict[str, Any],
) -> TrainingRun:
    """Train in place.

    Raises:
        InputError: training diverged, or the checkpoint is of another run.
        InterruptedWorkError: interrupted, and the checkpoint holds what was done.
    """
    from bitsmith.model.qat.fit import fit

    told = Told(settings["epochs"], settings["labels"])
    try:
        run = fit(
            prepared, batches, teacher=teacher, checkpoint=checkpoint, loss=told.loss,
            on_epoch=told.epoch, **settings,
        )  # fmt: skip
        told.end()
        return run
    except KeyboardInterrupt:
        if checkpoint is None or not checkpoint.exists():
            raise
        raise InterruptedWorkError(
            f"interrupted; nothing was written but {checkpoint}, from which the same command goes "
            "on"
        ) from None
