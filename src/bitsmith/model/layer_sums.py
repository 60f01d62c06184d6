"""What one layer meets in the network so far, summed up: enough to judge any rounding of it.

With the float output ``y = W·x_f + b`` and the inputs ``x`` that the integers before it give, the
layer with weight Q and bias b misses ``y`` by ``r + (W − Q)·x``, where ``r = y − b − W·x`` is what
the inputs alone cost. Sums of ``x·xᵀ``, ``r·xᵀ``, ``r²``, ``x`` and ``r`` give the mean square of
that miss for every Q, so that a layer's data is read once and every rounding judged by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.model.graph.ir import Node
from bitsmith.numbers.statistics import Gram

__all__ = ["DAMPINGS", "LayerSums", "input_rows"]

#: Shares of the mean square input that may hold a weight back.
DAMPINGS = (0.01, 0.1, 1.0, 10.0)

_PIECE = 1 << 22  # values of unfolded inputs at a time


@final
class LayerSums:
    """Sums over the rows (samples and positions) of one convolution or linear layer.

    Args:
        node: the layer.
        weight: its float weight ``[O, I/groups, *kernel]``.
        share: of the rows that second moments are summed over, drawn at random with a fixed seed;
            means are over all rows.

    Attributes:
        rows: that second moments are of; of every other sample they are kept apart.
        mean_x: of the inputs over all rows, float64 ``[groups, K]``.
        mean_y: of the float output less its bias over all rows, float64 ``[O]``.
    """

    def __init__(self, node: Node, weight: Tensor, share: float = 1.0) -> None:
        self.node, self.weight, self.share = node, weight, share
        self.groups: int = node.attrs.get("groups", 1)
        inputs, outputs = weight[0].numel(), len(weight) // self.groups
        self._w = weight.reshape(self.groups, outputs, inputs)
        self._halves = [_Moments(self.groups, outputs, inputs) for _ in range(2)]
        self._all_x = torch.zeros(self.groups, inputs, dtype=torch.float64)
        self._all_y = torch.zeros(self.groups, outputs, dtype=torch.float64)
        self._all, self._samples = 0, 0
        self._generator = torch.Generator().manual_seed(0)

    @property
    def rows(self) -> int:
        return sum(half.rows for half in self._halves)

    @property
    def mean_x(self) -> Tensor:
        return self._all_x / self._all

    @property
    def mean_y(self) -> Tensor:
        return (self._all_y / self._all).reshape(-1)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch.

        Args:
            x: the layer's input as the integers before it give it, float32.
            y: the float network's output of the layer, before bias and activation.
        """
        positions = y[0].numel() // (y.shape[1] if self.node.op == "conv" else y.shape[-1])
        step = max(1, _PIECE // max(1, positions * self._all_x.numel()))
        order = torch.arange(self._samples, self._samples + len(x)) % 2
        self._samples += len(x)
        for half in range(2):
            mine = order == half
            for part, out in zip(
                torch.split(x[mine], step), torch.split(y[mine], step), strict=True
            ):
                self._add(self._halves[half], part, out)

    def _add(self, half: _Moments, x: Tensor, y: Tensor) -> None:
        if not len(x):
            return
        xs = input_rows(self.node, x, tuple(self.weight.shape[2:]))
        ys = _output_rows(self.node, y, self.groups)
        self._all_x += xs.sum(2, dtype=torch.float64)
        self._all_y += ys.sum(2, dtype=torch.float64)
        self._all += xs.shape[2]
        if self.share < 1:
            count = math.ceil(xs.shape[2] * self.share)
            chosen = torch.randperm(xs.shape[2], generator=self._generator)[:count]
            xs, ys = xs[..., chosen], ys[..., chosen]
        half.add(xs, ys - self._w @ xs)

    @property
    def _whole(self) -> _Moments:
        return self._halves[0].plus(self._halves[1])

    def covariance(self, centred: bool) -> Tensor:
        """Return ``E[x·xᵀ]``, or about the mean: float64 ``[groups, K, K]``."""
        return self._whole.covariance(centred)

    def gram(self, centred: bool) -> Gram:
        """Return :meth:`covariance` of a layer without groups as a statistic for roundings."""
        assert self.groups == 1
        sums = self.covariance(centred)[0] * self.rows
        count = self.rows * len(sums)
        state = {"diagonal": False, "sums": sums, "rows": self.rows, "count": count}
        return Gram.from_state(state)

    def miss(self, weight: Tensor, centred: bool) -> Tensor:
        """Return the mean square of ``r + (W − Q)·x``, or its variance, float64 ``[O]``.

        Args:
            weight: Q, of the shape of the float weight.
            centred: the mean of the miss does not count: a bias will take it back.
        """
        change = weight.double().reshape(self._w.shape) - self._w.double()
        return self._whole.miss(change, centred).reshape(-1)

    def toward_float(
        self, centred: bool, dampings: Sequence[float] = DAMPINGS
    ) -> tuple[Tensor, float]:
        """Return the weight that misses least, ``W + E[r·xᵀ]·(E[x·xᵀ] + λ)⁻¹``, and its damping.

        The least of ``E|r + (W − W′)·x|² + λ·|W − W′|²``, λ being a damping times the mean
        square of an input; what is left to a rounding is ``(W′ − Q)·x``. The damping is that of
        those given with which the weight of each half of the samples misses least on the other
        half; W itself, a damping of infinity, where none is better.
        """
        best, damping = math.inf, math.inf
        for tried in (math.inf, *dampings):
            found = 0.0
            for one, other in (self._halves, self._halves[::-1]):
                if one.rows and other.rows:
                    change = one.best_change(centred, tried)
                    found += float(other.miss(change, centred).mean())
            if found < best:
                best, damping = found, tried
        change = self._whole.best_change(centred, damping)
        return (self._w.double() + change).float().reshape(self.weight.shape), damping

    def mean_output(self, weight: Tensor) -> Tensor:
        """Return the mean of ``Q·x`` over all rows, float64 ``[O]``."""
        q = weight.double().reshape(self._w.shape)
        return (q @ self.mean_x.unsqueeze(2)).reshape(-1)


@final
class _Moments:
    """Sums of products of inputs x and of what they cost r, of some rows, by group."""

    def __init__(self, groups: int, outputs: int, inputs: int) -> None:
        self.rows = 0
        self.xx = torch.zeros(groups, inputs, inputs, dtype=torch.float64)
        self.rx = torch.zeros(groups, outputs, inputs, dtype=torch.float64)
        self.rr = torch.zeros(groups, outputs, dtype=torch.float64)
        self.r = torch.zeros(groups, outputs, dtype=torch.float64)
        self.x = torch.zeros(groups, inputs, dtype=torch.float64)

    def add(self, x: Tensor, r: Tensor) -> None:
        """Take in rows: x ``[groups, K, rows]``, r ``[groups, O/groups, rows]``."""
        self.rows += x.shape[2]
        self.xx += x @ x.transpose(1, 2)
        self.rx += r @ x.transpose(1, 2)
        self.rr += r.square().sum(2, dtype=torch.float64)
        self.r += r.sum(2, dtype=torch.float64)
        self.x += x.sum(2, dtype=torch.float64)

    def plus(self, other: _Moments) -> _Moments:
        """Return the sums over the rows of both."""
        found = _Moments(*self.rx.shape)
        for name, value in vars(self).items():
            setattr(found, name, value + getattr(other, name))
        return found

    def covariance(self, centred: bool) -> Tensor:
        """Return ``E[x·xᵀ]``, or about the mean."""
        moment = self.xx / self.rows
        if not centred:
            return moment
        mean = self.x / self.rows
        found = moment - mean.unsqueeze(2) * mean.unsqueeze(1)
        # An input that never changes has what rounding leaves of its square: nothing.
        alive = found.diagonal(dim1=1, dim2=2) > 1e-6 * moment.diagonal(dim1=1, dim2=2)
        return found * (alive.unsqueeze(2) & alive.unsqueeze(1))

    def cross(self, centred: bool) -> Tensor:
        """Return ``E[r·xᵀ]``, or about the means."""
        cross = self.rx / self.rows
        if not centred:
            return cross
        return cross - (self.r / self.rows).unsqueeze(2) * (self.x / self.rows).unsqueeze(1)

    def miss(self, change: Tensor, centred: bool) -> Tensor:
        """Return the mean square, or the variance, of ``r − change·x``."""
        rr = self.rr / self.rows
        if centred:
            rr = rr - (self.r / self.rows).square()
        quadratic = ((change @ self.covariance(centred)) * change).sum(2)
        return (rr + quadratic - 2 * (change * self.cross(centred)).sum(2)).clamp(min=0)

    def best_change(self, centred: bool, damping: float) -> Tensor:
        """Return ``E[r·xᵀ]·(E[x·xᵀ] + λ)⁻¹``."""
        if damping == math.inf:
            return torch.zeros_like(self.rx)
        h = self.covariance(centred)
        ridge = damping * h.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
        h = h + ridge.reshape(-1, 1, 1) * torch.eye(h.shape[1], dtype=h.dtype)
        change: Tensor = torch.linalg.solve(h, self.cross(centred).transpose(1, 2))
        return change.transpose(1, 2)


def input_rows(node: Node, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Return what the weights of each group meet, ``[groups, K, rows]``.

    Rows are the positions of all samples; K = I/groups · kernel in the order of
    ``weight[o].flatten()``; padding is 0.

    Args:
        node: a convolution or linear layer.
        x: its input, float.
        kernel: the weight's shape from axis 2 on.
    """
    if node.op == "linear":
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    a = node.attrs
    if len(kernel) == 1:
        x, kernel = x.unsqueeze(2), (1, kernel[0])
    wide = functional.unfold(
        x, kernel, _two(a["dilation"], 1), _two(a["padding"], 0), _two(a["stride"], 1)
    )  # [N, I · kernel, L]
    split = wide.reshape(len(wide), a["groups"], -1, wide.shape[2])
    return split.permute(1, 2, 0, 3).reshape(a["groups"], split.shape[2], -1)


def _two(value: list[int], neutral: int) -> tuple[int, int]:
    """Per axis of the image that ``input_rows`` unfolds; of one axis, the other is neutral."""
    return (neutral, value[0]) if len(value) == 1 else (value[0], value[1])


def _output_rows(node: Node, y: Tensor, groups: int) -> Tensor:
    """Return outputs as ``[groups, O/groups, rows]``, rows as in :func:`input_rows`."""
    y = y.movedim(1 if node.op == "conv" else -1, 0)
    return y.reshape(groups, len(y) // groups, -1)
