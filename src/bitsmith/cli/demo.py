"""``bitsmith demo``: the main job on data that needs no download, in under a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.artefact import described, quantized_records, simulation, write_artefact
from bitsmith.cli.folder import result_folder
from bitsmith.cli.options import Json
from bitsmith.cli.output import Output, json_path, phase, progress
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import amount, coverage_table, evaluation_table, verification_tables
from bitsmith.errors import CheckFailedError

if TYPE_CHECKING:
    from torch import Tensor

    from bitsmith.data import Split
    from bitsmith.insight.assessment import Assessment
    from bitsmith.zoo import LoadedModel

__all__ = ["demo"]

MODEL, DATA, SEED = "digits-cnn", "digits", 0


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the results.")
    ] = Path("bitsmith-demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Train less and time less: a few seconds.")
    ] = False,
    json: Json = None,
) -> None:
    """Train a small CNN on handwritten digits, quantize, export, verify, measure, report."""
    output = Output("demo", json)
    onnx, report = out / f"{MODEL}-w8a8.onnx", out / "report.html"
    folder = simulation(onnx)
    with (
        result_folder(out),
        Staging([onnx, folder, report, json_path(json)]) as staging,
        _one_thread(),
    ):
        from bitsmith.data import load_dataset
        from bitsmith.insight.assessment import assess
        from bitsmith.insight.report import write_report
        from bitsmith.model.ptq import ptq

        seconds: dict[str, float] = {}
        data = load_dataset(DATA)
        train, test = data.split("train"), data.split("test")
        output.line(f"1  train {MODEL} on {train.n:,} images of 8×8 digits")
        with phase(seconds, "train"):
            model = _trained(epochs=4 if quick else 15)
        output.line("2  quantize to W8A8, calibrated on 256 of them, and export to ONNX")
        calibration = train.batches(64, limit=256, seed=SEED)
        with phase(seconds, "quantize"), progress("calibrating", 256) as advance:
            quantized = ptq(model.module, "W8A8", calibration, advance=advance)
        with phase(seconds, "write"):
            origin = described(model, calibration, SEED, effort="low")
            write_artefact(quantized, origin, staging.path(onnx), staging.path(folder))
        output.line(f"3  run float32 and int8 in ONNX Runtime on {test.n} unseen images; verify")
        with phase(seconds, "assess"):
            found = assess(
                quantized, staging.path(onnx), test.batches(128), name=MODEL, stage=progress,
                verify_samples=test.n, latency_repeats=10 if quick else 50,
            )  # fmt: skip
        about = {"dataset": DATA, "split": test.name, "data_sha256": test.sha256}
        with phase(seconds, "report"):
            write_report(staging.path(report), quantized, found, about)
        size = staging.path(onnx).stat().st_size
        records = quantized_records(quantized, size, seconds["quantize"]) + found.records(
            quantized, about
        )
        output.json(records, staging)
    coverage_table(output, quantized.coverage)
    verification_tables(output, found.verification)
    evaluation_table(output, [found.float32, found.quantized], found.against)
    _conclusion(output, found, seconds)
    output.heading("Files")
    output.facts([("file", str(onnx)), ("simulation", f"{folder}/"), ("report", str(report))])
    if not found.verification.passed:
        raise CheckFailedError("; ".join(found.verification.failures))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch use one thread.

    The network is too small to share: a second thread gains nothing on an idle machine, and on a
    busy one the threads wait for each other many times longer than they work.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trained(epochs: int) -> LoadedModel:
    import torch

    from bitsmith.data import load_dataset
    from bitsmith.model.train import fit
    from bitsmith.zoo import load_model

    train = load_dataset(DATA).split("train")
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        model = load_model(MODEL, pretrained=False)
    fit(model.module, lambda epoch: _labelled(train, epoch), epochs=epochs, seed=SEED)
    return model


def _labelled(train: Split, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """All samples in batches of 64, in an order of the epoch's own."""
    return [(x, y) for x, y in train.batches(64, seed=epoch) if y is not None]


def _conclusion(output: Output, found: Assessment, seconds: dict[str, float]) -> None:
    plain, quantized = found.float32, found.quantized
    ratio = (quantized.bytes or 0) / (plain.bytes or 1)
    differing = sum(t.differing for t in found.verification.tensors)
    codes = sum(t.n for t in found.verification.tensors)
    speed = ", ".join(
        f"{plain.latencies[b].median_ms / t.median_ms:.2f}× at batch {b}"
        for b, t in quantized.latencies.items()
    )
    output.heading("In one look")
    output.facts(
        [
            (
                "accuracy",
                f"{plain.accuracy:.2f} % in float32, {quantized.accuracy:.2f} % in integers",
            ),
            ("size", f"{amount(plain.bytes)} → {amount(quantized.bytes)} ({ratio:.2f})"),
            ("speed", f"{speed} (float32 time / int8 time, in the same runtime)"),
            (
                "exactness",
                f"{differing:,} of {codes:,} values differ between simulation and runtime; "
                f"in integers: {found.verification.in_integers}",
            ),
            (
                "seconds",
                f"{output.seconds:.0f} in all: "
                + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items()),
            ),
        ]
    )
