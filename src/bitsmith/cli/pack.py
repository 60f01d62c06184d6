"""``bitsmith quantize`` with a recipe of the module lane: packed weights, in files others read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, get_args

from bitsmith.cli.artefact import simulation
from bitsmith.cli.calibration import Draw, TextBatches, calibration
from bitsmith.cli.output import Output, json_path, phase, progress
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import amount
from bitsmith.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitsmith.insight.measure import Record
    from bitsmith.model.recipe import Recipe
    from bitsmith.model.swap import Ragged
    from bitsmith.model.weight_rows import WeightRow
    from bitsmith.zoo import LoadedModel

__all__ = ["Packing", "pack", "packed_files", "packed_outputs", "write_packed"]


@final
@dataclass(frozen=True)
class Packing:
    """What the command line asked for.

    Attributes:
        out: ``.onnx``, ``.gguf`` or ``.bitsmith``.
        draw: samples to calibrate on; None: no data.
        seed: of everything random.
        rounding, transform, ragged: see :func:`bitsmith.model.weights.quantize_weights`.
        json: where records go.
    """

    out: Path
    draw: Draw | None
    seed: int
    rounding: str | None
    transform: str | None
    ragged: str
    json: str | None


def pack(output: Output, loaded: LoadedModel, recipe: Recipe, asked: Packing) -> None:
    """Quantize, write and report."""
    from bitsmith.model.weights import quantize_weights

    ragged = _ragged(asked.ragged)
    outputs = packed_outputs(asked.out)
    seconds: dict[str, float] = {}
    with Staging([*outputs, json_path(asked.json)]) as staging:
        batches = _batches(output, loaded, asked.draw)
        total = sum(p.numel() for p in loaded.module.parameters() if p.dim() > 1)
        with phase(seconds, "quantize"), progress("quantizing", total) as advance:
            quantized = quantize_weights(
                loaded.module,
                recipe,
                batches,
                rounding=asked.rounding,
                transform=asked.transform,
                ragged=ragged,
                advance=advance,
            )
        about = {"method": "ptq", "seed": asked.seed}
        example = batches[0] if batches else None
        records = write_packed(
            output, staging, quantized, loaded, asked.out, seconds, about, example,
            seconds["quantize"],
        )  # fmt: skip
        output.json(records, staging)
    packed_files(output, asked.out)


def packed_outputs(out: Path) -> list[Path]:
    """Return what is written where packed weights go to ``out``: the file, and the folder.

    Raises:
        InputError: nothing is written under such a name.
    """
    from bitsmith.deploy.export import module_exporters

    suffixes = {module_exporters[n].suffix for n in module_exporters} - {""} | {".bitsmith"}
    if out.suffix not in suffixes:
        raise InputError(
            f"--out {out}: the name of a weight-only model ends in "
            f"{', '.join(sorted(suffixes))} (compressed-tensors folders: bs.export)"
        )
    return [out] if out.suffix == ".bitsmith" else [out, simulation(out)]


def write_packed(
    output: Output,
    staging: Staging,
    quantized: nn.Module,
    loaded: LoadedModel,
    out: Path,
    seconds: dict[str, float],
    about: dict[str, Any],
    example: tuple[Tensor, ...] | None,
    spent: float,
) -> list[Record]:
    """Write a model with packed weights, print what became of it, and return the records.

    Args:
        output: of the command.
        staging: of :func:`packed_outputs`.
        quantized: what is written.
        loaded: the float model.
        out: where the command line wants it.
        seconds: of each phase.
        about: ``method``, ``seed`` …, for every record.
        example: inputs to trace with; None: of a shape that is known, or an error.
        spent: seconds that making it took, for the records.
    """
    from bitsmith.deploy.export import export_module
    from bitsmith.model.store import save
    from bitsmith.model.weights import coverage_of
    from bitsmith.zoo import zoo_models

    recipe: Any = quantized.recipe
    with phase(seconds, "write"):
        named = loaded.name in zoo_models or ":" in loaded.name or loaded.name.endswith(".pt2")
        builder = loaded.name if named else None
        save(quantized, staging.path(packed_outputs(out)[-1]), builder=builder)
        if out.suffix != ".bitsmith":
            inputs = _example(loaded, example)
            export_module(quantized, staging.path(out), example=inputs)
    size = _size(staging.path(out))
    _report(output, quantized, recipe, size, loaded, seconds)
    about = {"model": loaded.name, "recipe": recipe.name, **about}
    return _records(coverage_of(quantized), about, size, spent)


def packed_files(output: Output, out: Path) -> None:
    """Print where everything went."""
    output.heading("Files")
    output.facts([("file", str(out)), ("packed model", f"{packed_outputs(out)[-1]}/")])


def _ragged(given: str) -> Ragged:
    from bitsmith.model.swap import Ragged

    choices: dict[str, Ragged] = {choice: choice for choice in get_args(Ragged)}
    if given not in choices:
        *first, last = choices
        raise InputError(f"--ragged is {', '.join(first)} or {last}, not {given!r}")
    return choices[given]


def _batches(
    output: Output, loaded: LoadedModel, draw: Draw | None
) -> list[tuple[Tensor, ...]] | None:
    """Return the inputs of each calibration batch, or None where no data was asked for."""
    if draw is None:
        return None
    found = calibration(loaded, draw, output)
    return list(found) if isinstance(found, TextBatches) else [(x,) for x, _ in found]


def _example(loaded: LoadedModel, given: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    """Return inputs to trace with: those given, or random ones of a known shape."""
    import torch

    if given is not None:
        return given
    if loaded.input_shape is not None:
        return (torch.zeros(2, *loaded.input_shape),)
    if loaded.dataset not in ("stsb", "tinystories"):
        raise InputError(
            f"the shape of an input of {loaded.name} is not known, and a file with its computation "
            "needs one: pass --data, or write a folder NAME.bitsmith"
        )
    index = torch.randint(1, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    return (index, torch.ones_like(index)) if loaded.dataset == "stsb" else (index,)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def _report(
    output: Output,
    quantized: nn.Module,
    recipe: Recipe,
    size: int,
    loaded: LoadedModel,
    seconds: dict[str, float],
) -> None:
    from bitsmith.model.weights import coverage_of

    rows = coverage_of(quantized)
    output.heading("Coverage")
    output.table(
        [
            "weight",
            "layer",
            "outcome",
            "algorithm",
            "reason",
            "kernel",
            ">values",
            ">bits per weight",
        ],
        [
            (
                *(r.layer, r.op, r.outcome, r.algorithm, r.reason, r.kernel),
                *(f"{r.values:,}", f"{r.bits_per_weight:.2f}"),
            )
            for r in rows
        ],
    )
    packed = [r for r in rows if r.outcome == "packed"]
    values = sum(r.values for r in packed)
    bits = sum(r.values * r.bits_per_weight for r in packed) / values if values else 0.0
    before = 4 * sum(p.numel() for p in loaded.module.parameters())
    output.heading("Summary")
    output.facts(
        [
            ("recipe", recipe.name),
            ("bits per weight", f"{bits:.2f} of {values:,} packed weights, scales included"),
            ("size", f"{amount(size)}; float32 {amount(before)} ({size / before:.3f})"),
            ("seconds", ", ".join(f"{k} {v:.1f}" for k, v in seconds.items())),
        ]
    )


def _records(rows: list[WeightRow], about: dict[str, Any], size: int, spent: float) -> list[Record]:
    from bitsmith.insight.measure import Record

    values = sum(r.values for r in rows if r.outcome == "packed")
    stored = sum(r.values * r.bits_per_weight for r in rows if r.outcome == "packed")
    summary = Record(
        **about,
        n=values,
        bytes=size,
        bits_per_weight=stored / values if values else None,
        quantize_seconds=spent,
    )
    return [
        summary,
        *(
            Record(
                **about,
                layer=r.layer,
                op=r.op,
                outcome=r.outcome,
                algorithm=r.algorithm or None,
                reason=r.reason or None,
                n=r.values,
                bits_per_weight=r.bits_per_weight,
            )
            for r in rows
        ),
    ]
