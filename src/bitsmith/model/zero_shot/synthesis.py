"""Samples out of a network alone: every batch in turn."""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from bitsmith.errors import InputError
from bitsmith.model.evaluate import evaluating
from bitsmith.model.zero_shot.batch_norms import (
    fingerprint,
    recorded_inputs,
    trained_batch_norms,
)
from bitsmith.model.zero_shot.batches import SyntheticBatches
from bitsmith.model.zero_shot.descent import one_batch
from bitsmith.model.zero_shot.plan import Limit, Plan

__all__ = ["synthesize"]


def synthesize(
    model: nn.Module,
    shape: tuple[int, ...] | None = None,
    *,
    samples: int = 256,
    batch_size: int = 128,
    steps: int = 100,
    lr: float = 0.2,
    seed: int = 0,
    smoothness: float = 1.0,
    class_weight: float = 0.1,
    temperature: float = 3.0,
    input_weight: float = 0.05,
    limits: tuple[Limit, Limit] | None = None,
    half: bool = False,
    into: SyntheticBatches | None = None,
    progress: bool = True,
) -> SyntheticBatches:
    """Return samples that move ``model`` as its training data did; no data is needed.

    Each batch minimises, over its samples x (Adam, the learning rate falling along half a cosine)::

        1/L Σ_l mean_c [ ((μ̃ − μ) / σ)² + (σ̃ / σ − 1)² ]         over the L batch norms
        + class_weight · cross_entropy(model(x) / temperature, y)   y: every class as often
        + input_weight · mean_c [ μ̃² + (σ̃ − 1)² ]                  of x itself

    with μ̃, σ̃ per channel c over the batch, at the input of the batch norm, and μ, σ what it
    stores. This is ZeroQ's equation 3 (arXiv:2001.00281), in units of σ so that every channel
    and layer counts alike; its input term takes data normalised to mean 0 and std 1. The class
    term is that of DeepInversion (arXiv:1912.08795, equation 1), which spreads the samples over
    the classes. At temperature 1 it has no gradient left once the network is sure, and features
    spread less than those of data do; on a CIFAR ResNet-20, 3 gave the spread of real images, and
    half the distance of the statistics.

    What is descended upon is the spectrum of x along its spatial axes, divided by
    frequency^smoothness: samples begin as random low frequencies and stay smooth, as images are.

    The same seed, model and number of threads give the same samples; neither the model's
    weights, statistics and modes nor the caller's random state change. Memory holds what one
    batch needs for a training step, and the finished samples.

    Args:
        model: with batch norms that were trained; runs where its parameters are.
        shape: of one sample, without the batch, as in (3, 32, 32).
        samples: how many; they come in batches of nearly the same size.
        batch_size: at most; a larger one shows the statistics better, and takes more memory.
        steps: of descent, for each batch.
        lr: of the first step, in units of the samples.
        seed: of everything drawn.
        smoothness: exponent of the frequency; 0 descends on the samples themselves, as ZeroQ.
        class_weight: 0 for a network whose output is not logits [batch, classes].
        temperature: what logits are divided by in the class term.
        input_weight: 0 where inputs are not normalised.
        limits: least and greatest value that an input can have, numbers or one per channel, as
            ``Normalization(mean, std).limits`` gives them; None is without.
        half: keep finished samples as float16, in half the memory.
        into: batches that a call with the same settings began; only those missing are made.
        progress: show a progress bar, if the standard error stream is a terminal.

    Raises:
        InputError: no batch norms that the model uses, or without stored or trained statistics;
            the shape is unknown, or the model does not take it; a setting out of range; the
            objective is no longer finite; ``into`` was begun with other settings.
        WeightsError: stored statistics are not finite, or a variance is negative.
        KeyboardInterrupt: interrupted; ``into`` has every batch that was finished.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    >>> _ = net(torch.rand(64, 1, 8, 8))  # in training mode: the batch norm takes statistics
    >>> made = synthesize(net, (1, 8, 8), samples=32, steps=30)
    >>> made.samples, made.runs[0].distance < made.runs[0].start_distance / 2
    (32, True)
    """
    norms = trained_batch_norms(model)
    plan = Plan(
        _known_shape(model, shape),
        samples,
        batch_size,
        steps,
        lr,
        seed,
        smoothness,
        class_weight,
        temperature,
        input_weight,
        limits,
        half,
    )
    if faults := list(plan.faults()):
        raise InputError(f"data cannot be synthesised so: {'; '.join(faults)}")
    _probe(model, norms, plan.shape)
    made = SyntheticBatches() if into is None else into
    made.begin(asdict(plan) | {"statistics": fingerprint(norms)})
    count = len(plan.sizes())
    with evaluating(model), recorded_inputs(norms) as inputs, _bar(progress) as bar:
        task = bar.add_task("synthesising", total=count * steps)
        for number in range(len(made), count):
            bar.update(task, completed=number * steps)
            made.add(*one_batch(model, inputs, plan, number, lambda: bar.advance(task)))
    return made


def _known_shape(model: nn.Module, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return ``shape``, or say what the first layer takes where it is not known."""
    if shape is not None:
        return tuple(shape)
    weighted = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | _ConvNd)]
    first = f"; its first layer is {weighted[0][0]} = {weighted[0][1]}" if weighted else ""
    raise InputError(
        f"which shape has a sample of {type(model).__name__}? Weights alone do not say{first}; "
        "pass shape=(channels, height, width), without the batch"
    )


def _probe(model: nn.Module, norms: dict[str, _BatchNorm], shape: tuple[int, ...]) -> None:
    """Run the model once on two samples, before time is spent."""
    weights = next(chain(model.parameters(), model.buffers()))
    blank = torch.zeros((2, *shape), dtype=weights.dtype, device=weights.device)
    with evaluating(model), recorded_inputs(norms) as inputs, torch.no_grad():
        try:
            model(blank)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{type(model).__name__} does not take a batch of samples of shape {list(shape)}: "
                f"{reason}"
            ) from error
    if not inputs:
        raise InputError(
            f"{type(model).__name__} has batch norms, but its forward pass calls none of "
            f"{', '.join(norms)}"
        )


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    disabled = not (progress and console.is_terminal)
    return Progress(*columns, console=console, disable=disabled, transient=True)
