"""The encoding of an activation while it trains: the family of rules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from bitsmith.model.qat.straight_through import bounded, damped
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import IntegerFormat, integer_format
from bitsmith.registry import Registry

__all__ = ["ActivationRange", "RangeStart"]


@final
@dataclass(frozen=True)
class RangeStart:
    """What a range starts from.

    Attributes:
        encoding: that calibration found.
        features: values of the tensor for one sample.
        limit: no value is larger (the upper bound of a fused clamp); None: any may be.
        from_zero: no value is below 0, and the zero point is the lowest code.
    """

    encoding: Encoding
    features: int = 1
    limit: float | None = None
    from_zero: bool = False


class ActivationRange(nn.Module, ABC):
    """Scale and zero point of one tensor, and of those that share its codes.

    Contract, tested for every member: :meth:`encoding` is what :meth:`scale` and
    :attr:`zero_point` say, bit for bit; it obeys ``limit`` and ``from_zero``; a step of the
    optimizer changes a scale by a share of itself, and none can make it 0 or negative.

    Attributes:
        start: float32 ``[]``, the scale at first.
        given_position: where calibration put 0 in the range, as a share of it.
        bits: int64 ``[]``, of the codes; more than the recipe's while they are lowered.
        clips: only saturated values move the scale.
        held: int64 ``[]``; 1: it stays as it is.
        observes: :meth:`observe` takes in the values of every training batch.
    """

    registry: ClassVar[Registry[type[ActivationRange]]] = Registry(
        "activation range", "bitsmith.model.qat.activation_ranges"
    )
    name: ClassVar[str]
    clips: ClassVar[bool] = False
    observes: ClassVar[bool] = False
    start: Tensor
    bits: Tensor
    held: Tensor

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        ActivationRange.registry.add(name, cls)

    @final
    def __init__(self, given: RangeStart) -> None:
        super().__init__()
        self.given = given
        self.register_buffer("held", torch.tensor(0))
        self.register_buffer("start", torch.tensor(given.encoding.scale, dtype=torch.float32))
        self.register_buffer("bits", torch.tensor(given.encoding.format.bits))
        known = given.encoding
        codes = known.format.code_max - known.format.code_min
        self.given_position = (known.zero_point - known.format.code_min) / codes
        self.begin()

    @abstractmethod
    def begin(self) -> None:
        """Register the parameters and buffers of the rule."""

    @abstractmethod
    def scale(self) -> Tensor:
        """Return the scale, float32 ``[]``, with its gradient."""

    @property
    @abstractmethod
    def zero_point(self) -> int:
        """The code of 0."""

    @abstractmethod
    def zero(self) -> Tensor | None:
        """Return the zero point where it is learned, float32 ``[]``, for its gradient."""

    @abstractmethod
    def observe(self, low: Tensor, high: Tensor) -> None:
        """Take in the smallest and the largest value of a training batch."""

    @property
    @final
    def format(self) -> IntegerFormat:
        """Format of the codes."""
        known = self.given.encoding.format
        if int(self.bits) == known.bits:
            return known
        return integer_format(int(self.bits), signed=known.signed)

    @property
    @final
    def low(self) -> float:
        """Smallest code minus the zero point."""
        return float(self.format.code_min - self.zero_point)

    @property
    @final
    def high(self) -> float:
        """Largest code minus the zero point."""
        return float(self.format.code_max - self.zero_point)

    @property
    @final
    def span(self) -> int:
        """Codes but one."""
        return (1 << int(self.bits)) - 1

    @property
    @final
    def follows(self) -> bool:
        """Whether it wants to see the values of a training batch."""
        return self.observes and not int(self.held)

    @torch.no_grad()
    def encoding(self) -> Encoding:
        """Return the frozen form."""
        return Encoding(float(self.scale()), self.zero_point, self.format)

    @torch.no_grad()
    def set_bits(self, bits: int) -> None:
        """Use codes of ``bits`` bits from now on, for the same range."""
        before = self.span
        self.bits.fill_(bits)
        self.start.mul_(before / self.span)

    @final
    def code_at(self, position: float) -> int:
        """Return the code at a share of the range."""
        span = self.span
        return self.format.code_min + min(max(round(position * span), 0), span)

    @final
    def stepped(self, log_scale: Tensor) -> Tensor:
        """Return ``start · exp(log_scale)``, at most what the limit allows.

        arXiv 1903.08066, section 3.2; the gradient is divided by ``sqrt(values · codes)``, as in
        1902.08153, section 2.2.
        """
        if self.given.limit is not None:
            log_scale = bounded(log_scale, -math.inf, self._most)
        return self.start * damped(log_scale, self.factor).exp()

    @property
    @final
    def factor(self) -> float:
        """What gradients are multiplied by."""
        return 1 / math.sqrt(max(self.given.features, 1) * self.span)

    @property
    def _most(self) -> float:
        """Largest logarithm that keeps the range inside its limit."""
        assert self.given.limit is not None
        widest = self.given.encoding.high
        # One step less: the product must not round above the limit.
        return max(math.log(self.given.limit / widest) - 1e-6, 0.0)
