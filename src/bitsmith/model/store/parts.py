"""The packed parts of one weight: what they must be, and a weight made of them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitsmith.model.layers.packed import PackedWeight
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.packing import packed_bytes
from bitsmith.numbers.scheme import Scheme

__all__ = ["PartSpec", "misfits", "part_specs", "weight_of_parts"]

PartSpec = tuple[torch.dtype, tuple[int, ...]]


def part_specs(scheme: Scheme, shape: Sequence[int]) -> dict[str, PartSpec]:
    """Return name → type and shape of the packed form of a tensor of ``shape``.

    Raises:
        SchemeError: the scheme does not fit the shape.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> part_specs(Scheme(int4), (3, 3))
    {'codes': (torch.uint8, (5,)), 'scale': (torch.float32, ())}
    """
    number, inner = scheme.format, scheme.scale_format
    groups = scheme.granularity.scale_shape(shape)
    real = inner.dtype if isinstance(inner, NumberFormat) else torch.float32
    dimension = number.dimension if isinstance(number, LearnedFormat) else 1
    places = (*shape[:-1], shape[-1] // dimension) if dimension > 1 else tuple(shape)
    specs = {"codes": _codes(number, places)}
    if isinstance(inner, Scheme):
        specs |= {f"scales.{name}": spec for name, spec in part_specs(inner, groups).items()}
    elif scheme.scaled:
        specs["scale"] = real, tuple(groups)
    if not scheme.symmetric:
        specs["zero_point"] = _codes(number, groups)
    if scheme.learned:
        vectors = (dimension,) if dimension > 1 else ()
        specs["codebook"] = real, (*groups, 1 << number.bits, *vectors)
    return specs


def misfits(parts: Mapping[str, Tensor], specs: Mapping[str, PartSpec]) -> list[str]:
    """Return what is missing, not expected, or of another type or shape."""
    wrong = [f"{name} is missing" for name in specs if name not in parts]
    for name, part in parts.items():
        if name not in specs:
            wrong.append(f"{name} is not expected")
        elif (part.dtype, tuple(part.shape)) != specs[name]:
            dtype, shape = specs[name]
            wrong.append(
                f"{name} is {part.dtype} {list(part.shape)} and must be {dtype} {list(shape)}"
            )
    return wrong


def weight_of_parts(
    parts: Mapping[str, Tensor], scheme: Scheme, stored_shape: Sequence[int], shape: Sequence[int]
) -> PackedWeight:
    """Return a weight that holds ``parts`` themselves: nothing is unpacked and nothing copied."""
    named = {name: parts[name] for name in part_specs(scheme, stored_shape)}
    return PackedWeight.from_parts(named, scheme, stored_shape, shape)


def _codes(number: NumberFormat, shape: Sequence[int]) -> PartSpec:
    """Return what codes are packed to: a bit stream up to 8 bits, else whole integers."""
    if number.bits <= 8:
        return torch.uint8, (packed_bytes(torch.Size(shape).numel(), number.bits),)
    return torch.int16 if number.bits == 16 else torch.int32, tuple(shape)
