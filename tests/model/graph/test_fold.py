"""Every rewrite leaves the float function as it is, with batch norms of random statistics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.model.graph import Graph, capture, run_float, simplify
from networks.harness import randomised

IMAGE = (3, 8, 7, 9)


class Wrapped(nn.Module):
    """A function with modules of its own."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def simplified(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> Graph:
    """Capture, simplify, and check that the function is preserved in float64-folded float32."""
    torch.manual_seed(0)
    model = randomised(model)
    x = torch.randn(shape)
    graph = simplify(capture(model, x))
    other = torch.randn(5, *shape[1:])
    with torch.no_grad():
        for value in (x, other):
            torch.testing.assert_close(
                run_float(graph, [value])[0], model(value), rtol=2e-5, atol=2e-5
            )
    return graph


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph if n.op != "constant"]


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


BN2, BN1 = nn.BatchNorm2d, nn.BatchNorm1d
FOLDED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "conv → bn": (lambda: chain(nn.Conv2d(8, 6, 3), BN2(6)), IMAGE, ["conv"]),
    "conv → bn, no bias, groups": (
        lambda: chain(nn.Conv2d(8, 6, 3, groups=2, bias=False), BN2(6)), IMAGE, ["conv"],
    ),
    "conv → bn without affine": (
        lambda: chain(nn.Conv2d(8, 6, 3), BN2(6, affine=False)), IMAGE, ["conv"],
    ),
    "conv → bn → bn": (lambda: chain(nn.Conv2d(8, 6, 3), BN2(6), BN2(6)), IMAGE, ["conv", "conv"]),
    "conv1d → bn": (lambda: chain(nn.Conv1d(8, 6, 3), BN1(6)), (3, 8, 9), ["conv"]),
    "linear → bn": (lambda: chain(nn.Linear(8, 6), BN1(6)), (3, 8), ["linear"]),
    "linear without bias → bn": (
        lambda: chain(nn.Linear(8, 6, bias=False), BN1(6)), (3, 8), ["linear"],
    ),
    # On [B, C, L] a bn normalises C, and the layer computes L.
    "linear on three axes → bn": (
        lambda: chain(nn.Linear(9, 6), BN1(8)), (3, 8, 9), ["linear", "conv"],
    ),
    "transposed conv → bn": (
        lambda: chain(nn.ConvTranspose2d(8, 6, 2, 2), BN2(6)), IMAGE, ["conv_transpose"],
    ),
    "transposed conv → bn, groups": (
        lambda: chain(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1, groups=2, bias=False), BN2(6)), IMAGE,
        ["conv_transpose"],
    ),
    "bn → conv without padding": (lambda: chain(BN2(8), nn.Conv2d(8, 6, 3)), IMAGE, ["conv"]),
    "bn → conv without padding, groups": (
        lambda: chain(BN2(8), nn.Conv2d(8, 6, 3, groups=2, bias=False)), IMAGE, ["conv"],
    ),
    # A padded 0 is not a normalised 0: the bn stays, as a depthwise convolution.
    "bn → conv with padding": (
        lambda: chain(BN2(8), nn.Conv2d(8, 6, 3, padding=1)), IMAGE, ["conv", "conv"],
    ),
    "bn → transposed conv": (
        lambda: chain(BN2(8), nn.ConvTranspose2d(8, 6, 2)), IMAGE, ["conv", "conv_transpose"],
    ),
    "bn → linear": (lambda: chain(BN1(8), nn.Linear(8, 6)), (3, 8), ["linear"]),
    "bn → linear without bias": (
        lambda: chain(BN1(8), nn.Linear(8, 6, bias=False)), (3, 8), ["linear"],
    ),
    "bn → linear on three axes": (
        lambda: chain(BN1(8), nn.Linear(9, 6)), (3, 8, 9), ["conv", "linear"],
    ),
    "bn alone": (lambda: BN2(8), IMAGE, ["conv"]),
    "bn alone, on sequences": (lambda: BN1(8), (3, 8, 9), ["conv"]),
    "bn alone, on rows": (lambda: BN1(8), (3, 8), ["batch_norm"]),
    "conv → bn → relu → conv → bn": (
        lambda: chain(nn.Conv2d(8, 6, 3), BN2(6), nn.ReLU(), nn.Conv2d(6, 4, 3), BN2(4)), IMAGE,
        ["conv", "conv"],
    ),
    "conv read twice → bn": (
        lambda: Wrapped(lambda x, c, b: b(y := c(x)) * y, nn.Conv2d(8, 6, 3), BN2(6)), IMAGE,
        ["conv", "conv", "mul"],
    ),
    "bn read twice → conv": (
        lambda: Wrapped(lambda x, b, c: c(y := b(x)) + y.mean(), BN2(8), nn.Conv2d(8, 6, 3)),
        IMAGE, ["conv", "conv", "aten", "add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_batch_norms(name):
    build, shape, expected = FOLDED[name]
    assert ops(simplified(build(), shape)) == expected


def test_a_convolution_used_twice_keeps_its_own_weight():
    conv, norm = nn.Conv2d(8, 8, 1), BN2(8)
    graph = simplified(Wrapped(lambda x, c, b: c(b(c(x))), conv, norm))
    assert ops(graph) == ["conv", "conv"]
    assert graph.nodes[0].params["weight"] != graph.nodes[1].params["weight"]


def test_negative_batch_norm_scales_are_folded_with_their_sign():
    model = chain(nn.Conv2d(8, 6, 1), BN2(6), nn.ReLU())
    model[1].weight.data.fill_(-1.0)
    assert ops(simplify(capture(model.eval(), torch.randn(IMAGE)))) == ["conv"]


REWRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "mean → pool": (lambda x: x.mean((2, 3), keepdim=True), ["global_avg_pool"]),
    "mean without keepdim": (lambda x: x.mean((-1, -2)), ["global_avg_pool", "reshape"]),
    "mean over one axis": (lambda x: x.mean(3), ["mean"]),
    "mean over the channels": (lambda x: x.mean(1), ["mean"]),
    "relu over max pool": (
        lambda x: F.relu(F.max_pool2d(x + 1.0, 2)), ["add", "max_pool"],
    ),
    "relu6 over padded max pool": (
        lambda x: F.relu6(F.max_pool2d(x + 1.0, 3, 2, 1)), ["add", "max_pool"],
    ),
    "relu over moves": (
        lambda x: F.relu((x + 1.0).transpose(2, 3)[:, ::2].flatten(1)),
        ["add", "transpose", "slice", "reshape"],
    ),
    "relu over pad with zero": (lambda x: F.relu(F.pad(x + 1.0, (1, 1))), ["add", "pad"]),
    # A pad with −1 puts in what relu would make 0.
    "relu over pad with another value": (
        lambda x: F.relu(F.pad(x + 1.0, (1, 1), value=-1.0)), ["add", "pad", "relu"],
    ),
    "relu over a read max pool": (
        lambda x: F.relu(y := F.max_pool2d(x + 1.0, 2)) + y, ["add", "max_pool", "relu", "add"],
    ),
    "two relus": (lambda x: F.relu(F.relu6(x + 1.0)), ["add", "relu"]),
    "clamp(−1, 1) stays": (lambda x: (x + 1.0).clamp(-1, 1), ["add", "clamp"]),
    "clamp(0, …) of a sum": (lambda x: (x + 1.0).clamp(min=0), ["add"]),
    "relu of an input": (lambda x: F.relu(x) + 1.0, ["relu", "add"]),
    "empty reshape": (lambda x: x.view(x.shape[0], 8, 7, 9) + 1.0, ["add"]),
    "a gate on the left": (lambda x: x.mean((2, 3), keepdim=True) * x, ["global_avg_pool", "mul"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_other_rewrites(name):
    function, expected = REWRITTEN[name]
    assert ops(simplified(Wrapped(function))) == expected


def test_the_broadcast_operand_comes_second():
    graph = simplified(Wrapped(lambda x: x.mean((2, 3), keepdim=True) * x))
    assert graph.nodes[-1].inputs == (graph.inputs[0].name, graph.nodes[0].name)


def test_a_fused_relu_keeps_its_bounds():
    graph = simplified(Wrapped(lambda x: F.relu6(x + 1.0)))
    assert graph.nodes[-1].attrs["activation"] == [0.0, 6.0]


def test_an_output_is_not_fused_away():
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x + 1.0
            return y, F.relu(y)

    x = torch.randn(IMAGE)
    graph = simplify(capture(Both(), x))
    assert ops(graph) == ["add", "relu"]
    for ours, theirs in zip(run_float(graph, [x]), Both()(x), strict=True):
        assert torch.equal(ours, theirs)


def test_parameters_that_are_not_read_any_more_are_dropped():
    graph = simplified(chain(nn.Conv2d(8, 6, 3), BN2(6)))
    assert sorted(graph.params) == ["0.folded_bias", "0.folded_weight"]


def test_what_only_constants_enter_is_computed_once():
    def turned(x: Tensor) -> Tensor:
        angles = torch.pow(10.0, -torch.arange(0, 9, 2) / 9).cos()
        return x[..., ::2] * angles

    graph = simplified(Wrapped(turned))
    assert [n.op for n in graph] == ["constant", "slice", "mul"]
    (value,) = graph.params.values()
    torch.testing.assert_close(value, (10.0 ** (-torch.arange(0, 9, 2) / 9)).cos())


def test_random_numbers_are_not_frozen():
    graph = simplify(capture(Wrapped(lambda x: x + torch.rand(9)), torch.randn(IMAGE), check=False))
    assert [n.op for n in graph] == ["aten", "add"]
