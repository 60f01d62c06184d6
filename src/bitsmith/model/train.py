"""The training loop: plain, deterministic, for float networks and for quantization-aware ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from bitsmith.data.training import check_training_data
from bitsmith.errors import DataError, InputError
from bitsmith.model.checkpoint import (
    Checkpoint,
    data_fingerprint,
    load_into,
    read_checkpoint,
    snapshot,
    write_checkpoint,
)
from bitsmith.model.divergence import DivergedError, first_not_finite, not_finite
from bitsmith.model.frozen_norms import frozen_names
from bitsmith.model.schedule import cosine, make_optimizer

__all__ = ["Batches", "Epoch", "TrainingRun", "fit"]

Batch = tuple[Tensor, Tensor]
#: Batches ``(x, y)``: for each epoch from a function of its index, or the same ones every epoch.
Batches = Callable[[int], Iterable[Batch]] | Iterable[Batch]
Loss = Callable[[Tensor, Tensor], Tensor]
Progressed = Callable[[], None]
Explain = Callable[[nn.Module, Tensor, Tensor], str]


@final
@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data gave."""

    index: int
    lr: float
    """Learning rate of its first step."""
    loss: float
    """Mean over the samples, in training mode, while the weights were changing."""
    samples: int
    valid_loss: float | None
    """Mean loss over the samples of ``valid`` after the epoch, in evaluation mode."""
    valid_accuracy: float | None
    """In percent; None unless the targets are class indices."""
    seconds: float = field(compare=False)


@final
@dataclass(frozen=True)
class TrainingRun:
    """The record of one call of :func:`fit`."""

    history: tuple[Epoch, ...]


