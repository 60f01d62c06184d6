"""``bitsmith verify``: does the file compute what the simulation computes, on the real runtime?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitsmith.cli.options import BatchSize, Data, Json, Runtime, Seed, Threads
from bitsmith.cli.output import Output, json_path, progress
from bitsmith.cli.samples import check_inputs, data_name, test_split
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import verification_tables
from bitsmith.cli.texts import check_token_inputs, is_text, texts_to_compare, token_batches
from bitsmith.cli.verify_outputs import verify_outputs
from bitsmith.errors import CheckFailedError, InputError

if TYPE_CHECKING:
    from bitsmith.model.quantized import QuantizedModel

__all__ = ["verify"]


def verify(
    artefact: Annotated[
        Path,
        typer.Argument(metavar="ARTEFACT", help="An .onnx file with its .onnx.bitsmith folder."),
    ],
    data: Data = None,
    split: Annotated[
        str | None,
        typer.Option(help="Default: test; of texts, the one that judges.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Inputs to compare.")] = 256,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    runtime: Runtime = "onnxruntime",
    threads: Threads = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="What makes the float model of packed weights, package.module:callable or a "
            ".pt2 file, where you trust it; a zoo name is known.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Compare the file with its simulation, tensor by tensor; exit code 1 if they differ.

    With --runtime openvino, which rounds in its own way, a code may be off by one where a value
    lies between two codes; anything more fails there too.
    """
    output = Output("verify", json)
    with Staging([json_path(json)]) as staging:
        from bitsmith.deploy.runtimes import runtimes
        from bitsmith.deploy.verify import verify as compare
        from bitsmith.insight.records import quantized_keys, verification_records
        from bitsmith.insight.subject import simulation_folder
        from bitsmith.model.quantized import QuantizedModel
        from bitsmith.model.store import load

        runtimes[runtime]
        _check_artefact(artefact)
        saved = load(simulation_folder(artefact), model)
        if not isinstance(saved, QuantizedModel):
            records = verify_outputs(
                output, saved, artefact, data=data, split=split, samples=samples,
                batch_size=batch_size, seed=seed, runtime=runtime, threads=threads,
            )  # fmt: skip
            output.json(records, staging)
            return
        name = data_name(data, saved.provenance.get("dataset"))
        batches, count, about = _batches(saved, name, split, samples, batch_size, seed)
        with progress("verifying", count) as advance:
            found = compare(
                saved, artefact, batches, runtime=runtime, samples=count,
                threads=threads, advance=advance,
            )  # fmt: skip
        verification_tables(output, found)
        keys = quantized_keys(saved) | about
        output.json(verification_records(found, keys), staging)
    if not found.passed:
        raise CheckFailedError(
            f"{artefact} does not hold on {runtime}: {'; '.join(found.failures)}"
        )


def _check_artefact(artefact: Path) -> None:
    """Refuse what is no ``.onnx`` file.

    Raises:
        InputError: says what it is, and what verify takes.
    """
    takes = "verify takes an .onnx file, with the folder that bitsmith quantize writes beside it"
    if artefact.is_dir():
        file = str(artefact).removesuffix(".bitsmith")
        raise InputError(f"{artefact} is a folder; {takes}" + f": {file}" * file.endswith(".onnx"))
    if not artefact.exists():
        raise InputError(f"{artefact} does not exist; {takes}")
    if artefact.suffix != ".onnx":
        raise InputError(
            f"{artefact} is no .onnx file; {takes}; bitsmith evaluate runs NAME.bitsmith folders"
        )


def _batches(
    model: QuantizedModel, name: str, split: str | None, samples: int, batch_size: int, seed: int
) -> tuple[Iterable[Any], int, dict[str, Any]]:
    """Return what to compare on, how many samples that is, and what records say of them."""
    if is_text(name):
        check_token_inputs(model, name)
        rows, about = texts_to_compare(name, split, samples, seed)
        mask = len(model.program.graph.inputs) == 2
        return token_batches(rows, batch_size, mask=mask), rows.n, about
    chosen = test_split(name, split)
    check_inputs(model, chosen)
    count = min(samples, chosen.n)
    about = {"dataset": chosen.dataset, "split": chosen.name, "data_sha256": chosen.sha256}
    return chosen.batches(batch_size, limit=count, seed=seed), count, about | {"seed": seed}
