"""A quantized graph that trains: on codes with gradients, and in evaluation mode in integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from bitsmith.model.convert import IntegerLayer, layer_of
from bitsmith.model.graph.ir import Node
from bitsmith.model.graph.operators import last_uses
from bitsmith.model.qat import straight_through as through
from bitsmith.model.qat.batch_norms import FoldedNorm, NormStart, unfold
from bitsmith.model.qat.codes import WeightCodes
from bitsmith.model.qat.forward import Forward
from bitsmith.model.qat.ranges import ActivationRange
from bitsmith.model.qat.starting import real_bias, roots, starting_codes, starting_range
from bitsmith.model.qat.weights import LearnedRounding, LearnedStep
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program
from bitsmith.numbers.encoding import Encoding

__all__ = ["TrainableModel"]

_SCALES = ("log_scale", "offset", "entries")
"""Names of the parameters that are scales, zero points and tables."""


def _key(name: str) -> str:
    """A tensor's name as a module's: no dots."""
    return name.replace(".", "__")


def _require_scales(part: nn.Module, required: bool) -> None:
    for name, parameter in part.named_parameters(recurse=False):
        if name in _SCALES:
            parameter.requires_grad_(required)


def _held_again(model: nn.Module, _: Any) -> None:
    """Scales that were held when the state was saved are held again."""
    for part in cast(TrainableModel, model)._parts():
        if int(part.held):
            _require_scales(part, False)


@final
class TrainableModel(nn.Module):
    """A placed graph whose weights, biases and scales are parameters.

    In training mode the forward pass computes the integers of the runtime, in float32 tensors
    that hold them exactly, with straight-through gradients. In evaluation mode it runs
    :meth:`converted`, which is what is exported.

    Attributes:
        source: the quantized model that it started from.
        ranges: encodings of the quantized activations, by the tensor that others share it with.
        weights: codes of each layer's weight.
        biases: float bias of each layer, in real units.
        norms: batch norms that train, folded into their layers.
        drop: share of the activations that are clipped and not rounded in training (QDrop, arXiv
            2203.05740); 0 trains what is deployed.
    """

    def __init__(
        self,
        quantized: QuantizedModel,
        *,
        learn_ranges: bool = True,
        ranges: str = "lsq",
        weights: str = "lsq",
        learn_edges: bool = False,
        norms: Mapping[str, NormStart] | None = None,
    ) -> None:
        """Start from a quantized model.

        Args:
            quantized: the integers before the first step.
            learn_ranges: False: as ``ranges="fixed"``.
            ranges: how activation ranges follow: ``lsq``, ``lsq+``, ``pact``, ``moving_average`` or
                ``fixed``.
            weights: how weight scales follow: ``lsq`` or ``minmax``.
            learn_edges: train layers of 8 bits too, with codes that the machine is exact on
                whatever their neighbours are; otherwise their codes stay as they are.
            norms: batch norms to train, by the layer that they are folded into.

        Raises:
            UnknownNameError: no such ranges or weights.
        """
        super().__init__()
        self.source = quantized
        self.drop = 0.0
        program = quantized.program
        self._roots = roots(program)
        self.ranges = nn.ModuleDict()
        self.weights = nn.ModuleDict()
        self.biases = nn.ParameterDict()
        self.norms = nn.ModuleDict()
        kind = ActivationRange.registry[ranges if learn_ranges else "fixed"]
        for root in dict.fromkeys(self._roots.values()):
            self.ranges[_key(root)] = starting_range(quantized, root, kind)
        for node in program.graph:
            if node.name not in program.layers or node.op == "embedding":
                continue
            key, weight = _key(node.name), program.graph.param(node, "weight")
            assert weight is not None
            rule = starting_codes(quantized, node, weight, weights, learn_edges)
            self.weights[key] = rule
            norm = (norms or {}).get(node.name)
            if norm is not None and rule.name != "frozen":
                self.norms[key] = folded = FoldedNorm(norm)
                unfold(rule, folded, norm.weight.detach().float())
            elif program.layers[node.name].bias is not None:
                self.biases[key] = nn.Parameter(real_bias(program, node))
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]  # torch's own
            _held_again
        )
        self.train()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch leaves it untyped
    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs, with gradients in training mode.

        Neither autocast nor a compiler changes them: a kernel that fuses would round elsewhere.
        Under autocast the backward pass multiplies in the lower precision.
        """
        kind = inputs[0].device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        with torch.autocast(kind, enabled=False):
            if not self.training:
                result: Tensor | tuple[Tensor, ...] = self.converted()(*inputs)
                return result
            return self._trained(inputs, dtype)

    def _trained(
        self, inputs: Sequence[Tensor], dtype: torch.dtype | None
    ) -> Tensor | tuple[Tensor, ...]:
        state = self._pass()
        state.observe, state.dtype = torch.is_grad_enabled(), dtype
        graph = self.source.program.graph
        for declared, x in zip(graph.inputs, inputs, strict=True):
            state.reals[declared.name] = x.to(getattr(torch, declared.dtype))
        last = last_uses(graph)
        for position, node in enumerate(graph.nodes):
            state.run(node)
            for name in node.inputs:
                if last[name] <= position and name not in graph.outputs:
                    state.drop_tensor(name)
        outputs = tuple(state.real(o) for o in graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def part(self, nodes: Sequence[Node], name: str, codes: Tensor, output: str) -> Tensor:
        """Return the real values of ``output``, computed by ``nodes`` from one tensor.

        Args:
            nodes: a stretch of the graph that reads nothing but ``name``.
            name: a tensor.
            codes: its centred codes, float32, which need not be whole; of one that is not
                quantized its values.
            output: computed by one of the nodes.
        """
        state = self._pass()
        (state.codes if name in self._roots else state.reals)[name] = codes
        for node in nodes:
            state.run(node)
        return state.real(output)

    def centred(self, name: str, x: Tensor) -> Tensor:
        """Return the centred codes of real values of the quantized tensor ``name``."""
        r = self.range_of(name)
        return through.quantize_real(x, r.scale(), r.low, r.high)

    @torch.no_grad()
    def program(self) -> Program:
        """Return the integers of the present parameters."""
        before = self.source.program
        encodings = {tensor: self.range_of(tensor).encoding() for tensor in self._roots}
        layers = dict(before.layers)
        for name in self.layer_names():
            node = before.graph.node(name)
            assert node is not None
            layers[name] = self._integer_layer(node, encodings[node.inputs[0]])
        return Program(before.graph, before.outcomes, encodings, layers)

    def converted(self) -> QuantizedModel:
        """Return the quantized model of the present parameters: what is exported."""
        s = self.source
        return QuantizedModel(self.program(), s.recipe, s.target, s.machine, dict(s.provenance))

    def range_of(self, name: str) -> ActivationRange:
        """Return the range of a quantized tensor."""
        return cast(ActivationRange, self.ranges[_key(self._roots[name])])

    def layer_names(self) -> list[str]:
        """Return the layers whose codes train or are frozen, in order."""
        return [n.name for n in self.source.program.graph if _key(n.name) in self.weights]

    def codes_of(self, name: str) -> WeightCodes:
        """Return what makes the codes of a layer, or will again when its rounding is learned."""
        rule = self.weights[_key(name)]
        return rule.step if isinstance(rule, LearnedRounding) else cast(WeightCodes, rule)

    def bias_of(self, name: str) -> nn.Parameter | None:
        """Return the bias of a layer that trains."""
        bias: nn.Parameter | None = self.biases.get(_key(name), None)
        return bias

    def norm_of(self, name: str) -> FoldedNorm | None:
        """Return the batch norm that trains with a layer."""
        return cast(FoldedNorm, self.norms[_key(name)]) if _key(name) in self.norms else None

    @torch.no_grad()
    def effective_weight(self, name: str) -> Tensor:
        """Return the float weight that is rounded."""
        own, norm = self.codes_of(name).own, self.norm_of(name)
        return own if norm is None else norm.folded(own)[0]

    def own_ranges(self) -> dict[str, ActivationRange]:
        """Return the ranges, by the tensor whose own they are."""
        return {root: self.range_of(root) for root in dict.fromkeys(self._roots.values())}

    def weights_of(self, layers: Sequence[str]) -> list[nn.Parameter]:
        """Return the parameters that make the codes of ``layers``."""
        return [p for name in layers for p in self.weights[_key(name)].parameters()]

    def biases_of(self, layers: Sequence[str]) -> list[nn.Parameter]:
        """Return the biases of ``layers``."""
        return [self.biases[_key(name)] for name in layers if _key(name) in self.biases]

    def scales_of(self, nodes: Sequence[Node]) -> list[nn.Parameter]:
        """Return the scales that train of the tensors that ``nodes`` compute."""
        owners = dict.fromkeys(self.range_of(n.name) for n in nodes if n.name in self._roots)
        return [p for r in owners for p in r.parameters() if p.requires_grad]

    def hold_scales(self, held: bool) -> None:
        """Keep scales, zero points and tables while the weights train on; or let them go."""
        for part in self._parts():
            part.held.fill_(int(held))
            _require_scales(part, not held)

    def _parts(self) -> list[WeightCodes | ActivationRange]:
        codes = [self.codes_of(name) for name in self.layer_names()]
        return [*codes, *self.own_ranges().values()]

    def learn_rounding(self, layers: Sequence[str]) -> dict[str, LearnedRounding]:
        """Replace learned steps by learned roundings, until :meth:`end_rounding`."""
        found = {}
        for name in layers:
            step = self.weights[_key(name)]
            if isinstance(step, LearnedStep) and _key(name) not in self.norms:
                found[name] = self.weights[_key(name)] = LearnedRounding(step)
        return found

    def end_rounding(self, learned: Mapping[str, LearnedRounding]) -> None:
        """Make what was learned final."""
        for name, rounding in learned.items():
            self.weights[_key(name)] = rounding.harden()

    def _pass(self) -> Forward:
        return Forward(
            self.source.program,
            {tensor: self.range_of(tensor) for tensor in self._roots},
            {name: cast(WeightCodes, self.weights[_key(name)]) for name in self.layer_names()},
            {n: self.biases[_key(n)] for n in self.layer_names() if _key(n) in self.biases},
            {n: norm for n in self.layer_names() if (norm := self.norm_of(n)) is not None},
            self.drop,
        )

    def _integer_layer(self, node: Node, x: Encoding) -> IntegerLayer:
        source = self.source.program
        before, weight = source.layers[node.name], source.graph.param(node, "weight")
        assert weight is not None
        rule, norm = cast(WeightCodes, self.weights[_key(node.name)]), self.norm_of(node.name)
        bias: Tensor | None = self.bias_of(node.name)
        if norm is None:
            codes = rule.frozen()
        else:
            own, size, bias = norm.folded(rule.own)
            codes = rule.frozen(own)
            codes = replace(codes, scale=codes.scale * size.reshape(codes.scale.shape))
        error = float((weight - codes.dequantize()).double().square().mean())
        table_bits = None if before.table is None else before.bits
        return layer_of(node, codes, bias, x, error, before.nearest_error, table_bits=table_bits)
