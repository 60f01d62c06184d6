"""The stream of tensors that exporters read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitsmith.deploy.export import export_module
from bitsmith.errors import ExportError, InputError
from bitsmith.model.stream import weight_stream
from bitsmith.model.weights import quantize_weights
from bitsmith.numbers.qtensor import QTensor


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 32)
        self.inner = nn.ModuleList([nn.Linear(32, 32), nn.LSTM(32, 32)])
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mean", torch.zeros(3))


def test_names_are_those_of_the_float_model_and_ties_appear_once() -> None:
    net = Tied()
    stream = weight_stream(quantize_weights(net, "W8A8-dynamic"))
    assert set(stream) == set(net.state_dict()) - {"head.weight"}
    assert len(stream) == len(list(stream))
    assert stream.tied == {"head.weight": "table.weight"}
    assert sorted(stream.linears) == ["head", "inner.0"]
    assert stream.embeddings == ["table"]
    assert set(stream.dynamic) == {"inner.0.weight", "table.weight"}
    for name, value in stream.items():
        expected = net.state_dict()[name]
        assert value.shape == expected.shape
        if isinstance(value, QTensor):
            assert float((value.dequantize() - expected).abs().max()) < 0.05
        else:
            assert torch.equal(value, expected)


def test_a_model_that_is_not_quantized_is_refused() -> None:
    with pytest.raises(InputError, match="no packed weights"):
        weight_stream(nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_padded_rows_are_refused_where_the_shape_matters(name: str, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(172, 32), nn.Linear(32, 32))
    quantized = quantize_weights(net, "Q4_0" if name == "m.gguf" else "W4G32", ragged="pad")
    assert weight_stream(quantized).padded == ["0.weight"]
    kind = {} if name == "m.gguf" else {"format": "compressed-tensors"}
    with pytest.raises(ExportError, match=r"0\.weight: its rows were padded"):
        export_module(quantized, tmp_path / name, **kind)
    assert not list(tmp_path.iterdir())
