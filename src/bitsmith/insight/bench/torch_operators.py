"""PyTorch's own low-bit operators on the CPU, where this version has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bitsmith.insight.bench.contender import Bind, Contender, Job, Prepared, random_weight

__all__ = ["torch_contenders"]


def torch_contenders(bits: int, group: int | None) -> list[Contender]:
    """Return the operators for weights of ``bits`` bits in groups, or per channel."""
    if bits == 8 and group is None:
        return [Contender("torch dynamic int8", "torch", _dynamic)]
    if bits == 4 and group in (32, 64, 128, 256):
        return [Contender(f"torch int4 bf16, group {group}", "torch", _int4(group))]
    return []


def _dynamic(job: Job) -> Prepared:
    """``torch.ao.nn.quantized.dynamic.Linear``: per-channel int8, rows quantized by the tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and measured as long as it is there
        kind: Any = import_module("torch.ao.nn.quantized.dynamic").Linear
        weight = random_weight(job)
        scales = (weight.abs().amax(1) / 127).double()
        zeros = torch.zeros(job.n, dtype=torch.int64)
        codes = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        layers = []
        for _ in range(job.copies(weight.numel())):
            layer = kind(job.k, job.n, bias_=False)
            layer.set_weight_bias(codes, None)  # packs a copy of its own
            layers.append(layer)
    return Prepared(_each(layers, lambda layer, x: lambda: layer(x)), weight.numel())


def _int4(group: int) -> Callable[[Job], Prepared]:
    def prepare(job: Job) -> Prepared:
        operators: Any = torch.ops.aten
        groups = job.k // group
        size = job.n * job.k // 2 + 4 * job.n * groups  # a bf16 scale and zero for each group
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 16, (job.n, job.k), generator=generator, dtype=torch.int32)
        first = operators._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = torch.full((groups, job.n, 2), 0.01, dtype=torch.bfloat16)
        pairs = [(first.clone(), scales.clone()) for _ in range(job.copies(size))]

        def call(pair: tuple[Tensor, Tensor], x: Tensor) -> Callable[[], object]:
            half = x.to(torch.bfloat16)
            multiply = operators._weight_int4pack_mm_for_cpu
            return lambda: multiply(half, pair[0], group, pair[1])

        return Prepared(_each(pairs, call), size)

    return prepare


def _each(weights: list[Any], call: Callable[[Any, Tensor], Callable[[], object]]) -> Bind:
    return lambda x: [call(weight, x) for weight in weights]
