"""Compare the outputs of a file with those of the module it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from bitsmith.deploy.runtimes import Session
from bitsmith.deploy.verify.compare import Difference
from bitsmith.errors import DataError

__all__ = ["compare_outputs"]


@torch.no_grad()
def compare_outputs(
    model: nn.Module, session: Session, batches: Iterable[Tensor | Sequence[Tensor]]
) -> list[Difference]:
    """Return, for every output in order, how the runtime's differ from the module's.

    Sums of products are added in another order by every kernel, so floats are equal up to
    rounding: ``largest / magnitude`` of about 1e-6. A network that rounds again in between (dynamic
    quantization) may take the other of two codes where a value lies between them.

    Args:
        model: in evaluation mode; its outputs are one tensor or a sequence of them.
        session: of the file.
        batches: positional inputs of both; a bare tensor is one batch.

    Raises:
        DataError: there is no batch, or the outputs differ in number or shape.
    """
    found: list[Difference] = []
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch)
        result = model(*inputs)
        ours = [result] if isinstance(result, Tensor) else list(result)
        theirs = session.run(*inputs)
        shapes = [[tuple(t.shape) for t in side] for side in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise DataError(f"the module gives outputs of shape {shapes[0]}, the file {shapes[1]}")
        found = found or [Difference() for _ in ours]
        for difference, one, other in zip(found, ours, theirs, strict=True):
            difference.add(one, other)
    if not found:
        raise DataError("there is no batch to compare on")
    return found
