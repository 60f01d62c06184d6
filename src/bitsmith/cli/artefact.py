"""A graph in integers on its way out: the file, its simulation, the summary, the records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.cli.tables import amount
from bitsmith.errors import InputError

if TYPE_CHECKING:
    from bitsmith.cli.calibration import TextBatches
    from bitsmith.cli.output import Output
    from bitsmith.data import Batches
    from bitsmith.insight.measure import Record
    from bitsmith.model.quantized import QuantizedModel
    from bitsmith.zoo import LoadedModel

__all__ = [
    "check_out",
    "described",
    "quantized_records",
    "simulation",
    "summary",
    "write_artefact",
]


def simulation(out: Path) -> Path:
    """Return the folder beside ``out`` that its simulation goes to."""
    return out.with_name(f"{out.name}.bitsmith")


def check_out(out: Path, weights_as: str) -> None:
    """Refuse a name that is no ONNX file's, and a form of weights that there is not.

    Raises:
        InputError: one of them.
    """
    from bitsmith.deploy.export.onnx.weights import WEIGHTS

    if out.suffix != ".onnx":
        raise InputError(f"--out {out}: the file's name must end in .onnx")
    if weights_as not in WEIGHTS:
        raise InputError(f"--weights-as is {' or '.join(WEIGHTS)}, not {weights_as!r}")


def described(
    model: LoadedModel, batches: Batches | TextBatches, seed: int, **more: Any
) -> dict[str, Any]:
    """Return where a quantized model comes from; goes into the file and into records.

    Args:
        model: the float model.
        batches: that ranges were found on.
        seed: of everything random.
        more: ``effort``, ``method`` … as they are.
    """
    own = {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "dataset": batches.split.dataset,
        "split": batches.split.name,
        "data_sha256": batches.split.sha256,
        "calibration_batch_size": batches.batch_size,
        "seed": seed,
        **more,
    }
    return {key: value for key, value in own.items() if value is not None}


def write_artefact(
    model: QuantizedModel,
    provenance: dict[str, Any],
    path: Path,
    folder: Path,
    weights_as: str = "int8",
) -> None:
    """Write the file and its simulation; the same inputs give the same bytes."""
    from bitsmith.deploy.export import export
    from bitsmith.model.store import save

    model.provenance.update(provenance)
    export(model, path, weights=weights_as)
    save(model, folder)


def quantized_records(
    model: QuantizedModel, size: int, seconds: float, between: list[Record] | None = None
) -> list[Record]:
    """Return the summary, the records ``between``, then one record per operator.

    Args:
        model: with the provenance that was written.
        size: of the file, in bytes.
        seconds: that making it took.
        between: what was measured on the way, for example of each stage.
    """
    from bitsmith.insight.measure import Record
    from bitsmith.insight.records import coverage_records, quantized_keys, stored_bits

    keys = quantized_keys(model)
    first = Record(
        **keys,
        n=model.provenance["calibration_samples"],
        bytes=size,
        bits_per_weight=stored_bits(model),
        quantize_seconds=seconds,
    )
    return [first, *(between or []), *coverage_records(model.coverage, keys)]


def summary(
    output: Output,
    model: QuantizedModel,
    loaded: LoadedModel,
    size: int,
    seconds: dict[str, float],
) -> None:
    """Print what was made, from what, and how large it is."""
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
