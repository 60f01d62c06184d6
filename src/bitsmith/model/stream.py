"""A quantized module as a stream of named tensors: what exporters of the module lane read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

from torch import Tensor, nn

from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.store.survey import Survey, survey
from bitsmith.numbers.qtensor import QTensor

__all__ = ["WeightStream", "weight_stream"]


@final
class WeightStream(Mapping[str, "QTensor | Tensor"]):
    """Parameter name of the float model → quantized tensor or float tensor.

    Quantized tensors are unpacked when they are asked for and not kept, so going through the
    stream holds one at a time. A tied weight appears once, under its first name.

    Attributes:
        linears: names of the linear layers, packed or not.
        embeddings: names of the embeddings, packed or not.
        dynamic: names of weights whose inputs are quantized token by token.
        scaled: names of linear layers that divide their input by scales of their own.
        padded: names of weights whose rows are longer here than in the layer.
        tied: other names of weights that appear once → the name they appear under.
    """

    def __init__(self, model: nn.Module, found: Survey) -> None:
        self._weights = found.weights
        self._floats = {name: found.tensors[name] for name in found.tensors}
        kinds = {"linear": [], "embedding": []}  # type: dict[str, list[str]]
        self.dynamic: list[str] = []
        self.scaled = [
            name
            for name, module in model.named_modules()
            if isinstance(module, QuantLinear) and module.input_scale is not None
        ]
        self.padded = [
            name
            for name, weight in found.weights.items()
            if weight.shape[1:].numel() != weight.stored_shape[1]
        ]
        self.tied: dict[str, str] = {}
        for path, layer in found.layers.items():
            if layer.kind in kinds:
                kinds[layer.kind].append(path)
            for leaf, name in layer.weights.items():
                own = f"{path}.{leaf}" if path else leaf
                if own != name:
                    self.tied[own] = name
                if layer.activation is not None:
                    self.dynamic.append(name)
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                kinds["linear"].append(path)
            elif isinstance(module, nn.Embedding):
                kinds["embedding"].append(path)
        self.tied |= {n: e.tensor for n, e in found.floats.items() if e.tensor != n}
        self.linears, self.embeddings = kinds["linear"], kinds["embedding"]

    def __getitem__(self, name: str) -> QTensor | Tensor:
        if name in self._weights:
            return self._weights[name].qtensor()
        return self._floats[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._weights, *self._floats])

    def __len__(self) -> int:
        return len(self._weights) + len(self._floats)


def weight_stream(model: nn.Module) -> WeightStream:
    """Return the tensors of a model of the module lane.

    Raises:
        InputError: the model has no packed weights.

    >>> from bitsmith.model.weights import quantize_weights
    >>> stream = weight_stream(quantize_weights(nn.Sequential(nn.Linear(32, 4)), "W8"))
    >>> list(stream), stream["0.weight"].scheme.format
    (['0.weight', '0.bias'], int8)
    """
    return WeightStream(model, survey(model))
