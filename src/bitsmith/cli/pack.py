"""``bitsmith quantize`` with a recipe of the module lane: packed weights, in files others read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from bitsmith.cli.output import Output, json_path, phase, progress
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import amount
from bitsmith.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitsmith.insight.measure import Record
    from bitsmith.model.recipe import Recipe
    from bitsmith.model.swap import WeightRow
    from bitsmith.zoo import LoadedModel

__all__ = ["Packing", "pack"]


@final
@dataclass(frozen=True)
class Packing:
    """What the command line asked for.

    Attributes:
        out: ``.onnx``, ``.gguf`` or ``.bitsmith``.
        data: name of a data set to calibrate on; None: no data.
        samples, batch_size, seed: of the calibration data.
        rounding, transform, ragged: see :func:`bitsmith.model.weights.quantize_weights`.
        json: where records go.
    """

    out: Path
    data: str | None
    samples: int
    batch_size: int
    seed: int
    rounding: str | None
    transform: str | None
    ragged: str
    json: str | None


def pack(output: Output, loaded: LoadedModel, recipe: Recipe, asked: Packing) -> None:
    """Quantize, write and report."""
    from bitsmith.deploy.export import export_module, module_exporters
    from bitsmith.model.store import save
    from bitsmith.model.weights import coverage_of, quantize_weights
    from bitsmith.zoo import zoo_models

    if asked.ragged not in ("error", "pad", "float"):
        raise InputError(f"--ragged is error, pad or float, not {asked.ragged!r}")
    suffixes = {module_exporters[n].suffix for n in module_exporters} - {""} | {".bitsmith"}
    if asked.out.suffix not in suffixes:
        raise InputError(
            f"--out {asked.out}: the name of a weight-only model ends in "
            f"{', '.join(sorted(suffixes))} (compressed-tensors folders: bs.export)"
        )
    folder = asked.out
    if asked.out.suffix != ".bitsmith":
        folder = asked.out.with_name(f"{asked.out.name}.bitsmith")
    seconds: dict[str, float] = {}
    outputs = [asked.out, *([folder] if folder != asked.out else []), json_path(asked.json)]
    with Staging(outputs) as staging:
        batches = _batches(loaded, asked)
        total = sum(p.numel() for p in loaded.module.parameters() if p.dim() > 1)
        with phase(seconds, "quantize"), progress("quantizing", total) as advance:
            quantized = quantize_weights(
                loaded.module,
                recipe,
                batches,
                rounding=asked.rounding,
                transform=asked.transform,
                ragged=asked.ragged,  # type: ignore[arg-type]  # checked above
                advance=advance,
            )
        with phase(seconds, "write"):
            builder = loaded.name if loaded.name in zoo_models else None
            save(quantized, staging.path(folder), builder=builder)
            if folder != asked.out:
                example = _example(loaded, batches)
                export_module(quantized, staging.path(asked.out), example=example)
        size = _size(staging.path(asked.out))
        _report(output, quantized, recipe, size, loaded, seconds)
        rows = coverage_of(quantized)
        about = {"model": loaded.name, "recipe": recipe.name, "method": "ptq", "seed": asked.seed}
        output.json(_records(rows, about, size, seconds), staging)
    output.heading("Files")
    output.facts([("file", str(asked.out)), ("packed model", f"{folder}/")])


def _batches(loaded: LoadedModel, asked: Packing) -> list[Any] | None:
    """Return calibration batches, or None where no data was asked for."""
    from bitsmith.cli.samples import calibration_batches, calibration_split, check_shape
    from bitsmith.cli.texts import is_text
    from bitsmith.data.texts import load_text
    from bitsmith.data.token_rows import TokenRows

    if asked.data is None:
        return None
    import torch

    if asked.data == "tinystories":
        from bitsmith.zoo.models.stories260k import Llama, generate

        if not isinstance(loaded.module, Llama):
            raise DataError("tinystories calibrates stories260k, on text it writes itself")
        generated = generate(loaded.module, asked.samples, seed=asked.seed)
        return list(torch.split(generated, asked.batch_size))
    if is_text(asked.data):
        found = load_text(asked.data).split("calibration")
        assert isinstance(found, TokenRows)  # sentences, not the pairs that judge
        rows = found.sample(asked.samples, seed=asked.seed)
        return [rows.padded(group) for group in rows.groups(asked.batch_size)]
    split = calibration_split(asked.data, None)
    check_shape(loaded, split)
    return [x for x, _ in calibration_batches(split, asked.samples, asked.batch_size, asked.seed)]


def _example(loaded: LoadedModel, batches: list[Any] | None) -> tuple[Tensor, ...]:
    """Return inputs to trace with: calibration data, or random ones of a known shape."""
    import torch

    if batches:
        first = batches[0]
        return tuple(first) if isinstance(first, tuple | list) else (first,)
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
        ["weight", "layer", "outcome", "reason", ">values", ">bits per weight"],
        [
            (r.layer, r.op, r.outcome, r.reason, f"{r.values:,}", f"{r.bits_per_weight:.2f}")
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


def _records(
    rows: list[WeightRow], about: dict[str, Any], size: int, seconds: dict[str, float]
) -> list[Record]:
    from bitsmith.insight.measure import Record

    values = sum(r.values for r in rows if r.outcome == "packed")
    stored = sum(r.values * r.bits_per_weight for r in rows if r.outcome == "packed")
    summary = Record(
        **about,
        n=values,
        bytes=size,
        bits_per_weight=stored / values if values else None,
        quantize_seconds=seconds["quantize"],
    )
    return [
        summary,
        *(
            Record(
                **about,
                layer=r.layer,
                op=r.op,
                outcome=r.outcome,
                reason=r.reason or None,
                n=r.values,
                bits_per_weight=r.bits_per_weight,
            )
            for r in rows
        ),
    ]
