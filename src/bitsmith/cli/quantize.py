"""``bitsmith quantize``: a trained network, a recipe and samples become a file in integers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitsmith.cli.options import AllowPickle, BatchSize, Data, Json, Model, Seed, Weights
from bitsmith.cli.output import Output, json_path, phase, progress
from bitsmith.cli.pack import Packing, pack
from bitsmith.cli.samples import (
    calibration_batches,
    calibration_split,
    check_shape,
    data_name,
    report_split,
)
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import amount, coverage_table, evaluation_table, verification_tables
from bitsmith.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from bitsmith.data import Batches, Split
    from bitsmith.insight.assessment import Assessment
    from bitsmith.insight.measure import Record
    from bitsmith.model.quantized import QuantizedModel
    from bitsmith.zoo import LoadedModel

__all__ = ["described", "quantize", "quantized_records", "write_artefact"]

EFFORTS = ("low", "medium", "high")


def quantize(
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help="FILE.onnx; its simulation goes to FILE.onnx.bitsmith/. Weight-only: also "
            "FILE.gguf, or a folder NAME.bitsmith.",
        ),
    ],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="RECIPE", help="A preset, or a JSON file.")
    ] = "W8A8",
    data: Data = None,
    weights: Weights = None,
    allow_pickle: AllowPickle = False,
    target: Annotated[str, typer.Option(help="The runtime that will execute it.")] = "onnxruntime",
    machine: Annotated[
        str, typer.Option(help="What the file must be exact on: any, vnni or any-order.")
    ] = "any",
    calibrator: Annotated[
        str | None, typer.Option(help="Default: the recipe's, mse.", show_default=False)
    ] = None,
    calibration_samples: Annotated[int, typer.Option(help="Drawn from the train split.")] = 256,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    split: Annotated[
        str | None,
        typer.Option(help="Only for an .npz that does not say: train.", show_default=False),
    ] = None,
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
    effort: Annotated[str, typer.Option(help="low; medium and high do not exist yet.")] = "low",
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Also evaluate and verify on the test split, and write a page about it.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Quantize MODEL after training: an ONNX file in integers, or packed weights."""
    output = Output("quantize", json)
    folder = out.with_name(f"{out.name}.bitsmith")
    _check_effort(effort)
    from bitsmith.model.presets import make_recipe

    chosen = make_recipe(recipe)
    if chosen.lane == "module":
        from bitsmith.zoo import load_model

        asked = Packing(
            out, data, calibration_samples, batch_size, seed, rounding, transform, ragged, json
        )
        pack(output, load_model(model, weights, allow_pickle=allow_pickle), chosen, asked)
        return
    if out.suffix != ".onnx":
        raise InputError(f"--out {out}: the file's name must end in .onnx")
    with Staging([out, folder, report, json_path(json)]) as staging:
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
            train = calibration_split(name, split)
            check_shape(loaded, train)
            batches = calibration_batches(train, calibration_samples, batch_size, seed)
            provenance = described(loaded, batches, seed, effort)
            test = None if report is None else report_split(name, split)
        with phase(seconds, "quantize"), progress("calibrating", batches.samples) as advance:
            quantized = ptq(
                loaded.module, chosen, batches, target=target, machine=machine,
                calibrator=calibrator, advance=advance,
            )  # fmt: skip
        with phase(seconds, "write"):
            write_artefact(quantized, provenance, staging.path(out), staging.path(folder))
        coverage_table(output, quantized.coverage)
        _summary(output, quantized, loaded, staging.path(out).stat().st_size, seconds)
        records = quantized_records(quantized, staging.path(out).stat().st_size, seconds)
        if report is not None and test is not None:
            paths = (staging.path(out), staging.path(report))
            records += _reported(output, quantized, test, loaded.name, *paths)
        output.json(records, staging)
    output.heading("Files")
    output.facts([("file", str(out)), ("simulation", f"{folder}/")])
    if report is not None:
        output.facts([("report", str(report))])
    output.line(f"next: bitsmith verify {out} --data {name}")


def _check_effort(effort: str) -> None:
    if effort not in EFFORTS:
        raise UnknownNameError("effort", effort, EFFORTS)
    if effort != "low":
        raise InputError(f"--effort {effort} does not exist yet; only low (ranges alone) does")


def described(model: LoadedModel, batches: Batches, seed: int, effort: str) -> dict[str, Any]:
    """Return where a quantized model comes from; goes into the file and into records."""
    own = {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "dataset": batches.split.dataset,
        "split": batches.split.name,
        "data_sha256": batches.split.sha256,
        "calibration_batch_size": batches.batch_size,
        "seed": seed,
        "effort": effort,
    }
    return {key: value for key, value in own.items() if value is not None}


def write_artefact(
    model: QuantizedModel, provenance: dict[str, Any], path: Path, folder: Path
) -> None:
    """Write the file and its simulation; the same inputs give the same bytes."""
    from bitsmith.deploy.export import export
    from bitsmith.model.store import save

    for key in [k for k in model.provenance if k.endswith("_seconds")]:
        del model.provenance[key]  # timings would make every file another
    model.provenance.update(provenance)
    export(model, path)
    save(model, folder)


def quantized_records(model: QuantizedModel, size: int, seconds: dict[str, float]) -> list[Record]:
    """Return the summary, then one record per operator."""
    from bitsmith.insight.measure import Record
    from bitsmith.insight.records import coverage_records, quantized_keys, stored_bits

    keys = quantized_keys(model)
    summary = Record(
        **keys,
        n=model.provenance["calibration_samples"],
        bytes=size,
        bits_per_weight=stored_bits(model),
        quantize_seconds=seconds["quantize"],
    )
    return [summary, *coverage_records(model.coverage, keys)]


def _summary(
    output: Output,
    model: QuantizedModel,
    loaded: LoadedModel,
    size: int,
    seconds: dict[str, float],
) -> None:
    from bitsmith.insight.records import stored_bits

    float_bytes = 4 * sum(p.numel() for p in loaded.module.parameters())
    found = model.provenance
    integer = sum(row.macs_share for row in model.coverage if row.outcome == "integer")
    rows = [row for row in model.coverage if row.weight_bits is not None]
    weighted = sum(row.macs_share for row in rows)
    bits = (
        sum((row.weight_bits or 0) * row.macs_share for row in rows) / weighted if weighted else 0
    )
    stored = stored_bits(model)
    output.heading("Summary")
    output.facts(
        [
            ("recipe", f"{model.recipe.name}, calibrator {found['calibrator']}"),
            ("target", f"{model.target}, exact on machine {model.machine!r}"),
            (
                "calibration",
                f"{found['calibration_samples']} samples of {found['dataset']} {found['split']}, "
                f"seed {found['seed']}, data sha256 {found['data_sha256'][:12]}…",
            ),
            ("in integers", f"{100 * integer:.2f} % of multiply-accumulates"),
            (
                "size",
                f"{amount(size)}; float32 weights {amount(float_bytes)} ({size / float_bytes:.3f})",
            ),
            (
                "bits per weight",
                "-" if stored is None else f"{stored:.2f} stored, {bits:.2f} effective (by MACs)",
            ),
            ("seconds", ", ".join(f"{k} {v:.1f}" for k, v in seconds.items())),
        ]
    )


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
