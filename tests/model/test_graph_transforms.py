"""Channels split and rotated in whole networks: the function stays, and why streams are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitsmith.errors import CheckFailedError, InputError, SchemeError
from bitsmith.model.channel_regions import channel_regions
from bitsmith.model.graph import capture, run_float, simplify
from bitsmith.model.graph_transforms import _check_function, rotate, split_outlier_channels
from bitsmith.numbers import PerGroup, PerTensor, Scheme, fake_quantize, int4


class Bottlenecks(nn.Module):
    """A residual stream without activation, branches with one, a flattened and a pooled end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Conv2d(8, 12, 1)
        self.project = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.last = nn.Conv2d(8, 6, 3, stride=2)
        self.head = nn.Linear(6 * 9, 10)
        self.out = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(torch.relu(self.expand(x)))
        x = torch.max_pool2d(torch.relu(self.last(x)), 2, 1)[:, :, :3, :3]
        return self.out(self.head(x.flatten(1)))


def network(kind: type[nn.Module], *shape: int, seed: int = 0) -> tuple:
    torch.manual_seed(seed)
    module = kind().eval()
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() > 1 and p.shape[1] > 1:
                p[:, 1] *= 12  # an outlier among the inputs of every layer
    return simplify(capture(module, torch.randn(2, *shape))), module


def row_of(rows: list, producer: str):
    return next(r for r in rows if producer in r.producers)


def same(graph, module: nn.Module, *shape: int) -> None:
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(9))
    (found,) = run_float(graph, (x,))
    torch.testing.assert_close(found, module(x), rtol=1e-4, atol=1e-4)


def test_streams_are_followed_to_all_their_ends():
    graph, _ = network(Bottlenecks, 3, 10, 10)
    found = {r.producers[0]: r for r in channel_regions(graph)}
    stem = next(r for r in found.values() if "stem" in r.producers)
    assert (sorted(stem.producers), stem.consumers.count("expand"), stem.bends) == (
        ["project", "stem"], 1, [],
    )  # fmt: skip
    assert sorted(stem.consumers) == ["expand", "last"]
    assert (found["expand"].consumers, found["expand"].bends) == (["project"], ["expand"])
    assert (found["last"].consumers, found["last"].channels) == (["head"], 6)
    assert {p.repeat for p in found["last"].tensors.values()} == {1, 9}
    assert "output of the model" in found["out"].reasons[0]


def test_splitting_keeps_the_function_and_lowers_the_error():
    graph, module = network(Bottlenecks, 3, 10, 10)
    before = {n: t.clone() for n, t in graph.params.items()}
    new, rows = split_outlier_channels(graph, 0.1)
    same(new, module, 3, 10, 10)
    assert all(torch.equal(graph.params[n], t) for n, t in before.items())
    for producer, channels in (("stem", 9), ("expand", 14), ("last", 7), ("head", 11)):
        row = row_of(rows, producer)
        assert (row.outcome, row.new_channels, row.reason) == ("split", channels, "")
        assert row.error_after < row.error_before
        assert new.node(producer).shape[1] == channels
        assert len(new.param(new.node(producer), "weight")) == channels
    for name in ("expand", "last", "out"):
        old, wide = (g.param(g.node(name), "weight") for g in (graph, new))
        assert float(wide.abs().max()) < 0.6 * float(old.abs().max())
    refused = row_of(rows, "out")
    assert (refused.outcome, refused.error_before) == ("refused", None)
    assert "output of the model" in refused.reason


def test_the_split_network_is_better_at_4_bits():
    """4 bits per tensor for every layer that reads a stream (the first reads the model's input),
    outputs against those of the float network; sums over networks, for each has few weights.
    """
    scheme = Scheme(int4, granularity=PerTensor())
    x = torch.randn(20, 3, 10, 10, generator=torch.Generator().manual_seed(1))

    def error(g) -> float:
        read = {n.params["weight"] for n in g if "weight" in n.params and n.name != "stem"}
        params = {n: fake_quantize(t, scheme) if n in read else t for n, t in g.params.items()}
        rounded = type(g)(g.inputs, g.outputs, g.nodes, params)
        exact = run_float(g, (x,))[0]
        return float((run_float(rounded, (x,))[0] - exact).square().mean() / exact.square().mean())

    before = after = 0.0
    for seed in range(6):
        graph, _ = network(Bottlenecks, 3, 10, 10, seed=seed)
        before += error(graph)
        after += error(split_outlier_channels(graph, 0.1, scheme=scheme)[0])
    assert after < 0.7 * before


