"""Run a model over batches and see which samples it gets right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from bitsmith.errors import DataError

__all__ = ["Inputs", "accuracy", "correct", "evaluating", "inputs_and_labels", "predict"]


@final
@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model is called with for one batch: one row a sample in every tensor.

    Attributes:
        given: the tensors that the model takes by position.
        named: those it takes by name.
    """

    given: tuple[Tensor, ...]
    named: dict[str, Tensor]

    def __len__(self) -> int:
        """Samples."""
        return len(self._all[0])

    def of_size(self, n: int) -> Inputs:
        """Return ``n`` samples: the first ones, over again where there are fewer."""
        index = torch.arange(n) % len(self)
        return Inputs(
            tuple(x[index.to(x.device)] for x in self.given),
            {name: x[index.to(x.device)] for name, x in self.named.items()},
        )

    def call(self, model: Callable[..., Any]) -> Any:
        """Return the output of ``model``."""
        return model(*self.given, **self.named)

    @property
    def _all(self) -> list[Tensor]:
        return [*self.given, *self.named.values()]


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
            has a tuple of them in the place of x, as in ``((ids, mask), y)``, or a dictionary of
            them by the names of its arguments.
        progress: whether to draw a progress bar on standard error.

    Raises:
        DataError: no batches; inputs, outputs or labels that are not one row per sample; labels
            in some batches and not in others.

    >>> logits, labels = predict(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
    >>> correct(logits, labels).tolist()
    [True, False]
    """
    outputs: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        for number, batch in enumerate(_tracked(batches) if progress else batches):
            inputs, y = inputs_and_labels(batch, number)
            output = torch.as_tensor(inputs.call(model)).detach().cpu()
            if output.ndim == 0 or len(output) != len(inputs):
                raise DataError(
                    f"batch {number}: the model turned {len(inputs)} samples into an output of "
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


def inputs_and_labels(batch: Any, number: int) -> tuple[Inputs, Tensor | None]:
    """Return the inputs of one batch in any of its forms, and its labels [N] or None.

    Args:
        batch: see :func:`predict`.
        number: of the batch, for messages.

    Raises:
        DataError: more parts than two; no inputs; inputs or labels that are not one row per sample.

    >>> ids, mask, y = torch.ones(2, 5), torch.ones(2, 5), torch.tensor([0, 1])
    >>> [len(inputs_and_labels(x, 0)[0]) for x in (ids, (ids, y), ((ids, mask), y), {"ids": ids})]
    [2, 2, 2, 2]
    """
    parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if not 1 <= len(parts) <= 2:
        raise DataError(
            f"batch {number} has {len(parts)} parts; a batch is x or (x, y), and several inputs "
            "are a tuple or a dictionary in the place of x"
        )
    inputs = _inputs(parts[0], number)
    if len(parts) == 1 or parts[1] is None:
        return inputs, None
    y = torch.as_tensor(parts[1]).cpu()
    if y.ndim == 0 or len(y) != len(inputs):
        raise DataError(
            f"batch {number} has {len(inputs)} samples and labels of shape {tuple(y.shape)}; "
            "there must be one label per sample"
        )
    return inputs, y


def _inputs(x: Any, number: int) -> Inputs:
    """Return what stands in the place of x, after checking that it has a row per sample."""
    several = isinstance(x, tuple | list) and len(x) > 0
    several = several and all(isinstance(part, Tensor | np.ndarray) for part in x)
    named = {str(k): torch.as_tensor(v) for k, v in x.items()} if isinstance(x, Mapping) else {}
    given = () if isinstance(x, Mapping) else tuple(map(torch.as_tensor, x if several else (x,)))
    shapes = [tuple(part.shape) for part in (*given, *named.values())]
    if not shapes or () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise DataError(
            f"batch {number} has inputs of shape {', '.join(map(str, shapes)) or 'nothing'}; "
            "each must have one row per sample"
        )
    return Inputs(given, named)


@contextmanager
def evaluating(model: object) -> Iterator[None]:
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
