"""``bitsmith verify`` of a file with packed weights: its outputs against those of the module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsmith.cli.samples import data_name, test_split
from bitsmith.cli.texts import is_text, texts_to_compare, token_batches
from bitsmith.errors import CheckFailedError, DataError

if TYPE_CHECKING:
    from torch import nn

    from bitsmith.cli.output import Output
    from bitsmith.insight.measure import Record

__all__ = ["verify_outputs"]

_ROUNDING = 1e-4
"""Largest difference, relative to the largest output, that the order of float sums explains."""


def verify_outputs(
    output: Output,
    model: nn.Module,
    artefact: Path,
    *,
    data: str | None,
    split: str | None,
    samples: int,
    batch_size: int,
    seed: int,
    runtime: str,
    threads: int | None,
) -> list[Record]:
    """Print and return how far the runtime's outputs are from the module's.

    Raises:
        CheckFailedError: they differ by more than float sums in another order can, and no layer
            rounds its inputs, which turns such a difference into another code.
        DataError: the model's data is not known.
    """
    from bitsmith.deploy.runtimes import open_session
    from bitsmith.deploy.verify.outputs import compare_outputs
    from bitsmith.insight.measure import Record
    from bitsmith.model.stream import weight_stream

    session = open_session(artefact, runtime, threads=threads)
    mask = len(session.input_names) > 1
    batches, about = _batches(data, split, samples, batch_size, seed, mask)
    found = compare_outputs(model.eval(), session, batches)
    dynamic = bool(weight_stream(model).dynamic)
    output.heading(f"Outputs in {runtime} against the packed module")
    rows, records, failures = [], [], []
    for index, difference in enumerate(found):
        relative = difference.largest / (difference.magnitude or 1.0)
        holds = relative <= _ROUNDING or dynamic
        cause = "" if relative <= _ROUNDING else "rounding tie" if dynamic else "unexplained"
        rows.append((str(index), f"{difference.largest:.3g}", f"{relative:.2g}", cause))
        own: dict[str, Any] = {**about, "runtime": runtime, "layer": f"output {index}"}
        own |= {"outcome": "holds" if holds else "does not hold", "cause": cause or None}
        records.append(Record(**own, metric="max_difference", value=difference.largest))
        if not holds:
            failures.append(f"output {index} differs by {relative:.2g} of its largest value")
    output.table(["output", ">largest difference", ">of the largest output", "cause"], rows)
    if failures:
        raise CheckFailedError(f"{artefact} does not hold on {runtime}: {'; '.join(failures)}")
    return records


def _batches(
    data: str | None, split: str | None, samples: int, batch_size: int, seed: int, mask: bool
) -> tuple[list[Any], dict[str, Any]]:
    if data is None:
        raise DataError("a file with packed weights does not say what it is for: pass --data")
    if is_text(data):
        rows, told = texts_to_compare(data, split, samples, seed)
        return token_batches(rows, batch_size, mask=mask), told
    chosen = test_split(data_name(data, None), split)
    taken = chosen.batches(batch_size, limit=min(samples, chosen.n), seed=seed)
    about = {"dataset": chosen.dataset, "split": chosen.name, "data_sha256": chosen.sha256}
    return [(x,) for x, _ in taken], about | {"seed": seed}
