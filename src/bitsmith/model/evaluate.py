"""Run a model over batches and see which samples it gets right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from bitsmith.errors import DataError

__all__ = ["accuracy", "correct", "predict"]


def predict(
    model: Callable[..., Any],
    batches: Iterable[Any],
    *,
    progress: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return ``(logits [N, …], labels [N] or None)`` of ``model`` over ``batches``.

    Batches are taken one at a time and only the outputs are kept, so memory does not grow with
    the size of the samples. A ``torch.nn.Module`` runs in evaluation mode without gradients and
    gets its modes back; any other callable (a quantized simulation, a runtime's session) is
    called as it is and may return a tensor or a numpy array.

    Args:
        model: a callable from a batch x [B, …] to logits [B, …].
        batches: ``(x, y)``, ``(x, None)``, ``(x,)`` or ``x`` each; a model of several inputs
            has a tuple of them in the place of x, as in ``((ids, mask), y)``.
        progress: whether to draw a progress bar on standard error.

    Raises:
        DataError: no batches; an output that is not one row per sample; labels that are not one
            per sample; labels in some batches and not in others.

    >>> logits, labels = predict(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
    >>> correct(logits, labels).tolist()
    [True, False]
    """
    outputs: list[Tensor] = []
    labels: list[Tensor] = []
    with _evaluating(model), torch.no_grad():
        for number, batch in enumerate(_tracked(batches) if progress else batches):
            inputs, y = _samples_and_label(batch, number)
            output = torch.as_tensor(model(*inputs)).detach().cpu()
            if output.ndim == 0 or len(output) != len(inputs[0]):
                raise DataError(
                    f"batch {number}: the model turned {len(inputs[0])} samples into an output of "
                    f"shape {tuple(output.shape)}; the first axis must be the samples"
                )
            outputs.append(output)
            if y is not None:
                labels.append(y)
    if not outputs:
        raise DataError("there are no batches to run the model on; an iterator may be used up")
    if not labels:
        return torch.cat(outputs), None
    if len(labels) != len(outputs):
        raise DataError(
            f"{len(labels)} of {len(outputs)} batches have labels; all or none must have them"
        )
    return torch.cat(outputs), torch.cat(labels)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return for each sample whether its largest logit is at its label, bool [N].

    Of equal logits the first counts.

    Args:
        logits: [N, classes].
        labels: class indices [N].

    Raises:
        DataError: shapes that do not fit, labels outside the classes, or logits that are NaN or
            infinite.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"logits are [samples, classes] and labels [samples], not {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        seen = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "no labels"
        raise DataError(f"labels are 0 to {logits.shape[1] - 1}, but there are {seen}")
    bad = int((~torch.isfinite(logits)).any(1).sum())
    if bad:
        raise DataError(
            f"the logits of {bad} of {len(logits)} samples are NaN or infinite; look for such "
            "values in the weights or the data"
        )
    return logits.argmax(1) == labels


def accuracy(model: Callable[[Tensor], Any], batches: Iterable[Any]) -> float:
    """Return the share of samples whose largest logit is at their label, in per cent.

    Raises:
        DataError: as :func:`predict` and :func:`correct`; or the batches have no labels.
    """
    logits, labels = predict(model, batches)
    if labels is None:
        raise DataError("accuracy needs labels, and the batches have none")
    return 100 * float(correct(logits, labels).double().mean())


def _samples_and_label(batch: Any, number: int) -> tuple[list[Tensor], Tensor | None]:
    """Return ``(inputs, y or None)`` of one batch in any of its forms."""
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if not 1 <= len(parts) <= 2:
        raise DataError(f"batch {number} has {len(parts)} parts; a batch is x or (x, y)")
    several = isinstance(parts[0], tuple | list) and len(parts[0]) > 0
    several = several and all(isinstance(p, Tensor) for p in parts[0])
    inputs = [torch.as_tensor(p) for p in (parts[0] if several else parts[:1])]
    if len(parts) == 1 or parts[1] is None:
        return inputs, None
    y = torch.as_tensor(parts[1]).cpu()
    if y.ndim == 0 or len(y) != len(inputs[0]):
        raise DataError(
            f"batch {number} has {len(inputs[0])} samples and labels of shape {tuple(y.shape)}; "
            "there must be one label per sample"
        )
    return inputs, y


@contextmanager
def _evaluating(model: object) -> Iterator[None]:
    """Put a module and what it contains in evaluation mode, and restore each mode after."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _tracked(batches: Iterable[Any]) -> Iterable[Any]:
    """Return ``batches`` with a progress bar, which shows a total where there is one."""
    total = len(cast(Sized, batches)) if isinstance(batches, Sized) else None
    console = Console(stderr=True)
    return track(batches, "evaluating", total=total, console=console, transient=True)
