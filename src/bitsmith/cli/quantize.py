"""``bitsmith quantize``: a trained network, a recipe and samples become a file in integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.artefact import (
    check_out,
    described,
    quantized_records,
    simulation,
    summary,
    write_artefact,
)
from bitsmith.cli.calibration import Draw, calibration
from bitsmith.cli.climbing import (
    CALIBRATION,
    LEARNING,
    Staged,
    check_checkpoint,
    checked_effort,
    ladder_of,
    training_of,
)
from bitsmith.cli.given import refuse_idle
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
from bitsmith.cli.output import Output, json_path, phase, progress, stages
from bitsmith.cli.pack import Packing, pack
from bitsmith.cli.rungs import (
    blocks_table,
    equalization_table,
    equalized_records,
    method_of,
    rungs_table,
    stage_records,
)
from bitsmith.cli.samples import data_name, report_split
from bitsmith.cli.staging import Staging
from bitsmith.cli.synthetic import SYNTHETIC, parsed_shape
from bitsmith.cli.tables import coverage_table, evaluation_table, verification_tables

if TYPE_CHECKING:
    from bitsmith.data import Split
    from bitsmith.insight.assessment import Assessment
    from bitsmith.insight.measure import Record
    from bitsmith.model.quantized import QuantizedModel

__all__ = ["quantize"]


def quantize(
    context: typer.Context,
    model: Model,
    out: Out,
    recipe: Recipe = "W8A8",
    data: Data = None,
    weights: Weights = None,
    allow_pickle: AllowPickle = False,
    effort: Annotated[
        str,
        typer.Option(
            help="Static: low (ranges, rounding layer by layer), medium (rounding learned block "
            "by block) or high (then distilled from the float model, without labels)."
        ),
    ] = "low",
    goal: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Medium, high: no further stage once so many predictions are the float model's. "
            "Default: every stage is climbed.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Medium, high: keep what is done here; the same command goes on from it.",
            show_default=False,
        ),
    ] = None,
    target: Target = "onnxruntime",
    machine: Machine = "any",
    calibrator: Calibrator = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            help=f"Drawn from the train split, or made. Default: {CALIBRATION}; medium and high "
            f"take up to {LEARNING:,}.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    split: SplitOfNpz = None,
    input_shape: InputShape = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            help="Weight-only: a rounding by name, see list algorithms.", show_default=False
        ),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="Weight-only, with --data: awq or smoothquant.", show_default=False),
    ] = None,
    ragged: Annotated[
        str,
        typer.Option(help="Weight-only: where a group does not divide a row: error, pad or float."),
    ] = "error",
    weights_as: WeightsAs = "int8",
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Static: also evaluate and verify on the test split, and write a page about it.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Quantize MODEL after training: an ONNX file in integers, or packed weights.

    The recipe decides: W<bits>A<bits> is static, a file in integers; others are weight-only. An
    option of the other kind is an error. Interrupted at medium or high effort, the best so far is
    written.
    """
    output = Output("quantize", json)
    from bitsmith.model.presets import make_recipe

    chosen = make_recipe(recipe)
    refuse_idle(context, chosen, data, effort)
    climb = checked_effort(effort)
    samples = calibration_samples
    if samples is None:
        samples = CALIBRATION if climb == "low" else LEARNING
    or_all = calibration_samples is None and climb != "low"
    shape = parsed_shape(input_shape)
    if chosen.lane == "module":
        from bitsmith.zoo import load_model

        draw = None
        if data is not None:
            draw = Draw(data, split, samples, batch_size, seed, shape=shape)
        asked = Packing(out, draw, seed, rounding, transform, ragged, json)
        pack(output, load_model(model, weights, allow_pickle=allow_pickle), chosen, asked)
        return
    check_out(out, weights_as)
    folder, outputs = simulation(out), [out, simulation(out), report, json_path(json)]
    check_checkpoint(checkpoint, outputs, folder=True)
    with Staging(outputs) as staging:
        from bitsmith.model.ptq import ptq
        from bitsmith.model.targets import make_target
        from bitsmith.numbers.calibrators import make_calibrator
        from bitsmith.zoo import load_model

        make_target(target, machine)
        make_calibrator(calibrator or chosen.calibrator)
        seconds: dict[str, float] = {}
        with phase(seconds, "load"):
            loaded = load_model(model, weights, allow_pickle=allow_pickle)
            name = data_name(data, loaded.dataset)
            ladder = ladder_of(climb, name, samples, goal)
            test = None if report is None else report_split(name, split)
        with phase(seconds, "synthesize" if name == SYNTHETIC else "load"):
            draw = Draw(name, split, samples, batch_size, seed, or_all, shape)
            batches = calibration(loaded, draw, output)
            training = None if ladder is None else training_of(batches, seed)
            provenance = described(loaded, batches, seed, effort=climb)
        with phase(seconds, "quantize"), stages() as begin:
            staged = Staged(begin, batches.samples, training)
            quantized = ptq(
                loaded.module, chosen, batches, target=target, machine=machine,
                calibrator=calibrator, effort=climb, ladder=ladder, seed=seed,
                training=None if training is None else staged.epoch,
                checkpoint=checkpoint, advance=staged.advance, progress=False,
            )  # fmt: skip
        rungs = [dict(r) for r in quantized.provenance.get("rungs", [])]
        blocks = [dict(b) for b in quantized.provenance.get("blocks", [])]
        pairs = [dict(p) for p in quantized.provenance.get("equalization", [])]
        stopped = bool(quantized.provenance.get("interrupted"))
        provenance["method"] = method_of(quantized)
        with phase(seconds, "write"):
            paths = staging.path(out), staging.path(folder)
            write_artefact(quantized, provenance, *paths, weights_as)
        coverage_table(output, quantized.coverage)
        equalization_table(output, pairs)
        if ladder is not None:
            rungs_table(output, rungs, ladder.goal)
            blocks_table(output, blocks)
        size = staging.path(out).stat().st_size
        summary(output, quantized, loaded, size, seconds)
        from bitsmith.insight.records import quantized_keys

        keys = quantized_keys(quantized)
        of_stages = equalized_records(pairs, keys) + stage_records(rungs, blocks, keys)
        records = quantized_records(quantized, size, seconds["quantize"], of_stages)
        if test is not None and report is not None and not stopped:
            files = (staging.path(out), staging.path(report))
            records += _reported(output, quantized, test, loaded.name, *files)
        output.json(records, staging)
    output.heading("Files")
    output.facts([("file", str(out)), ("simulation", f"{folder}/")])
    if report is not None and not stopped:
        output.facts([("report", str(report))])
    if stopped:
        raise InterruptedWorkError(_left(out, rungs, checkpoint))
    judge = (loaded.dataset or "DATA") if name == SYNTHETIC else name
    output.line(f"next: bitsmith verify {out} --data {judge}")


def _left(out: Path, rungs: list[dict[str, object]], checkpoint: Path | None) -> str:
    """Return what an interrupted command says."""
    best = [str(r["name"]) for r in rungs if r["kept"]][-1]
    again = (
        "--checkpoint DIR would have kept what was done"
        if checkpoint is None
        else f"the same command goes on from {checkpoint}"
    )
    return f"interrupted; the best so far (after {best}) was written to {out}; {again}"


def _reported(
    output: Output,
    model: QuantizedModel,
    test: Split,
    name: str,
    file: Path,
    report: Path,
) -> list[Record]:
    """Assess ``file`` on ``test``, print, write the page to ``report``; returns the records."""
    from bitsmith.insight.assessment import assess
    from bitsmith.insight.report import write_report

    found: Assessment = assess(model, file, test.batches(128), name=name, stage=progress)
    evaluation_table(output, [found.float32, found.quantized], found.against)
    verification_tables(output, found.verification)
    about = {"dataset": test.dataset, "split": test.name, "data_sha256": test.sha256}
    write_report(report, model, found, about)
    return found.records(model, about)
