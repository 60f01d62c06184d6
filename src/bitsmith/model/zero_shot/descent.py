"""One batch of noise, changed until the batch norms see what they saw in training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import chain
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitsmith.errors import InputError
from bitsmith.model.zero_shot.batch_norms import stored_statistics
from bitsmith.model.zero_shot.batches import Synthesis
from bitsmith.model.zero_shot.moments import moments
from bitsmith.model.zero_shot.plan import Plan

__all__ = ["one_batch"]


def one_batch(
    model: nn.Module,
    inputs: list[tuple[_BatchNorm, Tensor]],
    plan: Plan,
    number: int,
    advance: Callable[[], None],
) -> tuple[Tensor, Tensor | None, Synthesis]:
    """Return the samples of one batch, the classes they were made for, and how it came out."""
    started = time.perf_counter()
    word = int(np.random.SeedSequence([plan.seed, number]).generate_state(1)[0])
    random = torch.Generator().manual_seed(word)  # on the CPU: the same on every device
    weights = next(chain(model.parameters(), model.buffers()))
    noise = torch.randn((plan.sizes()[number], *plan.shape), generator=random).to(weights.device)
    picture = _Picture(plan, noise)
    noise.requires_grad_()
    descent = torch.optim.Adam([noise], lr=plan.lr, betas=(0.5, 0.9))
    classes: Tensor | None = None
    first = math.nan
    for step in range(plan.steps):
        descent.param_groups[0]["lr"] = plan.lr * (1 + math.cos(math.pi * step / plan.steps)) / 2
        x = picture(noise)
        output, distance = _seen(model, inputs, x.to(weights.dtype))
        objective = distance + plan.input_weight * _own_distance(x)
        if plan.class_weight:
            if classes is None:
                classes = _classes(output, random).to(weights.device)
            surprise = F.cross_entropy(output / plan.temperature, classes)
            objective = objective + plan.class_weight * surprise
        if not math.isfinite(float(objective.detach())):
            raise InputError(
                f"batch {number + 1}: the objective is {float(objective.detach())} at step "
                f"{step + 1}; lower lr ({plan.lr:g})"
            )
        first = float(distance.detach()) if step == 0 else first
        (noise.grad,) = torch.autograd.grad(objective, noise)
        descent.step()
        advance()
    with torch.no_grad():
        x = picture(noise)
        output, distance = _seen(model, inputs, x.to(weights.dtype))
    agreement = confidence = None
    if classes is not None:
        agreement = float((output.argmax(1) == classes).double().mean())
        confidence = float(output.softmax(1).gather(1, classes[:, None]).double().mean())
        classes = classes.cpu()
    run = Synthesis(first, float(distance), agreement, confidence, time.perf_counter() - started)
    return x.to("cpu", torch.float16 if plan.half else torch.float32), classes, run


@final
class _Picture:
    """From the noise that is descended upon to samples [B, …]: smooth, scaled, within limits."""

    def __init__(self, plan: Plan, noise: Tensor) -> None:
        sides = plan.shape[1:]
        self._sides, self._axes = sides, tuple(range(2, 2 + len(sides)))
        squares = torch.zeros(())
        for axis, side in enumerate(sides):
            last = axis == len(sides) - 1
            frequency = torch.fft.rfftfreq(side) if last else torch.fft.fftfreq(side)
            squares = squares.unsqueeze(-1) + frequency.square()
        # The constant part counts as the lowest frequency there is.
        lowest = 1 / max(sides, default=1)
        self._gain = squares.sqrt().clamp(min=lowest).pow(-plan.smoothness).to(noise.device)
        self._low, self._high = (
            torch.tensor(limit, dtype=torch.float32, device=noise.device).reshape(
                -1, *(1,) * len(sides)
            )
            for limit in plan.limits or (-math.inf, math.inf)
        )
        self._scale = 1.0
        self._scale = 1 / float(self._smooth(noise).std())

    def __call__(self, noise: Tensor) -> Tensor:
        x = self._smooth(noise)
        # Within limits in value, but with the gradient of the value before: it can come back.
        return x + (x.clamp(self._low, self._high) - x).detach()

    def _smooth(self, noise: Tensor) -> Tensor:
        if not self._sides:
            return noise * self._scale
        spectrum = torch.fft.rfftn(noise, dim=self._axes) * (self._gain * self._scale)
        smooth: Tensor = torch.fft.irfftn(spectrum, s=self._sides, dim=self._axes)
        return smooth


def _seen(
    model: nn.Module, inputs: list[tuple[_BatchNorm, Tensor]], x: Tensor
) -> tuple[Any, Tensor]:
    """Return the model's output and the mean distance of its batch norms' inputs."""
    inputs.clear()
    output = model(x)
    total = x.new_zeros(())
    for norm, given in inputs:
        stored_mean, stored_std = stored_statistics(norm)
        mean, variance = moments(given)
        drift = (mean - stored_mean) / stored_std
        spread = (variance + norm.eps).sqrt() / stored_std
        total = total + (drift.square() + (spread - 1).square()).mean()
    count = len(inputs)
    inputs.clear()
    return output, total.float() / count


def _own_distance(x: Tensor) -> Tensor:
    mean, variance = moments(x)
    distance: Tensor = mean.square().mean() + ((variance + 1e-8).sqrt() - 1).square().mean()
    return distance


def _classes(output: Any, random: torch.Generator) -> Tensor:
    """Return a class for every sample, each as often as the others, in random order."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        given = f"of shape {list(output.shape)}" if isinstance(output, Tensor) else type(output)
        raise InputError(
            f"the class term needs logits [batch, classes], and the output is {given}; "
            "class_weight=0 leaves the term away"
        )
    # A batch smaller than the number of classes gets some of them, drawn anew in every batch.
    samples, classes = output.shape
    pool = torch.randperm(classes, generator=random).repeat(-(-samples // classes))[:samples]
    return pool[torch.randperm(samples, generator=random)]
