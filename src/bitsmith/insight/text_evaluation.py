"""One model on one split of a text data set: Spearman on pairs, loss on running text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.errors import DataError
from bitsmith.insight.bootstrap import loss_difference, spearman, spearman_difference
from bitsmith.insight.language import chunk_losses, sentence_scores
from bitsmith.insight.measure import Record

__all__ = ["TextEvaluation", "evaluate_text", "text_difference", "text_records"]


@final
@dataclass(frozen=True, eq=False)
class TextEvaluation:
    """What one model gave on one split.

    Attributes:
        name: of the model or file.
        runtime: what executed it.
        method: ``float``, ``ptq`` … as in a record; None where it is not known.
        metric: ``spearman`` (times 100) or ``loss`` (nats per token).
        value: of the metric.
        n: pairs, or predicted tokens.
        each: what the model gave each pair (cosine) or text (summed loss), float64 [N].
        truth: the score of each pair, or the predicted tokens of each text, [N].
        bytes: of the file; None where there is none.
    """

    name: str
    runtime: str
    method: str | None
    metric: Literal["spearman", "loss"]
    value: float
    n: int
    each: Tensor
    truth: Tensor
    bytes: int | None


def evaluate_text(
    name: str,
    call: Callable[[Tensor], Any],
    split: TokenRows | TokenPairs,
    *,
    runtime: str,
    method: str | None = None,
    bytes: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> TextEvaluation:
    """Run a model over a split: pairs of texts give ``spearman``, running text gives ``loss``.

    Args:
        name, runtime, method, bytes: kept as they are.
        call: token ids int64 [B, T], filled up with id 0, to vectors [B, D] (pairs) or logits
            [B, T, V] (running text).
        split: what it is judged on.
        advance: told the number of texts of each batch.

    Raises:
        DataError: as :func:`~bitsmith.insight.language.sentence_scores` and
            :func:`~bitsmith.insight.language.chunk_losses`.
    """
    if isinstance(split, TokenPairs):
        model: Any = call
        takes_mask = len(getattr(call, "input_names", ())) == 2  # a file's session

        def encode(ids: Tensor, mask: Tensor) -> Any:
            return model(ids, mask) if takes_mask else model(ids)

        scores = sentence_scores(encode, split, advance=advance)
        truth = torch.from_numpy(split.scores)
        value = spearman(scores, truth)
        return TextEvaluation(
            name, runtime, method, "spearman", value, split.n, scores, truth, bytes
        )
    found = chunk_losses(call, split, advance=advance)
    return TextEvaluation(
        name, runtime, method, "loss", found.mean, found.tokens, found.sums, found.counts, bytes
    )


def text_difference(
    subject: TextEvaluation, reference: TextEvaluation, *, seed: int = 0
) -> tuple[float, float, float]:
    """Return ``subject − reference`` in the metric and its 95 % interval (paired bootstrap).

    Raises:
        DataError: the two did not see the same texts.
    """
    if subject.metric != reference.metric or not torch.equal(subject.truth, reference.truth):
        raise DataError(
            f"{subject.name} ({subject.metric} on {subject.n:,}) and {reference.name} "
            f"({reference.metric} on {reference.n:,}) did not see the same texts"
        )
    compare = spearman_difference if subject.metric == "spearman" else loss_difference
    return compare(subject.each, reference.each, subject.truth, seed=seed)


def text_records(
    subject: TextEvaluation,
    keys: Mapping[str, Any],
    against: tuple[float, float, float] | None = None,
    reference: TextEvaluation | None = None,
) -> list[Record]:
    """Return one record: the metric, with the paired difference if there is a reference."""
    fields: dict[str, Any] = {
        **keys,
        "runtime": subject.runtime,
        "method": subject.method,
        "bytes": subject.bytes,
        "metric": subject.metric,
        "value": subject.value,
        "n": subject.n,
    }
    if against is not None and reference is not None:
        fields |= dict(zip(("delta", "delta_low", "delta_high"), against, strict=True))
        fields["reference"] = reference.value
    return [Record(**fields)]
