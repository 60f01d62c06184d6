"""One weight under three rules of quantization-aware training, computed by their own gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.numbers.affine import fake_quantize
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import gradient_factor, learned_step, pact, scaled_gradient

__all__ = ["RULES", "Problem", "Rule", "Step", "slopes", "train"]


@final
@dataclass(frozen=True)
class Problem:
    """A neuron of one weight, ``output = q(w) · x``, that shall give ``target``.

    Attributes:
        bits: of the weight's code.
        scale: one step of the code, at the start.
        lr: learning rate, of plain gradient descent.
        x: input.
        target: what the output should be; the loss is the squared difference.
        start: float weight at first.
    """

    bits: int
    scale: float
    lr: float
    x: float
    target: float
    start: float


@final
@dataclass(frozen=True)
class Step:
    """The state before one update.

    Attributes:
        weight: float.
        learned: the scale of LSQ, α of PACT; None where it does not train.
        quantized: the weight that calculates.
        code: of it, a whole number of steps.
        output, loss: of it.
        gradient: of the loss, for the float weight.
        learned_gradient: for what is learned beside it.
    """

    weight: float
    learned: float | None
    quantized: float
    code: int
    output: float
    loss: float
    gradient: float
    learned_gradient: float | None


class Rule(ABC):
    """How a weight is quantized, and with which gradients."""

    name: ClassVar[str]
    learns: ClassVar[str | None]

    @abstractmethod
    def first(self, problem: Problem) -> float | None:
        """Return where what is learned beside the weight starts; None: nothing is."""

    @abstractmethod
    def step(self, learned: float | None, problem: Problem) -> float:
        """Return how far two neighbouring codes are apart."""

    @abstractmethod
    def quantize(self, w: Tensor, learned: Tensor | None, problem: Problem) -> Tensor:
        """Return the quantized weight, with gradients."""


@final
class StraightThrough(Rule):
    """arXiv:1308.3432: rounding passes the gradient on, saturation stops it; the scale stays."""

    name = "straight-through"
    learns = None

    def first(self, problem: Problem) -> None:
        return None

    def step(self, learned: float | None, problem: Problem) -> float:
        return problem.scale

    def quantize(self, w: Tensor, learned: Tensor | None, problem: Problem) -> Tensor:
        scheme = Scheme(integer_format(problem.bits, signed=True))
        return fake_quantize(w, scheme, torch.tensor(problem.scale), torch.tensor(0).int())


@final
class LearnedScale(Rule):
    """LSQ, arXiv:1902.08153: the scale is learned too, its gradient divided by √Q_P."""

    name = "LSQ"
    learns = "scale"

    def first(self, problem: Problem) -> float:
        return problem.scale

    def step(self, learned: float | None, problem: Problem) -> float:
        assert learned is not None
        return learned

    def quantize(self, w: Tensor, learned: Tensor | None, problem: Problem) -> Tensor:
        assert learned is not None
        high = (1 << (problem.bits - 1)) - 1
        own = scaled_gradient(learned, gradient_factor(1, high))
        return learned_step(w, own, -high - 1, high)


@final
class LearnedClip(Rule):
    """PACT, arXiv:1805.06085: codes from 0 up to a clip α that only values beyond it move."""

    name = "PACT"
    learns = "α"

    def first(self, problem: Problem) -> float:
        return problem.scale * ((1 << problem.bits) - 1)

    def step(self, learned: float | None, problem: Problem) -> float:
        assert learned is not None
        return learned / ((1 << problem.bits) - 1)

    def quantize(self, w: Tensor, learned: Tensor | None, problem: Problem) -> Tensor:
        assert learned is not None
        return pact(w, learned, problem.bits)


RULES: tuple[Rule, ...] = (StraightThrough(), LearnedScale(), LearnedClip())


def train(problem: Problem, rule: Rule, steps: int) -> list[Step]:
    """Return the states of ``steps`` updates ``w ← w − lr · ∂loss/∂w``, the first before any.

    A scale or clip that a step would take to 0 or below stays where it is.

    Raises:
        InputError: the loss or a gradient is no longer finite.
    """
    w = torch.tensor(problem.start, requires_grad=True)
    first = rule.first(problem)
    learned = None if first is None else torch.tensor(first, requires_grad=True)
    found: list[Step] = []
    for _ in range(steps):
        q = rule.quantize(w, learned, problem)
        output = q * problem.x
        loss = (output - problem.target) ** 2
        w.grad = None
        if learned is not None:
            learned.grad = None
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        slope = 0.0 if w.grad is None else float(w.grad)
        beside = None if learned is None or learned.grad is None else float(learned.grad)
        value = None if learned is None else float(learned.detach())
        rounded = float(q.detach())
        if not math.isfinite(float(loss.detach())) or not math.isfinite(slope + (beside or 0.0)):
            raise InputError(
                f"{rule.name} diverges: the loss is no longer finite at step {len(found)} with "
                f"the learning rate {problem.lr:g} and x = {problem.x:g}; lower the learning rate"
            )
        found.append(
            Step(
                float(w.detach()), value, rounded, round(rounded / rule.step(value, problem)),
                float(output.detach()), float(loss.detach()), slope, beside,
            )
        )  # fmt: skip
        with torch.no_grad():
            w -= problem.lr * slope
            if learned is not None and value is not None and beside is not None:
                after = value - problem.lr * beside
                learned.fill_(after if after > 0 else value)
    return found


def slopes(problem: Problem, rule: Rule, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``q(w)``, ``∂q/∂w`` and ``∂q/∂scale`` of weights [N], at the scale of the start.

    The derivative for PACT's α is that for its step: α is the step times the largest code. That of
    LSQ is without the factor that its gradient is multiplied by in training.
    """
    w = weights.clone().requires_grad_()
    first = rule.first(problem)
    if first is None:
        q = rule.quantize(w, None, problem)
        q.sum().backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        assert w.grad is not None
        return q.detach(), w.grad, torch.zeros_like(w.grad)
    each = torch.full_like(weights, first).requires_grad_()
    q = rule.quantize(w, each, problem)
    q.sum().backward()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    assert w.grad is not None
    assert each.grad is not None
    high = (1 << (problem.bits - 1)) - 1
    factor = (1 << problem.bits) - 1 if rule.learns == "α" else 1 / gradient_factor(1, high)
    return q.detach(), w.grad, each.grad * factor
