"""How the weight of a layer becomes codes while it trains: the family of rules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError, RecipeError
from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.straight_through import damped
from bitsmith.numbers.formats.integer import integer_format, ternary
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.registry import Registry

__all__ = [
    "COLLAPSE",
    "FixedLevels",
    "LearnedScales",
    "Start",
    "WeightCodes",
    "choose",
    "is_binary",
    "wide",
]

COLLAPSE = math.log(2.0**-10)
"""Logarithm of the share of its start below which a scale has collapsed."""


@final
@dataclass(frozen=True)
class Start:
    """Where the codes of a layer start.

    Attributes:
        weight: float32 ``[O, …]``.
        layer: the weight rounded without training.
        limit: largest ``|code|`` at which any 8-bit codes are exact on the machine.
    """

    weight: Tensor
    layer: IntegerLayer
    limit: int = 127

    @property
    def scales(self) -> Tensor:
        """Scales of the rounded weight, float32 ``[O]``."""
        return self.layer.weight.scale.reshape(-1).clone()


class WeightCodes(nn.Module, ABC):
    """The codes of one weight, ``[O, …]`` whole numbers in float32, and its scales ``[O]``.

    Contract, tested for every member: :meth:`forward` and :meth:`frozen` give the same codes and
    scales, bit for bit; codes are whole and of the scheme; gradients reach every parameter.

    Attributes:
        learns: what users ask for when they get it: ``lsq`` (scales are parameters), ``minmax``
            (scales follow the weight), ``frozen``.
        gradual: its number of bits can be lowered while it trains.
        given: scheme of the codes that are deployed.
        bits: int64 ``[]``, of the codes now; more than the recipe's while they are lowered.
        share, block: float64 and int64 ``[]``, the share of the codes that are rounded in a
            training step, in blocks of ``block`` neighbours drawn anew each time (arXiv
            2004.07320); 1: all.
        held: int64 ``[]``; 1: the scales stay while the weight trains.
    """

    registry: ClassVar[Registry[type[WeightCodes]]] = Registry(
        "weight rule", "bitsmith.model.qat.weights"
    )
    name: ClassVar[str]
    learns: ClassVar[frozenset[str]]
    gradual: ClassVar[bool] = False
    bits: Tensor
    share: Tensor
    block: Tensor
    held: Tensor

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        if name is not None:
            cls.name = name
            WeightCodes.registry.add(name, cls)

    @final
    def __init__(self, start: Start) -> None:
        super().__init__()
        self.given = start.layer.weight.scheme
        self.register_buffer("share", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("block", torch.tensor(1))
        self.register_buffer("held", torch.tensor(0))
        self.register_buffer("bits", torch.tensor(self.given.format.bits))
        self.begin(start)

    @classmethod
    @abstractmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        """Return whether it can train the codes of ``layer``."""

    @abstractmethod
    def begin(self, start: Start) -> None:
        """Register parameters and buffers, as they are before the first step."""

    @property
    @abstractmethod
    def own(self) -> Tensor:
        """The weight that is rounded, ``[O, …]``."""

    @property
    @abstractmethod
    def base(self) -> Tensor:
        """The buffer ``[O]`` that its scales are multiples of, or bounded by."""

    @abstractmethod
    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes and scales of a weight, with their gradients."""

    @abstractmethod
    def collapsed(self) -> int:
        """Return how many scales have fallen to next to nothing of where they started."""

    @abstractmethod
    def restart(self, weight: Tensor) -> None:
        """Start anew, for a weight, with the scales that suit :attr:`scheme`."""

    @property
    @final
    def scheme(self) -> Scheme:
        """Scheme of the codes now."""
        bits = int(self.bits)
        if bits == self.given.format.bits:
            return self.given
        return replace(self.given, format=integer_format(bits, signed=True), narrow_range=None)

    @property
    @final
    def widens(self) -> bool:
        """Whether its codes can have another number of bits for a while."""
        return self.gradual and self.given.format != ternary

    @final
    def set_bits(self, bits: int, weight: Tensor) -> None:
        """Use codes of ``bits`` bits from now on, with new scales for ``weight``.

        Raises:
            InputError: its codes have no bits to lower.
        """
        if not self.widens:
            raise InputError(f"codes of rule {self.name!r} have no other number of bits")
        self.bits.fill_(bits)
        self.restart(weight)

    def forward(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return codes and scales with their gradients, as a training step uses them.

        Args:
            weight: instead of :attr:`own`: a batch norm was folded into it.
        """
        weight = self.own if weight is None else weight
        codes, scale = self.quantized(weight)
        if self.training and self.share < 1 and "frozen" not in self.learns:
            whole = _drawn(codes, float(self.share), int(self.block))
            codes = torch.where(whole, codes, weight / wide(scale, weight))
        return codes, scale

    @final
    @torch.no_grad()
    def frozen(self, weight: Tensor | None = None) -> QTensor:
        """Return what :meth:`quantized` computes as a quantized tensor."""
        codes, scale = self.quantized(self.own if weight is None else weight)
        scheme = self.scheme
        shape = scheme.granularity.scale_shape(codes.shape)
        zero = torch.zeros(shape, dtype=torch.int32)
        kind = scheme.format.dtype
        return QTensor(codes.to(kind), scale.reshape(shape).clone(), zero, None, scheme)


class LearnedScales(WeightCodes):
    """Codes whose weight trains, and a scale for each output channel with it.

    ``s = start · exp(log_scale)``, whose gradient is divided by ``√(n · high)``, ``n`` the weights
    of a channel (LSQ, arXiv 1902.08153, section 2.2).

    Attributes:
        weight: float32 ``[O, …]``, the parameter that trains.
        start: float32 ``[O]``, the scales that training starts from.
        log_scale: float32 ``[O]``; 0 at first.
    """

    start: Tensor

    @property
    @abstractmethod
    def high(self) -> float:
        """Largest code."""

    @final
    def place(self, weight: Tensor, scales: Tensor) -> None:
        """Register a copy of ``weight``, and ``scales``, as what training starts from."""
        self.weight = nn.Parameter(weight.detach().clone())
        self.register_buffer("start", scales)
        self.log_scale = nn.Parameter(torch.zeros_like(scales))

    @property
    @final
    def own(self) -> Tensor:
        return self.weight

    @property
    @final
    def base(self) -> Tensor:
        return self.start

    @final
    def scale(self) -> Tensor:
        """Return the scales, float32 ``[O]``."""
        factor = 1 / math.sqrt(max(self.weight[0].numel(), 1) * max(self.high, 1.0))
        return self.start * damped(self.log_scale, factor).exp()

    @final
    def collapsed(self) -> int:
        return int((self.log_scale < COLLAPSE).sum())


class FixedLevels(LearnedScales):
    """Learned scales of codes whose number of levels never changes."""

    @abstractmethod
    def levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the codes of ``weight`` at scales ``[O]``, with their gradients."""

    @final
    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale()
        return self.levels(weight, scale), scale

    @final
    def restart(self, weight: Tensor) -> None:
        """Its codes have no other number of bits."""


def choose(learn: str, start: Start) -> WeightCodes:
    """Return the codes of a layer, to be trained as ``learn`` says.

    Args:
        learn: ``lsq``, ``minmax`` or ``frozen``, or a rule by its own name.
        start: the layer.

    Raises:
        UnknownNameError: no such rule.
        RecipeError: the rule that was asked for cannot train these codes.
    """
    members = WeightCodes.registry
    asked = [members[name] for name in members if learn in members[name].learns]
    for kind in asked or [members[learn]]:
        if kind.fits(start.layer):
            return kind(start)
    raise RecipeError(
        f"weights={learn!r} cannot train codes of {start.layer.weight.scheme.format}"
        + ("" if start.layer.table is None else " from a table")
    )


def is_binary(layer: IntegerLayer) -> bool:
    """Return whether its codes are −1 and 1."""
    return layer.table is not None and layer.weight.scheme.format == ternary


def wide(scale: Tensor, weight: Tensor) -> Tensor:
    """Return scales ``[O]`` in a shape that broadcasts with the weight ``[O, …]``."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def _drawn(like: Tensor, share: float, block: int) -> Tensor:
    """Return a random mask, true for ``share`` of the blocks along the rows."""
    rows, columns = like.shape[0], like[0].numel()
    count = -(-columns // block)
    drawn = torch.rand(rows, count, device=like.device) < share
    return drawn.repeat_interleave(block, 1)[:, :columns].reshape(like.shape)