def test_rotation_takes_the_streams_without_activation():
    graph, module = network(Bottlenecks, 3, 10, 10)
    new, rows = rotate(graph, 3)
    same(new, module, 3, 10, 10)
    outcomes = {r.producers[0]: r for r in rows}
    stem = row_of(rows, "stem")
    assert (stem.outcome, stem.channels, stem.new_channels) == ("rotated", 8, 8)
    assert stem.error_after < stem.error_before
    assert row_of(rows, "head").outcome == "rotated"  # linear after linear
    assert "only copies of channels pass expand" in outcomes["expand"].reason
    assert "max_pool" in outcomes["last"].reason
    for name in ("stem", "project", "expand", "last"):
        old, turned = (g.param(g.node(name), "weight") for g in (graph, new))
        assert not torch.equal(old, turned)
    again, _ = rotate(graph, 3)
    assert all(torch.equal(again.params[n], t) for n, t in new.params.items())


class Awkward(nn.Module):
    """Streams that cannot be followed: depthwise, concatenation, shared weights, an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.tied = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.first(x))
        z = torch.cat([self.a(y), self.b(y)], 1) * 2
        y = self.c(x) + x
        z = z.mean((2, 3)) + y.mean((2, 3)).sum(1, keepdim=True)
        return self.tied(torch.relu(self.tied(z)))


@pytest.mark.parametrize("transform", [split_outlier_channels, rotate])
def test_refused_streams_say_why_and_stay(transform):
    graph, module = network(Awkward, 4, 6, 6)
    new, rows = transform(graph)
    same(new, module, 4, 6, 6)
    reasons = {p: r.reason for r in rows for p in r.producers}
    assert "depthwise reads channels in groups" in reasons["first"]
    assert "depthwise computes channels in groups" in reasons["depthwise"]
    assert "(concat) looks at channels in another way" in reasons["a"]
    assert "x is an input of the model" in reasons["c"]
    assert "other layers use the weight of tied" in reasons["tied"]
    assert all(r.outcome == "refused" and r.new_channels == r.channels for r in rows)


def test_nothing_is_done_where_it_does_not_help():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 4)
            with torch.no_grad():
                for p in self.parameters():
                    p.sign_()

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    module = Flat()
    graph = simplify(capture(module, torch.randn(2, 8)))
    for transform in (split_outlier_channels, rotate):
        new, rows = transform(graph)
        assert "would not fall" in row_of(rows, "one").reason
        assert row_of(rows, "one").error_before is not None
        assert {n: t.data_ptr() for n, t in new.params.items()} == {
            n: t.data_ptr() for n, t in graph.params.items()
        }


def test_tokens_have_their_channels_last():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 5)
            self.three = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.three(self.two(nn.functional.gelu(self.one(x))))

    graph, module = network(Tokens, 7, 6)
    new, rows = split_outlier_channels(graph, 0.2)
    same(new, module, 7, 6)
    assert [r.new_channels for r in rows] == [20, 6, 3]
    new, rows = rotate(graph)
    same(new, module, 7, 6)
    assert [r.outcome for r in rows] == ["refused", "rotated", "refused"]


def test_bad_options_and_the_check():
    graph, _ = network(Bottlenecks, 3, 10, 10)
    with pytest.raises(InputError, match="expand"):
        split_outlier_channels(graph, 0)
    with pytest.raises(InputError, match="seed"):
        rotate(graph, -1)
    with pytest.raises(SchemeError, match="per tensor or per channel"):
        split_outlier_channels(graph, scheme=Scheme(int4, granularity=PerGroup(2)))
    broken = {n: t * 1.01 for n, t in graph.params.items()}
    with pytest.raises(CheckFailedError, match="differs from the graph at output"):
        _check_function(graph, type(graph)(graph.inputs, graph.outputs, graph.nodes, broken))
