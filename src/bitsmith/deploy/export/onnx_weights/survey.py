"""Look through a module before a byte is written: how each weight is held, and what cannot be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import nn

from bitsmith.deploy.export.onnx_weights.places import Place, places_of
from bitsmith.deploy.export.onnx_weights.storage import Storage, scale_type, table_of
from bitsmith.errors import UnknownNameError
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.integer import int8
from bitsmith.numbers.granularity import PerToken
from bitsmith.numbers.scheme import Scheme

__all__ = ["Activations", "Form", "Survey", "survey"]

Form = Literal["matmulnbits", "dequantize"]
Activations = Literal["float", "int8"]

_BLOCKS = (128, 64, 32, 16)
_PER_TOKEN = Scheme(int8, granularity=PerToken())
_LARGEST = 2**31 - 2**20
"""Bytes of a protobuf message, less room for the graph."""


@final
@dataclass(frozen=True)
class Survey:
    """What will be written, and everything that cannot be.

    Attributes:
        places: every use of a packed weight.
        names: for each place, the name under which the file holds its weight: that of its first.
        storages: that name → how it is held.
        problems: what cannot be represented.
    """

    places: tuple[Place, ...]
    names: tuple[str, ...]
    storages: dict[str, Storage]
    problems: tuple[str, ...]


def survey(model: nn.Module, form: Form, activations: Activations) -> Survey:
    """Look at every packed weight of ``model``. Arguments as of ``write``.

    Raises:
        UnknownNameError: there is no such form, or no such way with activations.
    """
    if form not in ("matmulnbits", "dequantize"):
        raise UnknownNameError("form", form, ["matmulnbits", "dequantize"])
    if activations not in ("float", "int8"):
        raise UnknownNameError("activations", activations, ["float", "int8"])
    places = places_of(model)
    first: dict[int, str] = {}
    users: dict[str, list[Place]] = {}
    for place in places:
        users.setdefault(first.setdefault(id(place.packed), place.name), []).append(place)
    problems = [*_model_problems(model, places)]
    storages = {}
    for name, uses in users.items():
        found = [*_weight_problems(uses[0]), *(p for use in uses for p in _use_problems(use))]
        if not found:
            chosen = _storage(uses, form, activations)
            if isinstance(chosen, Storage):
                storages[name] = chosen
            else:
                found.append(chosen)
        problems += [f"{name}: {reason}" for reason in found]
    return Survey(
        tuple(places), tuple(first[id(p.packed)] for p in places), storages, tuple(problems)
    )


def _model_problems(model: nn.Module, places: Sequence[Place]) -> Iterator[str]:
    if not places:
        yield "the model has no packed weight: quantize it with a recipe of the module lane"
    if model.training:
        yield "the model is in training mode: call model.eval()"
    own = {id(part) for p in places for part in p.packed.buffers()}
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    floats = {name: tensor for name, tensor in named if id(tensor) not in own}
    for name, tensor in floats.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32 and not tensor.is_meta:
            yield f"{name} is {tensor.dtype}: files hold float32; call model.float()"
    total = sum(t.nbytes for t in floats.values() if not t.is_meta)
    total += sum({id(p.packed): p.packed.nbytes for p in places}.values())
    if total > _LARGEST:
        yield f"{total} bytes of tensors: a single ONNX file holds at most 2 GiB"


def _weight_problems(place: Place) -> Iterator[str]:
    packed = place.packed
    scheme, number = packed.scheme, packed.scheme.format
    if any(part.is_meta for part in packed.parts().values()):
        yield "it is on the meta device, so it has no values"
    if number.bits > 8:
        yield f"{number.name} has {number.bits} bits; codes of up to 8 bits are stored"
    if scale_type(scheme) is None:
        yield "scales in two levels are not stored; fp32, fp16, bf16 and 8-bit floats are"
    if len(packed.stored_shape) != 2:
        yield f"it is stored with shape {packed.stored_shape}, not as [rows, columns]"
    elif not all(packed.stored_shape):
        yield f"it has no values: shape {packed.stored_shape}"


def _use_problems(place: Place) -> Iterator[str]:
    if place.dtype != torch.float32:
        yield f"its layer computes in {place.dtype}; files compute in float32: call model.float()"
    if place.activation is None:
        return
    scheme = place.packed.scheme
    if place.activation != _PER_TOKEN:
        yield f"inputs are quantized as {place.activation}; symmetric int8 per token has a form"
    if scheme.format.name != "int8" or not scheme.symmetric:
        yield f"integer products need symmetric int8 weights, not {scheme.format.name}"
    elif place.packed.shape[1] != place.packed.stored_shape[1] or _groups(place)[1] != 1:
        yield f"integer products need one scale for a row, not {scheme.granularity}"


def _groups(place: Place) -> tuple[int, ...]:
    scheme = place.packed.scheme
    return scheme.granularity.scale_shape(place.packed.stored_shape) or (1, 1)


def _storage(uses: Sequence[Place], form: Form, activations: Activations) -> Storage | str:
    """Return how a weight with these uses is held, or why it cannot be."""
    packed = uses[0].packed
    number = packed.scheme.format
    scheme, shape = packed.scheme, (packed.stored_shape[0], packed.stored_shape[1])
    bits = next(b for b in (2, 4, 8) if b >= number.bits)
    kinds = {use.use for use in uses}
    if not scheme.affine:
        low = 0 if scheme.learned else table_of(number)[0]
        dimension = number.dimension if isinstance(number, LearnedFormat) else 1
        bits = _aligned(bits, shape[1] // dimension)
        return Storage("codes", bits, False, -low, 0, scheme, shape)
    signed = scheme.integer.signed
    shift = 1 << bits - 1 if signed else 0
    if any(use.activation for use in uses):
        alone = all(use.activation for use in uses)
        return Storage("columns" if alone else "codes", 8, False, 128, 0, scheme, shape)
    if kinds == {"linear"}:
        if form == "matmulnbits" and (bits < 8 or activations == "int8"):
            block = _block(uses[0])
            if block is None:
                return (
                    f"{scheme.granularity} on rows of {packed.shape[1]} has no block of "
                    f"MatMulNBits ({', '.join(map(str, _BLOCKS))}); form='dequantize' has one"
                )
            return Storage("blocks", bits, False, shift, block, scheme, shape)
        if activations == "int8":
            return Storage("columns", _aligned(bits, shape[0]), signed, 0, 0, scheme, shape)
    if kinds == {"embedding"} and bits < 8:
        return Storage("bytes", bits, False, shift, 0, scheme, shape)
    return Storage("codes", _aligned(bits, shape[1]), signed, 0, 0, scheme, shape)


def _aligned(bits: int, columns: int) -> int:
    """Return the bits of a code where every row of the tensor has to be whole bytes; else 8.

    OpenVINO 2026.4 misreads other rows of 4 bits, ONNX Runtime 1.31 of 2 bits when it fuses.
    """
    return bits if bits * columns % 8 == 0 else 8


def _block(place: Place) -> int | None:
    """Return the block that divides a group and pads a row least, the largest of several."""
    columns, stored = place.packed.shape[1], place.packed.stored_shape[1]
    groups = _groups(place)[1]
    if groups == 1 and stored == columns:
        return min(_BLOCKS, key=lambda block: -columns % block)
    for block in _BLOCKS:
        if (stored // groups) % block == 0 and columns + -columns % block == stored:
            return block
    return None
