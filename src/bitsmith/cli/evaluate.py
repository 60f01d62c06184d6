"""``bitsmith evaluate``: accuracy with its interval, size, latency; against a reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitsmith.cli.options import AllowPickle, BatchSize, Data, Json, Threads, Weights
from bitsmith.cli.output import Output, json_path, progress
from bitsmith.cli.samples import check_shape, data_name, test_split
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import evaluation_table
from bitsmith.cli.texts import evaluate_texts, is_text, text_split
from bitsmith.errors import InputError

if TYPE_CHECKING:
    from bitsmith.data import Batches, Split
    from bitsmith.insight.evaluation import Evaluation
    from bitsmith.insight.subject import Subject
    from bitsmith.zoo import LoadedModel

__all__ = ["evaluate"]


def evaluate(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ARTEFACT",
            help="A model (zoo name, package.module:callable, .pt2), an .onnx file, or a .bitsmith "
            "folder, which runs as the simulation.",
        ),
    ],
    data: Data = None,
    split: Annotated[
        str | None,
        typer.Option(help="Default: test; of texts, the one that judges.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL|ARTEFACT", help="Compare with this, sample by sample."),
    ] = None,
    weights: Weights = None,
    allow_pickle: AllowPickle = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first samples only. Default: all.")
    ] = None,
    batch_size: BatchSize = 128,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="See: bitsmith list runtimes; or torch, for a MODEL as it is. Default: "
            "onnxruntime; torch for a MODEL of text.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Run the simulation beside an .onnx file instead.")
    ] = False,
    json: Json = None,
) -> None:
    """Measure accuracy with its 95 % interval, size, and latency at batch 1 and 128.

    On a text data set: Spearman × 100 of pairs, or loss in nats per token, and size.

    Without --reference, --weights belongs to MODEL; an ARTEFACT has its own, and then --weights
    belongs to the reference.
    """
    output = Output("evaluate", json)
    with Staging([json_path(json)]) as staging:
        from bitsmith.insight.evaluation import difference
        from bitsmith.insight.records import evaluation_records

        asked = [subject] if reference is None else [subject, reference]
        asked_runtime, runtime = runtime, runtime or "onnxruntime"
        found = _found(asked, weights, allow_pickle, runtime, threads, simulate)
        name = data_name(data, next((d for d in map(_default_data, found) if d), None))
        if is_text(name):
            lines = text_split(name, split, limit)
            output.json(evaluate_texts(output, found, lines, asked_runtime), staging)
            return
        samples = test_split(name, split)
        batches = samples.batches(batch_size, limit=_limited(limit, samples))
        subjects = [_ready(f, samples, runtime, threads) for f in found]
        results = [_measure(s, batches) for s in subjects]
        against = difference(results[0], results[1]) if len(results) == 2 else None
        evaluation_table(output, results, against)
        keys = [_keys(s, samples) for s in subjects]
        records = evaluation_records(results[0], keys[0], against, results[-1])
        if against is not None:
            records += evaluation_records(results[1], keys[1])
        output.json(records, staging)


def _is_artefact(spec: str) -> bool:
    return spec.rstrip("/").endswith((".onnx", ".bitsmith"))


def _found(
    asked: list[str],
    weights: Path | None,
    allow_pickle: bool,
    runtime: str,
    threads: int | None,
    simulate: bool,
) -> list[Subject | LoadedModel]:
    """Open the artefacts and load the models; the weights belong to the first model."""
    from bitsmith.deploy.runtimes import runtimes
    from bitsmith.insight.subject import open_artefact
    from bitsmith.zoo import load_model

    models = [spec for spec in asked if not _is_artefact(spec)]
    first = next((i for i, spec in enumerate(asked) if not _is_artefact(spec)), None)
    if weights is not None and not models:
        raise InputError(
            f"--weights {weights}: an artefact has its own weights, and no MODEL is named"
        )
    if simulate and not asked[0].endswith(".onnx"):
        raise InputError(f"--simulate needs an .onnx file with its simulation, not {asked[0]!r}")
    if runtime != "torch" or not models:
        runtimes[runtime]
    found: list[Subject | LoadedModel] = []
    for position, spec in enumerate(asked):
        if _is_artefact(spec):
            simulated = simulate and position == 0
            found.append(open_artefact(Path(spec), runtime, threads, simulate=simulated))
        else:
            own = weights if position == first else None
            found.append(load_model(spec, own, allow_pickle=allow_pickle))
    return found


def _default_data(found: Subject | LoadedModel) -> str | None:
    from bitsmith.zoo import LoadedModel

    if isinstance(found, LoadedModel):
        return found.dataset
    name: str | None = found.described.get("provenance", {}).get("dataset")
    return name


def _ready(
    found: Subject | LoadedModel, samples: Split, runtime: str, threads: int | None
) -> Subject:
    from bitsmith.insight.subject import module_subject
    from bitsmith.zoo import LoadedModel

    if not isinstance(found, LoadedModel):
        return found
    check_shape(found, samples)
    example, _ = next(iter(samples.batches(2, limit=min(2, samples.n))))
    return module_subject(found.name, found.module, example, runtime, threads)


def _limited(limit: int | None, samples: Split) -> int | None:
    return None if limit is None else min(limit, samples.n)


def _measure(subject: Subject, batches: Batches) -> Evaluation:
    from bitsmith.insight.evaluation import evaluate as measure

    with progress(subject.name, batches.samples) as advance:
        return measure(
            subject.name,
            subject.call,
            batches,
            runtime=subject.runtime,
            method=subject.method,
            bytes=subject.bytes,
            advance=advance,
        )


def _keys(subject: Subject, samples: Split) -> dict[str, Any]:
    from bitsmith.insight.records import described_keys

    floats = {"model": subject.name, "weight_bits": 32, "activation_bits": 32}
    own = floats if subject.method == "float" else {"model": subject.name}
    own |= described_keys(subject.described)
    return own | {
        "dataset": samples.dataset,
        "split": samples.name,
        "data_sha256": samples.sha256,
    }