def fit(
    module: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    lr: float = 0.05,
    optimizer: Literal["sgd", "adamw"] | torch.optim.Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    valid: Batches | None = None,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    on_step: Callable[[nn.Module], None] | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    explain: Explain = first_not_finite,
    progress: bool = True,
) -> TrainingRun:
    """Train ``module`` in place, leave it in evaluation mode, and return the losses.

    The learning rate falls along half a cosine, ``lr · (1 + cos(π t)) / 2`` with t the share of
    all steps that are done (arXiv:1608.03983, equation 5, one cycle). Where the number of
    batches cannot be known in advance, it is taken from the epoch before. Weight decay applies
    to tensors with two or more axes, not to biases, batch norms and quantization scales.

    The same seed, data and number of threads give the same weights; the caller's random state
    is left as it was. ``batches`` is asked for its data under that seed too.

    Args:
        module: trained on the device where it is; parameters with ``requires_grad=False`` stay.
        batches: pairs ``(x, y)``, or a function of the epoch's index that returns them.
        epochs: passes over the data, at least 1.
        lr: learning rate of the first step.
        optimizer: ``"sgd"`` (with ``momentum``), ``"adamw"``, or one of PyTorch's own, whose
            groups keep their proportions: the rate of each falls from where it is.
        momentum: of ``"sgd"``.
        weight_decay: of the tensors with two or more axes.
        loss: ``(output, y)`` → scalar, a mean over the batch.
        seed: of everything random: dropout, stochastic rounding, shuffling by ``batches``.
        valid: batches to measure after each epoch.
        on_epoch: called with the epoch's index and the module, in training mode, before its
            first batch; for example to freeze batch norms.
        on_step: called with the module after every step of the optimizer; for example to keep a
            moving average of its weights.
        checkpoint: a file that holds the state after every epoch. One that exists is gone on
            from, and gives bit for bit what an unbroken run gives.
        fingerprint: plain data that a checkpoint must agree with, beside the settings here and
            what can be known of ``batches``.
        explain: ``(module, x, y)`` of a batch whose loss is not finite → what went wrong first.
        progress: show a progress bar, if the standard error stream is a terminal.

    Raises:
        DataError: no batches, or an iterator that can be read only once for several epochs.
        InputError: a setting out of range, nothing to train, or a checkpoint of another run.
        DivergedError: the loss or a weight is no longer finite; what went wrong first is named, and
            the module has its state from the last good epoch.

    >>> x = torch.tensor([[-1.0], [1.0]] * 8)
    >>> net = nn.Linear(1, 2)
    >>> run = fit(net, [(x, (x[:, 0] > 0).long())], epochs=20, lr=0.5)
    >>> run.history[-1].loss < 0.1
    True
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"{type(module).__name__} is no torch.nn.Module; give its .module, if any")
    check_training_data(batches)
    _check(batches, epochs, lr)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(f"{type(module).__name__} has no parameter that requires a gradient")
    descent = make_optimizer(parameters, optimizer, lr, momentum, weight_decay)
    peaks = [float(group["lr"]) for group in descent.param_groups]
    settings = {"epochs": epochs, "rates": peaks, "seed": seed, "optimizer": type(descent).__name__}
    file = None if checkpoint is None else Path(checkpoint)
    known = {} if file is None else data_fingerprint(batches)
    run = {**settings, **known, **(fingerprint or {})}
    history: list[Epoch] = []
    good = snapshot(module)
    steps: int | None = None
    with torch.random.fork_rng(_cuda(parameters)), _bar(progress) as bar:
        torch.manual_seed(seed)
        task = bar.add_task("training", total=None)
        found = None if file is None else read_checkpoint(file, run)
        if found is not None:
            load_into(module, descent, found)
            history, steps = [Epoch(**e) for e in found.history], found.steps
            good = snapshot(module)
            bar.advance(task, found.epochs * (steps or 0))
        try:
            for index in range(len(history), epochs):
                started = time.perf_counter()
                module.train()
                if on_epoch is not None:
                    on_epoch(index, module)
                data = _open(batches, index)
                steps = (0 if isinstance(data, Iterator) else length_hint(data)) or steps
                bar.update(task, total=None if steps is None else steps * epochs)
                rates = cosine(1.0, index, epochs, steps)

                def done() -> None:
                    bar.advance(task)
                    if on_step is not None:
                        on_step(module)

                mean, count, steps = _pass(
                    module, data, descent, peaks, rates, loss, index, done, explain
                )
                if bad := not_finite(module):
                    raise DivergedError(f"not finite after epoch {index + 1}: {', '.join(bad)}")
                good = snapshot(module)
                valid_loss = valid_accuracy = None
                if valid is not None:
                    valid_loss, valid_accuracy = _measure(module, valid, loss, index)
                first = peaks[0] * next(cosine(1.0, index, epochs, steps))
                seconds = time.perf_counter() - started
                history.append(
                    Epoch(index, first, mean, count, valid_loss, valid_accuracy, seconds)
                )
                bar.update(task, description=f"epoch {index + 1}/{epochs} loss {mean:.4f}")
                if file is not None:
                    state = (snapshot(module), descent.state_dict(), torch.get_rng_state())
                    rest = [vars(e) for e in history], steps, frozen_names(module)
                    write_checkpoint(file, Checkpoint(run, index + 1, *state, *rest))
        except DivergedError as error:
            module.load_state_dict(good)
            when = f"the end of epoch {len(history)}" if history else "before training"
            raise DivergedError(
                f"{error}; the module has its state from {when}; lower the learning rate "
                f"({', '.join(f'{p:g}' for p in peaks)}) or look for extreme values in the data"
            ) from None
        except KeyboardInterrupt:
            module.load_state_dict(good)
            raise
        finally:
            module.eval()
    return TrainingRun(tuple(history))


def _check(batches: Batches, epochs: int, lr: float) -> None:
    if epochs < 1:
        raise InputError(f"epochs must be at least 1, not {epochs}")
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr must be positive and finite, not {lr}")
    if isinstance(batches, Tensor):
        raise DataError("a tensor is no batches: zip pairs (x, y) of its splits")
    if epochs > 1 and not callable(batches) and isinstance(batches, Iterator):
        raise DataError(
            f"{type(batches).__name__} can be read only once, but {epochs} epochs were asked for; "
            "pass a list, a DataLoader, or a function of the epoch"
        )


def _pass(
    module: nn.Module,
    data: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    peaks: list[float],
    rates: Iterator[float],
    loss: Loss,
    epoch: int,
    advance: Progressed,
    explain: Explain,
) -> tuple[float, int, int]:
    """Train on ``data`` once; return the mean loss, the number of samples and of batches."""
    device = _device(module)
    total, samples, step = 0.0, 0, 0
    for step, (x, y) in enumerate(data, start=1):
        rate = next(rates)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate
        optimizer.zero_grad(set_to_none=True)
        x, y = x.to(device), y.to(device)
        value = loss(module(x), y)
        number = float(value.detach())
        if not math.isfinite(number):
            first = explain(module, x, y)
            raise DivergedError(f"the loss is {number} at epoch {epoch + 1}, step {step}: {first}")
        value.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        optimizer.step()
        total, samples = total + number * len(x), samples + len(x)
        advance()
    if not samples:
        raise DataError(f"epoch {epoch + 1}: no training batches; is the data set empty?")
    return total / samples, samples, step


def _measure(
    module: nn.Module, valid: Batches, loss: Loss, epoch: int
) -> tuple[float, float | None]:
    """Return the mean loss and, where targets are class indices, the accuracy in percent."""
    device = _device(module)
    total, right, samples, classes = 0.0, 0, 0, True
    module.eval()
    with torch.no_grad():
        for x, y in _open(valid, epoch):
            output, y = module(x.to(device)), y.to(device)
            total, samples = total + float(loss(output, y)) * len(x), samples + len(x)
            classes = classes and output.dim() == 2 and y.dim() == 1 and y.dtype == torch.int64
            if classes:
                right += int((output.argmax(1) == y).sum())
    if not samples:
        raise DataError("no validation batches; is the data set empty, or an iterator used up?")
    return total / samples, 100.0 * right / samples if classes else None


def _open(batches: Batches, epoch: int) -> Iterable[Batch]:
    # A data set class may define __call__ for other ends: what can be iterated is iterated.
    return batches if isinstance(batches, Iterable) else batches(epoch)


def _device(module: nn.Module) -> torch.device:
    first = next(chain(module.parameters(), module.buffers()))
    return first.device


def _cuda(parameters: Iterable[Tensor]) -> list[int]:
    return sorted({p.device.index for p in parameters if p.device.type == "cuda"})


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (progress and console.is_terminal),
        transient=True,
    )
