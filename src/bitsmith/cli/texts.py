"""Text data sets: their samples as token batches, and ``bitsmith evaluate`` on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitsmith.cli.output import progress
from bitsmith.cli.tables import amount
from bitsmith.errors import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bitsmith.cli.output import Output
    from bitsmith.data.token_rows import TokenPairs, TokenRows
    from bitsmith.insight.measure import Record
    from bitsmith.insight.subject import Subject
    from bitsmith.insight.text_evaluation import TextEvaluation
    from bitsmith.model.quantized import QuantizedModel
    from bitsmith.zoo import LoadedModel

__all__ = [
    "check_token_inputs",
    "check_tokens",
    "evaluate_texts",
    "is_text",
    "text_split",
    "texts_to_compare",
    "token_batches",
]


def is_text(name: str) -> bool:
    """Return whether ``name`` is a text data set."""
    from bitsmith.data.texts import texts

    return name in texts


def text_split(name: str, split: str | None, limit: int | None) -> TokenRows | TokenPairs:
    """Return the split called ``split``, by default the one that judges, or its first texts."""
    from bitsmith.data.texts import load_text

    dataset = load_text(name)
    found = dataset.split(split or dataset.splits[-1])
    return found if limit is None else found.take(range(min(limit, found.n)))


def texts_to_compare(
    name: str, split: str | None, samples: int, seed: int
) -> tuple[TokenRows, dict[str, Any]]:
    """Return at most ``samples`` texts drawn at random, and what records say of them.

    Of pairs the first texts are taken.
    """
    from bitsmith.data.token_rows import TokenPairs

    found = text_split(name, split, None)
    rows = found.first if isinstance(found, TokenPairs) else found
    about = {"dataset": name, "split": found.name, "data_sha256": found.sha256, "seed": seed}
    return rows.sample(min(samples, rows.n), seed=seed), about


def token_batches(rows: TokenRows, batch_size: int, *, mask: bool) -> list[tuple[Tensor, ...]]:
    """Return all rows as ``(ids, mask)`` or ``(ids,)``, int64 [B, T] each, by length."""
    batches = [rows.padded(group) for group in rows.groups(batch_size)]
    return [(ids, ones) if mask else (ids,) for ids, ones in batches]


def check_tokens(model: LoadedModel, dataset: str) -> None:
    """Refuse a text data set whose tokens are not those of a zoo model.

    Raises:
        InputError: the model is for other data.
    """
    if model.dataset not in (None, dataset):
        raise InputError(
            f"text data set {dataset!r} has the tokens of another model; {model.name!r} is for "
            f"{model.dataset!r}"
        )


def check_token_inputs(model: QuantizedModel, dataset: str) -> None:
    """Refuse a text data set that a quantized model was not captured for.

    Raises:
        DataError: the model takes no token ids (and their mask), or ids of another vocabulary.
    """
    inputs = model.program.graph.inputs
    if len(inputs) > 2 or any(i.dtype not in ("int64", "bool") for i in inputs):
        takes = ", ".join(f"{i.name} ({i.dtype} {list(i.shape)})" for i in inputs)
        raise DataError(
            f"text data set {dataset!r} has token ids and their mask; the model takes {takes}: "
            "pass the data set it was calibrated on"
        )
    known = model.provenance.get("dataset", dataset)
    if is_text(known) and known != dataset:
        raise DataError(
            f"text data set {dataset!r} has the tokens of another model; this one was calibrated "
            f"on {known!r}"
        )


def evaluate_texts(
    output: Output,
    found: list[Subject | LoadedModel],
    samples: TokenRows | TokenPairs,
    runtime: str | None,
) -> list[Record]:
    """Print and return Spearman or loss of the first, and its difference to the second.

    Raises:
        InputError: a zoo model is for other data, or a runtime was asked for that runs no MODEL
            of text.
    """
    from bitsmith.insight.records import described_keys
    from bitsmith.insight.text_evaluation import text_difference, text_records

    subjects = [_ready(f, samples.dataset, runtime) for f in found]
    results = [_measure(s, samples) for s in subjects]
    against = text_difference(results[0], results[1]) if len(results) == 2 else None
    _table(output, results, against)
    about = {
        "dataset": samples.dataset,
        "split": samples.name,
        "data_sha256": samples.sha256,
    }
    keys: list[dict[str, Any]] = []
    for subject in subjects:
        bits = {"weight_bits": 32, "activation_bits": 32} if subject.method == "float" else {}
        keys.append({"model": subject.name} | bits | described_keys(subject.described) | about)
    records = text_records(results[0], keys[0], against, results[-1])
    return records + (text_records(results[1], keys[1]) if len(results) == 2 else [])


def _ready(found: Subject | LoadedModel, dataset: str, runtime: str | None) -> Subject:
    from bitsmith.insight.subject import Subject
    from bitsmith.zoo import LoadedModel

    if not isinstance(found, LoadedModel):
        return found
    check_tokens(found, dataset)
    if runtime not in (None, "torch"):
        raise InputError(
            f"--runtime {runtime}: a MODEL of text runs in torch; export it, and evaluate the file"
        )
    state = found.module.state_dict(keep_vars=True).values()
    size = sum(t.numel() * t.element_size() for t in {id(t): t for t in state}.values())
    return Subject(found.name, found.module, "torch", "float", size)


def _measure(subject: Subject, samples: TokenRows | TokenPairs) -> TextEvaluation:
    from bitsmith.data.token_rows import TokenPairs
    from bitsmith.insight.text_evaluation import evaluate_text

    texts = 2 * samples.n if isinstance(samples, TokenPairs) else samples.n
    with progress(subject.name, texts) as advance:
        return evaluate_text(
            subject.name,
            subject.call,
            samples,
            runtime=subject.runtime,
            method=subject.method,
            bytes=subject.bytes,
            advance=advance,
        )


def _table(
    output: Output,
    results: list[TextEvaluation],
    against: tuple[float, float, float] | None,
) -> None:
    pairs = results[0].metric == "spearman"
    figure = ">Spearman × 100" if pairs else ">loss, nats per token"
    digits = 2 if pairs else 4
    output.heading("Evaluation")
    output.table(
        ["model", "runtime", figure, ">pairs" if pairs else ">tokens", ">size"],
        [
            (r.name, r.runtime, f"{r.value:.{digits}f}", f"{r.n:,}", amount(r.bytes))
            for r in results
        ],
    )
    if against is not None:
        delta, low, high = (f"{value:+.{digits}f}" for value in against)
        output.line(f"difference {delta}, 95 % interval [{low}, {high}] (paired bootstrap)")
