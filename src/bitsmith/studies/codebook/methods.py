"""The ways to store a weight in few bits, and what each takes and loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from bitsmith.numbers.affine import quantize
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.codebooks import cluster, huffman_bytes
from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.range_search import search_range
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Histogram

__all__ = ["BITS", "METHODS", "Cost", "Method", "Outcome", "outcomes", "store", "total"]

BITS = (2, 3, 4)
Cut = Literal["tensor", "channel", "group"]
_BINS = 1 << 14
How = Literal["min–max", "searched", "k-means"]


@final
@dataclass(frozen=True)
class Method:
    """A family of formats, what shares a scale or a table, and how that is found.

    Attributes:
        family: ``int``, ``nf``, ``pot``, ``apot`` or ``codebook``; with the bits behind it, the
            name of a format.
    """

    family: str
    cut: Cut
    how: How

    @property
    def name(self) -> str:
        """What tables call it, without the bits."""
        what = {"codebook": "k-means"}.get(self.family, self.family)
        return f"{what} per {self.cut}" + ("" if self.how == "k-means" else f", {self.how}")

    def named(self, bits: int) -> str:
        """What tables call it: ``int4 per channel, searched``.

        >>> Method("int", "channel", "searched").named(4)
        'int4 per channel, searched'
        """
        what, rest = self.name.split(" ", 1)
        return f"{what}{'-' * (self.how == 'k-means')}{bits} {rest}"

    def granularity(self, shape: Sequence[int], group: int) -> Granularity:
        """Return which weights share; per channel where groups do not divide the weight."""
        if self.cut == "tensor":
            return PerTensor()
        if self.cut == "channel" or shape[1] % group:
            return PerChannel(0)
        return PerGroup(group, axis=1)

    def format(self, bits: int) -> NumberFormat | None:
        """Return the format of ``bits``, or None where the method is not used at that width."""
        if self.family in ("nf", "pot", "apot") and bits != 4:
            return None
        return formats[f"{self.family}{bits}"]


METHODS = (
    Method("int", "tensor", "searched"),
    Method("int", "channel", "min–max"),
    Method("int", "channel", "searched"),
    Method("int", "group", "min–max"),
    Method("int", "group", "searched"),
    Method("nf", "group", "min–max"),
    Method("nf", "group", "searched"),
    Method("pot", "channel", "searched"),
    Method("apot", "channel", "searched"),
    Method("codebook", "tensor", "k-means"),
    Method("codebook", "channel", "k-means"),
)


@final
@dataclass(frozen=True)
class Cost:
    """What is stored and what is lost, of one weight or of many together.

    Attributes:
        n: weights.
        bytes: everything packed: codes, scales, tables.
        huffman: the same with the codes Huffman coded.
        index_bytes: of the packed codes alone.
        error, energy: ``‖w − ŵ‖²`` and ``‖w‖²``.
    """

    n: int
    bytes: int
    huffman: int
    index_bytes: int
    error: float
    energy: float

    @property
    def relative(self) -> float:
        """``‖w − ŵ‖ / ‖w‖``."""
        return math.sqrt(self.error / self.energy)

    @property
    def sqnr(self) -> float:
        """``10·log10(‖w‖² / ‖w − ŵ‖²)``, in dB."""
        return 10 * math.log10(self.energy / self.error)

    @property
    def bits_per_weight(self) -> float:
        """Of everything that is stored."""
        return 8 * self.bytes / self.n

    @property
    def huffman_bits(self) -> float:
        """Bits per weight after Huffman coding."""
        return 8 * self.huffman / self.n


@final
@dataclass(frozen=True)
class Outcome:
    """One layer stored by one method."""

    method: Method
    bits: int
    layer: str
    cost: Cost


def store(w: Tensor, method: Method, bits: int, group: int) -> QTensor | None:
    """Return ``w`` stored by a method, scales and tables in fp16; None where it does not apply."""
    number = method.format(bits)
    if number is None:
        return None
    cut = method.granularity(w.shape, group)
    scheme = Scheme(number, granularity=cut, scale_format=fp16)
    if method.how == "k-means":
        return cluster(w, scheme)
    if method.how == "min–max":
        return quantize(w, scheme)
    if method.cut == "tensor":
        return quantize(w, scheme, *_whole_tensor(w, scheme))
    return quantize(w, scheme, *search_range(w, scheme))


def _whole_tensor(w: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return scale and zero point by the calibrator ``mse``, which searches far further down.

    One weight may be 50 times as large as the rest of a matrix, but hardly of a row or a group.
    """
    histogram = Histogram(max_bins=_BINS)
    histogram.update(w)
    return make_calibrator("mse")(histogram, scheme)


def outcomes(layer: str, w: Tensor, group: int) -> Iterator[Outcome]:
    """Give what each method at each width makes of a weight ``[out, in, …]``."""
    energy = float(w.double().square().sum())
    for bits in BITS:
        for method in METHODS:
            q = store(w, method, bits, group)
            if q is not None:
                error = float((q.dequantize().double() - w.double()).square().sum())
                index = math.ceil(w.numel() * bits / 8)
                cost = Cost(w.numel(), q.nbytes, huffman_bytes(q), index, error, energy)
                yield Outcome(method, bits, layer, cost)


def total(costs: Iterable[Cost]) -> Cost:
    """Return what several weights take and lose together."""
    every = list(costs)
    return Cost(
        n=sum(c.n for c in every),
        bytes=sum(c.bytes for c in every),
        huffman=sum(c.huffman for c in every),
        index_bytes=sum(c.index_bytes for c in every),
        error=math.fsum(c.error for c in every),
        energy=math.fsum(c.energy for c in every),
    )
