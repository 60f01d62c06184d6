"""Which ATen calls become which words, with which attributes; the rest is carried as it is."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.model.graph import Graph, capture, run_float


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def captured(function: Callable[[Tensor], Tensor], *shape: int) -> Graph:
    """The captured graph, checked on a batch of another size."""
    graph = capture(Function(function), torch.randn(3, *(shape or (8, 6, 10))))
    x = torch.randn(5, *(shape or (8, 6, 10)))
    with torch.no_grad():
        torch.testing.assert_close(run_float(graph, [x])[0], function(x))
    return graph


WORDS: dict[str, tuple[Callable[[Tensor], Tensor], str, dict[str, object]]] = {
    "relu6": (F.relu6, "clamp", {"low": 0.0, "high": 6.0}),
    "hardtanh": (F.hardtanh, "clamp", {"low": -1.0, "high": 1.0}),
    "clamp_min": (lambda x: x.clamp_min(0.5), "clamp", {"low": 0.5, "high": None}),
    "clip": (lambda x: x.clip(-1, 2), "clamp", {"low": -1.0, "high": 2.0}),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.2), "leaky_relu", {"slope": 0.2}),
    "gelu": (F.gelu, "gelu", {"approximate": "none"}),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu", {"approximate": "tanh"}),
    "softmax": (lambda x: x.softmax(-2), "softmax", {"axis": 2}),
    "max pool": (
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), "max_pool",
        {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1],
         "ceil_mode": True},
    ),
    "avg pool": (
        lambda x: F.avg_pool2d(x, (2, 3), count_include_pad=False), "avg_pool",
        {"kernel": [2, 3], "stride": [2, 3], "padding": [0, 0], "ceil_mode": False,
         "count_include_pad": False},
    ),
    "adaptive to 1": (lambda x: F.adaptive_avg_pool2d(x, 1), "global_avg_pool", {}),
    "adaptive to a divisor": (
        lambda x: F.adaptive_avg_pool2d(x, (3, 2)), "avg_pool",
        {"kernel": [2, 5], "stride": [2, 5], "padding": [0, 0], "ceil_mode": False,
         "count_include_pad": True},
    ),
    "mean": (lambda x: x.mean((-1, 2)), "mean", {"axes": [2, 3], "keepdim": False}),
    "view": (lambda x: x.view(-1, 480), "reshape", {"shape": [-1, 480]}),
    "flatten": (lambda x: x.flatten(1), "reshape", {"shape": [-1, 480]}),
    "flatten of the batch": (lambda x: x.flatten(0, 1), "reshape", {"shape": [-1, 6, 10]}),
    "unflatten": (lambda x: x.unflatten(1, (2, 4)), "reshape", {"shape": [-1, 2, 4, 6, 10]}),
    "unsqueeze": (lambda x: x.unsqueeze(-1), "reshape", {"shape": [-1, 8, 6, 10, 1]}),
    "permute": (lambda x: x.permute(0, 2, 3, -3), "transpose", {"perm": [0, 2, 3, 1]}),
    "transpose": (lambda x: x.transpose(-1, 1), "transpose", {"perm": [0, 3, 2, 1]}),
    "slice": (
        lambda x: x[..., -7:-1:2], "slice", {"axis": 3, "start": 3, "end": 9, "step": 2},
    ),
    "narrow": (lambda x: x[:, 2:5], "slice", {"axis": 1, "start": 2, "end": 5, "step": 1}),
    "pad": (lambda x: F.pad(x, (1, 2, 3, 4)), "pad", {"pads": [1, 2, 3, 4], "value": 0.0}),
    "pad with a value": (
        lambda x: F.pad(x, (1, 0), value=2.0), "pad", {"pads": [1, 0], "value": 2.0},
    ),
    "nearest by a factor": (
        lambda x: F.interpolate(x, scale_factor=2), "upsample_nearest", {"scale": [2, 2]},
    ),
    "nearest to a size": (
        lambda x: F.interpolate(x, size=(12, 30)), "upsample_nearest", {"scale": [2, 3]},
    ),
    "concat": (lambda x: torch.cat([x, x], -1), "concat", {"axis": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_words(name):
    function, op, attrs = WORDS[name]
    (node,) = captured(function)
    assert (node.op, node.attrs) == (op, attrs)


SEVERAL: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "chunk": (lambda x: x.chunk(2, 1)[1], ["slice"]),
    "split by sizes": (lambda x: x.split([3, 5], 1)[0], ["slice"]),
    "select": (lambda x: x[:, -1], ["slice", "reshape"]),
    "unbind": (lambda x: x.unbind(1)[2], ["slice", "reshape"]),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), ["reshape", "transpose", "reshape"]),
    "rsub": (lambda x: 1.0 - x, ["constant", "sub"]),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x),
        ["transpose", "constant", "mul", "matmul", "softmax", "matmul"],
    ),
    "nothing": (lambda x: x.contiguous().float().detach() + 0.5, ["constant", "add"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_several_nodes(name):
    function, expected = SEVERAL[name]
    assert [n.op for n in captured(function)] == expected


CARRIED: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda x: x.cumsum(1),
    "add with alpha": lambda x: torch.add(x, x, alpha=2),
    "floor division": lambda x: torch.div(x, 2.0, rounding_mode="floor"),
    "adaptive pool of unlike windows": lambda x: F.adaptive_avg_pool2d(x, 4),
    "average with a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest by 1.5": lambda x: F.interpolate(x, scale_factor=1.5),
    "nearest, smaller": lambda x: F.interpolate(x, scale_factor=0.5),
    "negative pad": lambda x: F.pad(x, (-1, 0)),
    "reflecting pad": lambda x: F.pad(x, (1, 1, 1, 0), mode="reflect"),
    "clamp between tensors": lambda x: torch.clamp(x, x * 0, x * 2),
    "mean of everything": lambda x: x + x.mean(),
    "attention with a mask": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "expand": lambda x: x[:, :1].expand(-1, 8, -1, -1),
    "matrix times vector": lambda x: torch.matmul(x, torch.ones(10)),
}


@pytest.mark.parametrize("name", CARRIED)
def test_carried(name):
    graph = captured(CARRIED[name])
    carried = [n for n in graph if n.op == "aten"]
    assert carried
    assert all(n.attrs["target"].startswith("aten.") for n in carried)
    assert all(n.source.startswith("test_lower.py:") for n in carried)
    assert all(json.loads(json.dumps(n.attrs)) == n.attrs for n in carried)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    model = nn.Conv2d(8, 4, (3, 5), padding=padding, dilation=(2, 1))
    (node,) = capture(model, torch.randn(2, 8, 12, 12))
    assert node.op == "conv"
    assert node.attrs["padding"] == ([2, 2] if padding == "same" else [0, 0])


def test_a_sum_of_integers_is_not_quantizable():
    graph = captured(lambda x: (x > 0).long() + 1)
    assert [n.op for n in graph][-1] == "aten"


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: torch.multiply(x, x), "mul"),
        (lambda x: torch.subtract(x, x), "sub"),
        (lambda x: torch.true_divide(x, x), "div"),
        (lambda x: torch.concatenate([x, x], 1), "concat"),
        (lambda x: x.swapaxes(1, 2), "transpose"),
    ],
)
def test_other_names(function, op):
    assert [n.op for n in captured(function)] == [op]


def test_a_weight_that_is_computed_leaves_the_layer_float():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3))
    graph = capture(layer, torch.randn(2, 8, 6, 6))
    assert [n.attrs["target"] for n in graph if n.op == "aten"][-1] == "aten.conv2d.default"
