"""How good a model of text is: similarity of sentences, and loss per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsmith.data.token_rows import TokenPairs, TokenRows
from bitsmith.errors import DataError
from bitsmith.model.evaluate import evaluating

__all__ = ["ChunkLosses", "chunk_losses", "sentence_scores"]


@final
@dataclass(frozen=True, eq=False)
class ChunkLosses:
    """The loss of a model on each of N texts.

    Attributes:
        sums: negative log-likelihood of the text's tokens after the first, nats, float64 [N].
        counts: how many tokens those are, int64 [N].
    """

    sums: Tensor
    counts: Tensor

    @property
    def mean(self) -> float:
        """Nats per token over all texts."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def tokens(self) -> int:
        """Predicted tokens over all texts."""
        return int(self.counts.sum())


def sentence_scores(
    encode: Callable[[Tensor, Tensor], Any],
    pairs: TokenPairs,
    *,
    batch_size: int = 64,
    length: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the cosine of the two vectors of each pair, float64 [N].

    Args:
        encode: ``(ids, mask)``, int64 [B, T] each, to vectors [B, D], as a tensor or an array. A
            ``torch.nn.Module`` runs in evaluation mode and gets its modes back.
        pairs: both texts of a pair are encoded each for itself, with texts of like length.
        batch_size: texts per call; a call of fewer is filled up only if ``length`` is given.
        length: fills every text up to this number of tokens, and every batch to ``batch_size``,
            for what takes one shape only; None: to the longest in the batch.
        advance: told the number of texts of each batch, 2N in all.

    Raises:
        DataError: outputs that are not one finite vector per text; ``batch_size`` below 1; a
            text longer than ``length``.
    """
    first = _encoded(encode, pairs.first, batch_size, length, advance)
    second = _encoded(encode, pairs.second, batch_size, length, advance)
    return F.cosine_similarity(first, second, dim=1)


def chunk_losses(
    model: Callable[[Tensor], Any],
    rows: TokenRows,
    *,
    batch_tokens: int = 4096,
    advance: Callable[[int], None] | None = None,
) -> ChunkLosses:
    """Return the loss of a causal model on each row: ``−Σ log p(token t + 1 | tokens ≤ t)``.

    Args:
        model: ids int64 [B, T] to logits [B, T, V], as a tensor or an array; a row's logits must
            not depend on what follows, because shorter rows are filled up at their end.
        rows: of at least 2 tokens each.
        batch_tokens: B·T at most, or one row.
        advance: told the number of rows of each batch.

    Raises:
        DataError: rows of 1 token; outputs of another shape; losses that are NaN or infinite.
    """
    short = int((rows.lengths < 2).sum())
    if short:
        raise DataError(f"{short} of {rows.n} rows have 1 token; a loss needs a token to predict")
    sums = torch.zeros(rows.n, dtype=torch.float64)
    size = max(1, batch_tokens // int(rows.lengths.max()))
    with evaluating(model), torch.no_grad():
        for index in rows.groups(size):
            ids, mask = rows.padded(index)
            logits = torch.as_tensor(model(ids)).detach().cpu()
            if logits.shape[:-1] != ids.shape or int(ids.max()) >= logits.shape[-1]:
                raise DataError(
                    f"the model turned token ids {list(ids.shape)} up to {int(ids.max())} into "
                    f"{list(logits.shape)}; logits [batch, tokens, vocabulary] are needed"
                )
            each = F.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            losses = (each.double().view(len(ids), -1) * mask[:, 1:]).sum(1)
            sums[torch.from_numpy(index)] = losses
            if advance is not None:
                advance(len(index))
    bad = int((~torch.isfinite(sums)).sum())
    if bad:
        raise DataError(
            f"the losses of {bad} of {rows.n} rows are NaN or infinite; look for such values in "
            "the model's weights"
        )
    return ChunkLosses(sums, torch.from_numpy(rows.lengths - 1))


def _encoded(
    encode: Callable[[Tensor, Tensor], Any],
    rows: TokenRows,
    batch_size: int,
    length: int | None,
    advance: Callable[[int], None] | None,
) -> Tensor:
    """Return the vectors of all rows, float64 [N, D]."""
    vectors: Tensor | None = None
    with evaluating(encode), torch.no_grad():
        for index in rows.groups(batch_size):
            ids, mask = rows.padded(index, length)
            if length is not None and len(ids) < batch_size:
                more = [*[1] * (len(ids) - 1), batch_size - len(ids) + 1]
                repeats = torch.tensor(more)  # the last row again
                ids, mask = ids.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0)
            out = torch.as_tensor(encode(ids, mask)).detach().cpu().double()
            if out.ndim != 2 or len(out) != len(ids):
                raise DataError(
                    f"the model turned {len(ids)} texts into an output of shape "
                    f"{list(out.shape)}; one vector per text is needed, [batch, width]"
                )
            if vectors is None:
                vectors = torch.zeros(rows.n, out.shape[1], dtype=torch.float64)
            vectors[torch.from_numpy(index)] = out[: len(index)]
            if advance is not None:
                advance(len(index))
    assert vectors is not None  # there is at least one row
    bad = int((~torch.isfinite(vectors)).any(1).sum())
    if bad:
        raise DataError(
            f"the vectors of {bad} of {rows.n} texts are NaN or infinite; look for such values in "
            "the model's weights"
        )
    return vectors
