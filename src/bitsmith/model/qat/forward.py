"""One forward pass on codes: what the runtime computes, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from bitsmith.model.graph.ir import Node
from bitsmith.model.graph.operators import run_node
from bitsmith.model.qat import straight_through as through
from bitsmith.model.qat.batch_norms import FoldedNorm
from bitsmith.model.qat.codes import WeightCodes
from bitsmith.model.qat.products import convolve, linear, matmul
from bitsmith.model.qat.ranges import ActivationRange
from bitsmith.model.qat.weights import LearnedRounding
from bitsmith.model.simulate import Program, Values, code_bounds, execute, pad_code

__all__ = ["Forward", "whole_bias"]


def whole_bias(bias: Tensor, step: Tensor) -> Tensor:
    """Return a bias in steps of ``s_x · s_w``: float64 whole numbers, straight through."""
    return through.round_through(bias.double() / step.double())


class _Ends(NamedTuple):
    """Smallest and largest code less the zero point, and that."""

    low: float
    high: float
    zero_point: int


@final
@dataclass
class Forward:
    """The tensors of one pass: centred codes where quantized, reals where float.

    Attributes:
        program: graph and outcomes; its encodings and layers are not used.
        ranges: of every quantized tensor; one object for those that share it.
        weights, biases, norms: of the layers, by node name.
        drop: share of activations that are not rounded.
        observe: let ranges take in what they see.
        dtype: of the products in the backward pass; None: float32.
    """

    program: Program
    ranges: Mapping[str, ActivationRange]
    weights: Mapping[str, WeightCodes | LearnedRounding]
    biases: Mapping[str, Tensor]
    norms: Mapping[str, FoldedNorm] = field(default_factory=dict)
    drop: float = 0.0
    observe: bool = False
    dtype: torch.dtype | None = None
    codes: dict[str, Tensor] = field(default_factory=dict)
    reals: dict[str, Tensor] = field(default_factory=dict)
    _scales: dict[ActivationRange, Tensor] = field(default_factory=dict)
    _ends: dict[ActivationRange, _Ends] = field(default_factory=dict)

    def run(self, node: Node) -> None:
        """Compute one node from what is there."""
        outcome = self.program.outcomes[node.name]
        kernel = _KERNELS.get(node.op)
        if kernel is not None and outcome.kind in ("integer", "codes"):
            kernel(self, node)
        elif outcome.kind == "codes":
            self.codes[node.name] = self._moved(node)
        elif outcome.kind == "integer" and not outcome.float_output:
            self._exact(node)
        elif node.op == "embedding" and node.name in self.program.layers:
            table, ids = self.program.layers[node.name].weight, self.reals[node.inputs[0]]
            rows = table.codes[ids].to(torch.float32)
            scale = table.scale.reshape(-1, 1).expand(len(table.codes), 1)
            self.reals[node.name] = rows * scale[ids]
        else:
            self.reals[node.name] = self._float(node)

    def drop_tensor(self, name: str) -> None:
        """Forget a tensor."""
        self.codes.pop(name, None)
        self.reals.pop(name, None)

    def scale(self, name: str) -> Tensor:
        """Return the scale of a quantized tensor, computed once a pass."""
        owner = self.ranges[name]
        if owner not in self._scales:
            self._scales[owner] = owner.scale()
        return self._scales[owner]

    def ends(self, name: str) -> _Ends:
        """Return where the codes of a quantized tensor end, computed once a pass."""
        owner = self.ranges[name]
        if owner not in self._ends:
            self._ends[owner] = _Ends(owner.low, owner.high, owner.zero_point)
        return self._ends[owner]

    def code(self, name: str) -> Tensor:
        """Return the centred codes of ``name``, quantizing its real values where needed."""
        if name not in self.codes:
            self._round(name, self.reals[name])
        return self.codes[name]

    def real(self, name: str) -> Tensor:
        """Return the real values of ``name``."""
        if name in self.reals:
            return self.reals[name]
        return self.codes[name] * self.scale(name)

    def _float(self, node: Node) -> Tensor:
        params = {role: self.program.graph.params[p] for role, p in node.params.items()}
        return run_node(node, params, [self.real(i) for i in node.inputs])

    def _round(self, name: str, real: Tensor, codes: Tensor | None = None) -> None:
        """Real values → codes of ``name``."""
        r = self.ranges[name]
        if self.observe and r.follows and codes is None:
            r.observe(*real.detach().aminmax())
        scale = self.scale(name)
        low, high, _ = self.ends(name)
        self.codes[name] = through.quantize_real(
            real, scale, low, high, codes, zero=r.zero(), clip=r.clips
        )

    def _divisor(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Return what sums are divided by, and the scale that only saturated values move."""
        scale = self.scale(name)
        return (scale.detach(), scale) if self.ranges[name].clips else (scale, None)

    def _finish(self, node: Node, sums: Tensor, step: Tensor) -> None:
        """Whole sums in steps of ``step`` → codes, or reals for a float output."""
        step = _along(node, step, sums.dim())
        clamp = node.attrs.get("activation")
        if self.program.outcomes[node.name].float_output:
            real = sums * step
            self.reals[node.name] = real if clamp is None else torch.clamp(real, *clamp)
            return
        r = self.ranges[node.name]
        if self.observe and r.follows:
            ends = (sums.detach() * step.detach()).aminmax()
            r.observe(*(e if clamp is None else torch.clamp(e, *clamp) for e in ends))
        divisor, clip = self._divisor(node.name)
        low, high, _ = self.ends(node.name)
        self.codes[node.name] = through.requantize(
            sums, step / divisor, low, high, self.drop, zero=r.zero(), clip=clip
        )

    def _reach(self, name: str) -> float:
        """Return the largest distance of a code of ``name`` from its zero point."""
        low, high, _ = self.ends(name)
        return max(-low, high)

    def layer(self, node: Node) -> None:
        """A convolution or linear layer."""
        source = node.inputs[0]
        x, rule, norm = self.code(source), self.weights[node.name], self.norms.get(node.name)
        bias = self.biases.get(node.name)
        if norm is None or not isinstance(rule, WeightCodes):
            codes, scale = rule()
        else:
            weight, size, bias = norm.folded(rule.own)
            codes, scale = rule(weight)
            scale = scale * size
        step = self.scale(source) * scale
        by_batch = norm is not None and norm.uses_batch
        whole = None if bias is None or by_batch else whole_bias(bias, step)
        if node.op == "conv":
            sums = convolve(x, codes, whole, node.attrs, self._reach(source), self.dtype)
        else:
            sums = linear(x, codes, whole, self._reach(source))
        if norm is not None and by_batch:
            self._finish_real(node, norm.normalised(sums * _along(node, step, sums.dim())))
        else:
            self._finish(node, sums, step)

    def _finish_real(self, node: Node, real: Tensor) -> None:
        clamp = node.attrs.get("activation")
        real = real if clamp is None else torch.clamp(real, *clamp)
        if self.program.outcomes[node.name].float_output:
            self.reals[node.name] = real
        else:
            self._round(node.name, real)

    def matmul(self, node: Node) -> None:
        """A product of two activations."""
        a, b = node.inputs
        sums = matmul(self.code(a), self.code(b), self._reach(a) * self._reach(b))
        self._finish(node, sums, self.scale(a) * self.scale(b))

    def pool(self, node: Node) -> None:
        """A mean over all spatial axes."""
        x, r = self.code(node.inputs[0]), self.ranges[node.name]
        self._observe_float(node)
        low, high, _ = self.ends(node.name)
        divisor, clip = self._divisor(node.name)
        ratio = self.scale(node.inputs[0]) / (divisor * float(x[0, 0].numel()))
        sums = x.sum(tuple(range(2, x.dim())), keepdim=True)
        self.codes[node.name] = through.requantize(sums, ratio, low, high, zero=r.zero(), clip=clip)

    def add(self, node: Node) -> None:
        """A sum of two activations."""
        a, b = node.inputs
        if _repeats_innermost(self.code(a), self.code(b)):
            a, b = b, a
        self._observe_float(node)
        (s, clip), zero = self._divisor(node.name), self.ranges[node.name].zero()
        ends = [self.ends(name) for name in (a, b, node.name)]
        zeros = (ends[0].zero_point, ends[1].zero_point, ends[2].zero_point)
        ratios = (self.scale(a) / s, self.scale(b) / s)
        self.codes[node.name] = through.add(
            self.code(a), self.code(b), ratios, zeros, ends[2].high, zero=zero, clip=clip
        )

    def _observe_float(self, node: Node) -> None:
        r = self.ranges[node.name]
        if self.observe and r.follows:
            with torch.no_grad():
                r.observe(*self._float(node).aminmax())

    def requantize(self, node: Node) -> None:
        """Codes of fewer bits, for the layers that read them."""
        self._round(node.name, self.real(node.inputs[0]))

    def _moved(self, node: Node) -> Tensor:
        x, r = self.code(node.inputs[0]), self.ranges[node.name]
        if node.op in ("relu", "clamp"):
            low, high = code_bounds(node, r.encoding())
            return x.clamp(low - r.zero_point, high - r.zero_point)
        if node.op == "pad":
            fill = float(pad_code(node, r.encoding()) - r.zero_point)
            return run_node(node.with_(attrs={**node.attrs, "value": fill}), {}, [x])
        return run_node(node, {}, [x])

    def _exact(self, node: Node) -> None:
        """Any other integer operator: the codes of its kernel, the gradient of its meaning."""
        r, real = self.ranges[node.name], self._float(node)
        if self.observe and r.follows:
            r.observe(*real.detach().aminmax())
        with torch.no_grad():
            known = {name: self.ranges[name].encoding() for name in (*node.inputs, node.name)}
            values = Values(Program(self.program.graph, self.program.outcomes, known, {}))
            for name in node.inputs:
                codes = self.code(name) + known[name].zero_point
                values.codes[name] = codes.to(known[name].format.dtype)
            execute(node, values)
            codes = values.codes[node.name].to(torch.float32) - r.zero_point
        self._round(node.name, real, codes)


_KERNELS: dict[str, Callable[[Forward, Node], None]] = {
    "conv": Forward.layer,
    "linear": Forward.layer,
    "matmul": Forward.matmul,
    "global_avg_pool": Forward.pool,
    "add": Forward.add,
    "requantize": Forward.requantize,
}


def _along(node: Node, step: Tensor, rank: int) -> Tensor:
    """Return one step, or those of the output channels, to multiply sums with."""
    if step.numel() == 1:
        return step
    axis = 1 if node.op == "conv" else rank - 1
    return step.reshape([-1 if a == axis else 1 for a in range(rank)])


def _repeats_innermost(a: Tensor, b: Tensor) -> bool:
    """As the runtime's kernel asks; see :mod:`bitsmith.numbers.integer.elementwise`."""
    for i in range(1, max(a.dim(), b.dim()) + 1):
        sizes = [t.shape[-i] if i <= t.dim() else 1 for t in (a, b)]
        if sizes != [1, 1]:
            return sizes[0] == 1
    return False
