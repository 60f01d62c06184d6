"""Training with one scale for a whole weight: what trains is what deploys, at every rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitsmith.model.qat import convert, fit, prepare
from bitsmith.model.qat.schedule import set_bits


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def network() -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 5)).eval()


@pytest.mark.parametrize("weights", ["lsq", "minmax"])
@pytest.mark.parametrize("recipe", ["W8A8-pertensor", "W4A8-pertensor", "W4A8-pertensor-edge8"])
def test_one_scale_stays_one_scale(
    network: nn.Module, images: Tensor, recipe: str, weights: str
) -> None:
    model = prepare(network, recipe, images.split(32), weights=weights)
    run = fit(model, images.split(32), epochs=3, progress=False)
    assert run.history[-1].loss > 0
    model.train()
    deployed = convert(model)
    assert torch.equal(model(images), deployed(images))
    assert {q.weight.scale.numel() for q in deployed.program.layers.values()} == {1}


def test_widths_change_with_one_scale(network: nn.Module, images: Tensor) -> None:
    model = prepare(network, "W4A8-pertensor", images.split(32))
    for bits in (8, 5, 4):
        set_bits(model, bits)
        model.train()
        assert bool(torch.isfinite(torch.as_tensor(model(images))).all())
    assert torch.equal(model(images), convert(model)(images))
