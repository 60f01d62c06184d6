"""Blocks of a graph, and tuning them one after another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitsmith.errors import DataError, InputError
from bitsmith.model.graph import capture, simplify
from bitsmith.model.ptq import ptq
from bitsmith.model.qat.reconstruct import Reconstruction, reconstruct
from bitsmith.model.qat.segments import segments
from bitsmith.model.qat.trainable import TrainableModel


class Residual(nn.Module):
    """Two residual blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        x = torch.relu(self.c(x) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def samples() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


def test_a_residual_block_is_one_segment(network: nn.Module, samples: Tensor) -> None:
    graph = simplify(capture(network, samples[:2]))
    found = segments(graph, [n.name for n in graph if n.op in ("conv", "linear")])
    layers = [[n.name for n in s.nodes if n.op in ("conv", "linear")] for s in found]
    assert layers == [["stem"], ["a", "b"], ["c"], ["head"]]
    assert [n for s in found for n in s.nodes] == list(graph.nodes)
    assert [s.input for s in found[1:]] == [s.output for s in found[:-1]]


def test_a_graph_of_two_inputs_has_no_segments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc(a + b)

    graph = simplify(capture(Two(), [torch.randn(2, 4), torch.randn(2, 4)]))
    assert segments(graph, ["fc"]) == []


@pytest.mark.parametrize("learn", ["weights", "rounding"])
@pytest.mark.parametrize("recipe", ["W2A8-edge8", "W3A4"])
def test_every_block_is_nearer_to_float_or_as_it_was(
    network: nn.Module, samples: Tensor, recipe: str, learn: str
) -> None:
    model = TrainableModel(ptq(network, recipe, samples.split(32)))
    told: list[int] = []
    how = Reconstruction(steps=100, batch_size=32, learn=learn)  # type: ignore[arg-type]  # a test's parameter
    rows = reconstruct(model, samples, how, advance=told.append)
    assert [row.layers for row in rows] == [("stem",), ("a", "b"), ("c",), ("head",)]
    assert all(row.kept == (row.after < row.before) != bool(row.reason) for row in rows)
    assert any(row.kept for row in rows)
    edges = ("stem", "head") if recipe.endswith("edge8") else ()
    assert tuple(name for row in rows for name in row.frozen) == edges
    assert sum(told) == 100 * sum(row.seconds > 0 for row in rows)
    assert torch.equal(model.train()(samples), model.eval()(samples))


def test_the_same_seed_gives_the_same_codes(network: nn.Module, samples: Tensor) -> None:
    found = []
    for _ in range(2):
        model = TrainableModel(ptq(network, "W2A8", samples.split(32)))
        reconstruct(model, samples, Reconstruction(steps=8, batch_size=16), seed=3)
        found.append(model.eval()(samples))
    assert torch.equal(*found)


def test_learned_rounding_goes_up_or_down_and_no_further(
    network: nn.Module, samples: Tensor
) -> None:
    model = TrainableModel(ptq(network, "W2A4", samples.split(32)))
    before = {n: layer.weight.codes.clone() for n, layer in model.program().layers.items()}
    reconstruct(model, samples, Reconstruction(steps=100, lr=0.1, learn="rounding"))
    after = {n: layer.weight.codes for n, layer in model.program().layers.items()}
    moved = torch.cat([(after[n] - before[n]).flatten() for n in before])
    assert set(moved.tolist()) <= {-1, 0, 1}
    assert bool((moved != 0).any())


def test_too_few_samples_and_bad_settings(network: nn.Module, samples: Tensor) -> None:
    model = TrainableModel(ptq(network, "W2A8", samples.split(32)))
    with pytest.raises(DataError, match="draws 32 samples a step, and there are 5"):
        reconstruct(model, samples[:5])
    with pytest.raises(InputError, match="at least one step"):
        Reconstruction(steps=0)
    with pytest.raises(InputError, match="'weights' or 'rounding'"):
        Reconstruction(learn="codes")  # type: ignore[arg-type]  # on purpose
