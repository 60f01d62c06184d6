"""Batch norms that are folded into their layer while both train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from bitsmith.model.graph.ir import Graph
from bitsmith.model.qat.codes import WeightCodes, wide
from bitsmith.model.qat.ranks import mean_over_ranks

__all__ = ["FoldedNorm", "NormStart", "folded_norms", "unfold"]

_MOMENTUM = 0.1
_LEAST = 1e-3


@final
@dataclass(frozen=True)
class NormStart:
    """A layer and the batch norm after it, as they were before folding.

    Attributes:
        weight, bias: of the layer; ``[O, …]`` and ``[O]`` or None.
        gamma, beta, mean, var: of the batch norm, ``[O]``; None: it has no gamma or beta.
        eps: of the batch norm.
    """

    weight: Tensor
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float


@final
class FoldedNorm(nn.Module):
    """Gamma, beta and statistics of a batch norm; its layer's weight is kept beside it.

    The weight that is rounded is ``W · sign(γ)``, and its scales are multiplied by ``|γ| / σ`` with
    the running σ: codes do not depend on the batch. What the batch's own statistics would have
    given is then made up for in the output, ``· σ / σ_B`` and ``− γ μ_B / σ_B`` (arXiv 1806.08342,
    section 3.2.2), with the mean and variance of the quantized layer's outputs. Frozen, the running
    statistics are all there is, and training computes what is deployed.

    Attributes:
        gamma, beta: float32 ``[O]``, parameters where the batch norm had them.
        running_mean, running_var: float32 ``[O]``, of the layer's outputs without its bias, which
            a batch norm takes away; in a distributed run each step takes the ranks' mean.
        frozen: int64 ``[]``; 1: the running statistics are used and stay.
    """

    gamma: Tensor
    beta: Tensor
    running_mean: Tensor
    running_var: Tensor
    frozen: Tensor

    def __init__(self, start: NormStart, momentum: float = _MOMENTUM) -> None:
        super().__init__()
        self.eps, self.momentum = start.eps, momentum
        ones, zeros = torch.ones_like(start.mean), torch.zeros_like(start.mean)
        for name, value, default in (("gamma", start.gamma, ones), ("beta", start.beta, zeros)):
            if value is None:
                self.register_buffer(name, default)
            else:
                self.register_parameter(name, nn.Parameter(value.detach().clone().float()))
        mean = start.mean if start.bias is None else start.mean - start.bias
        self.register_buffer("running_mean", mean.detach().clone().float())
        self.register_buffer("running_var", start.var.detach().clone().float())
        self.register_buffer("frozen", torch.tensor(0))
        self._gathered: list[tuple[Tensor, Tensor]] | None = None

    @property
    def uses_batch(self) -> bool:
        """Whether outputs of a training step have the statistics of their batch."""
        return self.training and not int(self.frozen)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``γ / σ`` with the running σ, and the part of it that scales take, ``[O]``.

        That is its magnitude, but no less than a thousandth of the channels' mean: scales stay
        above 0 where gamma is 0.
        """
        a = (self.gamma.double() * torch.rsqrt(self.running_var.double() + self.eps)).float()
        size = a.abs()
        least = (_LEAST * size.detach().mean()).clamp(min=torch.finfo(a.dtype).tiny)
        return a, torch.maximum(size, least)

    def folded(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weight to round, what its scales are multiplied by, and the bias.

        Args:
            weight: of the layer alone, ``[O, …]``.
        """
        a, size = self.factors()
        shift = self.beta.double() - self.running_mean.double() * a.double()
        return weight * wide(a / size, weight), size, shift.float()

    def normalised(self, y: Tensor) -> Tensor:
        """Return what a layer's outputs are with the statistics of their batch; gather them.

        Args:
            y: the outputs of the folded weight without bias, real, ``[N, O, …]``.
        """
        shape = (1, -1, *[1] * (y.dim() - 2))
        axes = [d for d in range(y.dim()) if d != 1]
        a, size = self.factors()
        silent = a.abs() < size  # gamma is next to 0: the outputs say nothing of the layer's own
        usable = torch.where(silent, torch.ones_like(a), a)
        var, mean = torch.var_mean(y, axes, correction=0)
        own_var = torch.where(silent, self.running_var, var / usable.square())
        own_mean = torch.where(silent, self.running_mean, mean / usable)
        ratio = torch.sqrt(self.running_var + self.eps) * torch.rsqrt(own_var + self.eps)
        count = y.numel() // y.shape[1]
        unbiased = own_var.detach() * torch.where(silent, 1.0, count / max(count - 1, 1))
        if torch.is_grad_enabled():  # a step, which every rank takes
            own_mean, unbiased = mean_over_ranks(own_mean, unbiased)
        self._gather(own_mean.detach(), unbiased)
        return (y - mean.reshape(shape)) * ratio.reshape(shape) + self.beta.reshape(shape)

    @torch.no_grad()
    def _gather(self, mean: Tensor, var: Tensor) -> None:
        """Take in a batch's mean and variance of the layer's outputs."""
        if self._gathered is not None:
            self._gathered.append((mean, var))
            return
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)

    def begin(self) -> None:
        """Keep the statistics of the batches apart from now on, until :meth:`finish`."""
        self._gathered = []

    @torch.no_grad()
    def finish(self) -> None:
        """Take the statistics since :meth:`begin`, each batch counting alike, as running ones."""
        gathered, self._gathered = self._gathered, None
        if gathered:
            self.running_mean.copy_(torch.stack([mean for mean, _ in gathered]).mean(0))
            self.running_var.copy_(torch.stack([var for _, var in gathered]).mean(0))


@torch.no_grad()
def unfold(rule: WeightCodes, norm: FoldedNorm, weight: Tensor) -> None:
    """Give ``rule``, which was made for the folded weight, the layer's own, with the same codes.

    Args:
        weight: of the layer alone.
    """
    a, size = norm.factors()
    silent = a.abs() < size
    own = torch.where(wide(silent, weight), weight, rule.own / wide(a, weight))
    widest = weight.flatten(1).abs().amax(1)
    base = rule.base / size
    known = ~silent & (widest > 0)
    if bool(known.any()):  # channels that were silent get scales as the others
        base = torch.where(silent, (base / widest)[known].mean() * widest, base)
    rule.own.copy_(own)
    rule.base.copy_(torch.where(base > 0, base, rule.base))


def folded_norms(before: Graph, after: Graph) -> dict[str, NormStart]:
    """Return the batch norms that simplifying a graph folded into the layer before them.

    Args:
        before: as captured; after: simplified.
    """
    return dict(_found(before, {n.name: n.params for n in after}, after.params))


def _found(
    before: Graph, layers: Mapping[str, dict[str, str]], params: Mapping[str, Tensor]
) -> Iterator[tuple[str, NormStart]]:
    for norm in before:
        layer = before.node(norm.inputs[0]) if norm.op == "batch_norm" else None
        if layer is None or layer.op not in ("conv", "linear") or layer.name not in layers:
            continue
        weight, mean, var = (
            before.param(layer, "weight"),
            before.param(norm, "mean"),
            before.param(norm, "var"),
        )
        if weight is None or mean is None or var is None:
            continue
        start = NormStart(
            weight,
            before.param(layer, "bias"),
            before.param(norm, "weight"),
            before.param(norm, "bias"),
            mean,
            var,
            norm.attrs["eps"],
        )
        # Something else may have been folded into the layer too: then it stays as it is.
        folded = layers[layer.name].get("weight")
        if folded is not None and _same(start, params[folded]):
            yield layer.name, start


def _same(start: NormStart, folded: Tensor) -> bool:
    a, _ = FoldedNorm(start).factors()
    expected = start.weight * wide(a, start.weight)
    return expected.shape == folded.shape and torch.allclose(expected, folded, rtol=1e-5)
