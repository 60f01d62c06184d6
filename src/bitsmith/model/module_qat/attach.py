"""Put weight quantizers into layers, and take them out again.

The mechanism is :mod:`torch.nn.utils.parametrize`: the layer keeps its class, its hooks and its
other parameters, and reading ``layer.weight`` computes the quantized values from
``layer.parametrizations.weight.original``. Two kinds of layer need more: recurrent ones, which
keep a list of their weights that would go stale, and linear ones with quantized inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from bitsmith.errors import InputError
from bitsmith.model.module_qat.integers import integer_linear, through_codes
from bitsmith.model.module_qat.levels import not_finite
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.numbers.scheme import Scheme

__all__ = ["DENSE", "attach", "detach", "fused_layers", "quantizer_of"]

_FUSED = "_bitsmith_fused"

DENSE = "its gradient is dense, not sparse"
"""What is said of an embedding that asked for sparse gradients: those of quantizers are not."""


def attach(
    module: nn.Module, quantizers: dict[str, WeightQuantizer], activation: Scheme | None
) -> None:
    """Let the weights of a layer be computed by quantizers, in place.

    Args:
        module: a layer.
        quantizers: name of the weight in it → its quantizer; a dot leads into a submodule.
        activation: scheme of its inputs; only where it computes as ``nn.Linear`` does.
    """
    layer: nn.Module = module
    if isinstance(layer, nn.RNNBase):
        for name in ("_flat_weights", "_flat_weight_refs"):
            layer.__dict__.pop(name, None)
        module.__class__ = _reads_anew(type(module))
    elif activation is not None:
        module.__class__ = _in_integers(type(module))
        module.__dict__["activation"] = activation
    elif isinstance(module, nn.Embedding):
        module.sparse = False
        for quantizer in quantizers.values():
            quantizer.renewed |= module.max_norm is not None
    for name, quantizer in quantizers.items():
        path, _, leaf = name.rpartition(".")
        holder = module.get_submodule(path)
        parametrize.register_parametrization(
            holder, leaf, quantizer.train(holder.training), unsafe=True
        )


def detach(module: nn.Module) -> dict[str, WeightQuantizer]:
    """Give a layer its float weights and its class back; returns leaf → quantizer.

    Not by ``remove_parametrizations``: that edits the class, which copies of the layer share.

    Raises:
        InputError: something in the layer has another parametrization as well.
    """
    found: dict[str, WeightQuantizer] = {}
    if not parametrize.is_parametrized(module):
        return found
    parts: Any = module.parametrizations
    found = {leaf: p[0] for leaf, p in parts.items() if isinstance(p[0], WeightQuantizer)}
    if not found:
        return found
    if others := [leaf for leaf, p in parts.items() if leaf not in found or len(p) > 1]:
        first = next(iter(found.values())).label
        raise InputError(
            f"beside the quantizer of {first} there are other parametrizations: of "
            f"{', '.join(others)}; remove them first"
        )
    originals = {leaf: parts[leaf].original for leaf in found}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    derived = getattr(type(module), "_bitsmith_derived", False)
    if derived:
        module.__dict__.pop("activation", None)
        module.__class__ = type(module).__bases__[0]
    for leaf, original in originals.items():
        module.register_parameter(leaf, original)
    if isinstance(module, nn.RNNBase):
        module._flat_weight_refs = []
        module._init_flat_weights()
    return found


def fused_layers(model: nn.Module, allowed: bool) -> None:
    """Let transformer layers use PyTorch's fused kernel in evaluation, or not.

    It reads the weights past the layers that hold them, and so past the quantization of their
    inputs; a layer with packed weights never uses it.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            if allowed:
                module.activation_relu_or_gelu = module.__dict__.pop(_FUSED, 0)
            else:
                module.__dict__.setdefault(_FUSED, module.activation_relu_or_gelu)
                module.activation_relu_or_gelu = 0


def quantizer_of(module: nn.Module, leaf: str) -> WeightQuantizer:
    """Return the quantizer of a weight in training."""
    parts: Any = module.parametrizations
    quantizer = parts[leaf][0]
    assert isinstance(quantizer, WeightQuantizer)
    return quantizer


def _reads_anew(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a recurrent class that computes its weights in every forward pass.

    ``nn.LSTM`` hands a list of its weights to the kernel and keeps it up to date when one is
    assigned. Weights that are computed are never assigned: here the list is made when it is read.
    """

    def read(self: Any) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def ignore(self: Any, *_: Any) -> None:
        """Nothing is kept, so nothing has to be brought up to date."""

    body = {
        "_flat_weights": property(read, ignore),
        "_init_flat_weights": ignore,
        "_update_flat_weights": ignore,
        "flatten_parameters": ignore,
        "_bitsmith_derived": True,
    }
    return type(cls.__name__, (cls,), body)


def _in_integers(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a linear class that quantizes its inputs and computes in integers."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch leaves it untyped
    def forward(self: Any, x: Tensor) -> Tensor:
        quantizer, weight = quantizer_of(self, "weight"), self.weight
        if self.training and (not_finite(x.detach()) or not_finite(weight.detach())):
            return functional.linear(x, weight, self.bias)  # the loss shows that it diverged
        if quantizer.mixed:
            return functional.linear(through_codes(x, self.activation), weight, self.bias)
        q = quantizer.qtensor(quantizer.flat(self.parametrizations.weight.original.detach()))
        return integer_linear(x, weight, self.bias, q, self.activation)

    return type(cls.__name__, (cls,), {"forward": forward, "_bitsmith_derived": True})
