"""The ways a weight can be stored, and what each of them really takes.

Nothing is counted by hand here: the bytes are those of a quantized tensor of the scheme, with its
scales and all that belongs to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import nf4
from bitsmith.numbers.formats.integer import int1, int2, int3, int4, int6, int8, ternary
from bitsmith.numbers.formats.minifloat import bf16, fp8_e4m3fn, fp16, fp32
from bitsmith.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scales import store_offsets, store_scales
from bitsmith.numbers.scheme import Scheme

__all__ = ["STORAGES", "ModelSize", "Storage", "granularity_name", "model_sizes", "stored_bytes"]


@final
@dataclass(frozen=True)
class Storage:
    """One way to store a weight ``[channel, reduction, …]`` or ``[…, channel, …]``.

    Attributes:
        name: what tables call it.
        scheme: of a weight whose channels are axis 0 and whose groups run along axis 1.
    """

    name: str
    scheme: Scheme

    @property
    def bits(self) -> int:
        """Of a code, without scales."""
        return self.scheme.format.bits

    @property
    def granularity(self) -> str:
        """``per-tensor``, ``per-channel`` or ``per-group 64``, as records have it."""
        return granularity_name(self.scheme.granularity)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight of ``shape`` can be cut this way."""
        try:
            self.scheme.granularity.scale_shape(shape)
        except SchemeError:
            return False
        return True

    def for_shape(self, shape: Sequence[int]) -> Scheme:
        """The scheme of a weight of ``shape``: per channel where the groups do not fit it."""
        if self.fits(shape):
            return self.scheme
        return Scheme(self.scheme.format, granularity=PerChannel(0))


def granularity_name(granularity: Granularity) -> str:
    """Return a granularity as records name it.

    >>> granularity_name(PerGroup(64, axis=1)), granularity_name(PerTensor())
    ('per-group 64', 'per-tensor')
    """
    size = f" {granularity.size}" if isinstance(granularity, PerGroup) else ""
    return granularity.name.replace("_", "-") + size


def _made(number: NumberFormat, granularity: Granularity) -> Storage:
    name = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(number.name, number.name)
    group = f" group {granularity.size}" if isinstance(granularity, PerGroup) else ""
    return Storage(name + group, Scheme(number, granularity=granularity))


_CHANNEL, _GROUP = PerChannel(0), PerGroup(64, axis=1)

STORAGES = tuple(
    [_made(number, PerTensor()) for number in (fp32, fp16, bf16)]
    + [_made(number, _CHANNEL) for number in (int8, fp8_e4m3fn, int6)]
    + [_made(int4, _CHANNEL), _made(int4, _GROUP), _made(nf4, _GROUP)]
    + [Storage(f"{n} group 32", named_scheme(n, axis=1)) for n in ("mxfp4",)]
    + [_made(number, _CHANNEL) for number in (int3, int2, ternary, int1)]
)
"""From the most bits to the fewest."""


@lru_cache(maxsize=4096)
def stored_bytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Return ``quantize(x, scheme).nbytes`` of any ``x`` of ``shape``, which need not exist.

    It is the size of a real quantized tensor, of zeros that all share one place in memory.

    Raises:
        SchemeError: the granularity does not fit the shape.

    >>> stored_bytes((16, 256), Scheme(int4, granularity=PerGroup(64)))
    2304
    """
    scale = torch.ones(scheme.granularity.scale_shape(shape))
    stored: QTensor | None = None
    if isinstance(scheme.scale_format, Scheme):
        stored = store_scales(scale, scheme)
        scale = stored.dequantize()
    codes = torch.zeros((), dtype=scheme.format.dtype).expand(shape)
    offset, offsets = None, None
    if scheme.shifted:
        offset = torch.zeros_like(scale)
        if isinstance(scheme.offset_format, Scheme):
            offsets = store_offsets(offset, scheme)
            offset = offsets.dequantize()
    return QTensor(
        codes, scale, _zeros(scale), None, scheme, stored, offset=offset, offsets=offsets
    ).nbytes


def _zeros(scale: Tensor) -> Tensor:
    return torch.zeros_like(scale, dtype=torch.int32)


@final
@dataclass(frozen=True)
class ModelSize:
    """A model stored in one way.

    Attributes:
        storage: the way.
        bytes: of all parameters.
        bits_per_weight: of the weights alone, with their scales.
        weights: how many weights there are.
        fitting: how many of them can be cut into the groups of the way; the others have one
            float32 scale per channel instead.
    """

    storage: Storage
    bytes: int
    bits_per_weight: float
    weights: int
    fitting: int


def model_sizes(parameters: Iterable[Tensor]) -> list[ModelSize]:
    """Return what a model takes in each of :data:`STORAGES` that fits any of its weights.

    Weights are parameters with at least two axes. In a format of at most 8 bits everything else
    (biases, norms) stays float32; in a wider one all parameters are in it.
    """
    shapes = [tuple(p.shape) for p in parameters]
    weights = [s for s in shapes if len(s) >= 2]
    others = [s for s in shapes if len(s) < 2]
    count = sum(map(math.prod, weights))
    found = []
    for storage in STORAGES:
        fitting = sum(storage.fits(shape) for shape in weights)
        if weights and not fitting:
            continue
        coded = sum(stored_bytes(shape, storage.for_shape(shape)) for shape in weights)
        scaled = storage.scheme.scaled
        rest = sum(map(math.prod, others)) * (4 if scaled else storage.bits // 8)
        bits = 8 * coded / count if count else 0.0
        found.append(ModelSize(storage, coded + rest, bits, len(weights), fitting))
    return found
