"""How much the loss feels each weight: squared gradients, gathered sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.errors import DataError
from bitsmith.model.blocks import evaluating
from bitsmith.numbers.statistics import Fisher

__all__ = ["squared_gradients"]


def squared_gradients(
    model: nn.Module,
    weights: Sequence[str],
    data: Iterable[Any],
    *,
    seed: int = 0,
    unreached: Literal["error", "omit"] = "error",
    advance: Callable[[int], None] | None = None,
) -> dict[str, Fisher]:
    """Return parameter name → squared gradients of the loss with respect to each of its values.

    The loss of a sample is the cross-entropy of its logits, the mean over its positions. With
    labels the result is the empirical Fisher information; without, the labels are drawn from the
    model's own predictions, which gives an estimate of the Fisher information itself:
    ``E_x E_{y ~ p(y|x)} [∂ log p(y|x) / ∂w]²``. (Where a network fits its training labels
    perfectly, their gradients vanish; those of its own predictions tell the weights apart.)

    The model runs in evaluation mode and is left as it was, its ``.grad`` included. Memory: the
    gradients of one sample at a time, and float64 sums of the listed weights.

    Args:
        model: gives logits ``[1, classes]``, ``[1, positions, classes]`` (or anything with such
            a ``logits``, or a tuple that begins with them) for one sample.
        weights: names of parameters, for example ``layer1.0.conv1.weight``.
        data: batches x or (x, y), x a tensor or a dict of keyword arguments, ``[samples, …]``; y
            integer labels ``[samples]`` or ``[samples, positions]``, −100 where there is none.
        seed: of the drawn labels.
        unreached: weights that the loss does not depend on are an error, or left out.
        advance: told the samples of each batch.

    Raises:
        DataError: no weights or no data, names that are no parameters, labels that do not fit the
            logits, gradients that are not finite.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> batch = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
    >>> seen = squared_gradients(layer, ["weight"], [batch])
    >>> seen["weight"].mean_square.tolist()  # (p − 1)·x for the label, p·x for the other, p = ½
    [[0.25, 1.0], [0.25, 1.0]]
    """
    wanted = _parameters(model, weights)
    found = {name: Fisher() for name in wanted}
    generator = torch.Generator().manual_seed(seed)
    samples = 0
    with _prepared(model, wanted):
        for batch in data:
            before = samples
            for x, y in _samples(batch):
                logits = _logits(model(**x) if isinstance(x, dict) else model(x))
                loss = _loss(logits, _drawn(logits, generator) if y is None else y)
                gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
                _add(found, gradients, omit=unreached == "omit")
                samples += 1
            if advance is not None:
                advance(samples - before)
    if not samples:
        raise DataError("squared gradients need data: the batches held no sample")
    return {name: fisher for name, fisher in found.items() if not fisher.empty}


def _parameters(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    known = dict(model.named_parameters(remove_duplicate=False))
    if isinstance(names, str) or not names:
        raise DataError(f"weights is a list of names of parameters, not {names!r}")
    if unknown := [n for n in names if n not in known]:
        raise DataError(
            f"{type(model).__name__} has no parameters {', '.join(unknown)}; it has "
            f"{', '.join(list(known)[:8])}{' …' if len(known) > 8 else ''}"
        )
    return {name: known[name] for name in names}


@contextmanager
def _prepared(model: nn.Module, wanted: dict[str, nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, with gradients of the listed parameters; as it was afterwards."""
    frozen = [p for p in wanted.values() if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _samples(batch: Any) -> Iterator[tuple[Any, Tensor | None]]:
    """Give each sample of a batch as a batch of one, with its labels."""
    x, y = batch, None
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        x, y = batch[0], batch[1] if len(batch) == 2 else None
    parts = x if isinstance(x, dict) else {"x": x}
    sizes = {len(v) if isinstance(v, Tensor) and v.dim() else -1 for v in parts.values()}
    if y is not None:
        good = isinstance(y, Tensor) and y.dim() and not y.is_floating_point()
        sizes.add(len(y) if good else -1)
    if len(sizes) != 1 or -1 in sizes:
        raise DataError(
            "a batch is x or (x, y), with x a tensor or a dict of tensors and y integer labels, "
            "all of as many samples"
        )
    for i in range(sizes.pop()):
        one = {k: v[i : i + 1] for k, v in parts.items()}
        yield (one if isinstance(x, dict) else one["x"]), None if y is None else y[i : i + 1]


def _logits(output: Any) -> Tensor:
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple | list) and len(output) else output
    if not isinstance(output, Tensor) or output.dim() < 2:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"a cross-entropy needs logits [samples, …, classes], not {shape}")
    return output.flatten(0, -2)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.reshape(-1).to(torch.int64)
    bad = (labels >= logits.shape[1]) | ((labels < 0) & (labels != -100))
    if len(labels) != len(logits) or bool(bad.any()):
        raise DataError(
            f"labels {labels.tolist()[:8]} do not fit logits of {len(logits)} positions and "
            f"{logits.shape[1]} classes: each is 0 … {logits.shape[1] - 1}, or −100 for none"
        )
    total = functional.cross_entropy(logits, labels, reduction="sum")
    return total / max(1, int((labels != -100).sum()))


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    probabilities = torch.softmax(logits.detach().double(), 1).cpu()
    if not bool(torch.isfinite(probabilities).all()):
        raise DataError("the model's logits are NaN or infinite: no labels can be drawn from them")
    return torch.multinomial(probabilities, 1, generator=generator).to(logits.device)


def _add(found: dict[str, Fisher], gradients: Sequence[Tensor | None], *, omit: bool) -> None:
    for (name, fisher), gradient in zip(found.items(), gradients, strict=True):
        if gradient is None and omit:
            continue
        if gradient is None:
            raise DataError(f"the loss does not depend on {name}: no gradient reaches it")
        try:
            fisher.update(gradient.unsqueeze(0))
        except DataError as error:
            raise DataError(f"the gradient of {name}: {error}") from error
