"""Saturation for real: files made for a machine, run on a machine without VNNI.

The network has the weights that gaussian test data hides: neighbours of one sign at the top of
the range, on activations that reach the highest code.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bitsmith.model.ptq import ptq
from bitsmith.model.quantized import QuantizedModel
from bitsmith.numbers.integer import max_pair_sum
from emulate.machine import PROFILES, emulation_available
from networks.harness import compare, islands

SHAPE = (8, 9, 10)


class Adversarial(nn.Module):
    """Every kind of weighted operator, with weights of one sign and nearly one size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, groups=16)
        self.doubled = nn.Conv2d(16, 32, 3, groups=16)
        self.odd = nn.Conv2d(32, 7, (1, 3))
        self.tokens = nn.Linear(6, 9)
        self.head = nn.Linear(63, 5)
        generator = torch.Generator().manual_seed(0)
        for layer in self.children():
            size = 0.9 + 0.1 * torch.rand(layer.weight.shape, generator=generator)
            sign = torch.ones(len(size)).copysign(torch.randn(len(size), generator=generator))
            layer.weight.data = size * sign.reshape(-1, *[1] * (size.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.stem(x).relu()).relu()
        x = self.doubled(self.depthwise(x).relu())
        x = self.tokens(self.odd(x.relu()).flatten(2))
        return self.head(x.flatten(1))


def images(n: int, seed: int) -> Tensor:
    """Blocks of one sign, so that whole windows are at the end of the range."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(n, *SHAPE, generator=generator) * 0.1 + 0.9
    return blocks * torch.randn(n, 1, 1, 1, generator=generator).sign()


def made_for(machine: str, recipe: str = "W8A8") -> QuantizedModel:
    model = ptq(Adversarial(), recipe, [images(32, 0)], machine=machine, calibrator="minmax")
    assert not islands(model)
    return model


@pytest.fixture(params=PROFILES)
def old(request: pytest.FixtureRequest) -> str:
    """A machine whose u8×s8 products saturate."""
    reason = emulation_available()
    if reason is not None:
        pytest.skip(reason)
    name: str = request.param
    return name


def layers_that_differ(model: QuantizedModel, machine: str) -> set[str]:
    (found,) = compare(model, [[images(6, 1)]], machine)
    different = {name for name, lsb in found.isolated.items() if lsb}
    for output, (ours, theirs) in zip(model.program.graph.outputs, found.outputs, strict=True):
        if not torch.equal(ours, theirs):
            different.add(output)
    return different


@pytest.mark.parametrize("machine", ["any", "any-order"])
def test_files_for_any_machine_are_exact_without_vnni(machine, old):
    assert layers_that_differ(made_for(machine), old) == set()


@pytest.mark.parametrize("recipe", ["W8A7", "CODEBOOK4A8"])
def test_what_needs_no_pair_bound_is_exact_without_vnni(recipe, old):
    model = made_for("any", recipe)
    bound = 64 if recipe == "CODEBOOK4A8" else 127
    assert all(
        int(layer.weight.codes.abs().max()) == (127 if name == "depthwise" else bound)
        for name, layer in model.program.layers.items()
    )
    assert layers_that_differ(model, old) == set()


def test_files_for_vnni_saturate_without_it(old):
    """So the test above can fail; depthwise kernels are exact, as the bound assumes."""
    found = layers_that_differ(made_for("vnni"), old)
    assert {"stem", "grouped", "doubled", "tokens", "head"} <= found
    assert "depthwise" not in found


@pytest.mark.parametrize("machine", ["any", "any-order", "vnni"])
def test_every_file_is_exact_here(machine):
    reason = emulation_available()
    if machine == "vnni" and reason is not None:
        pytest.skip(reason)
    assert layers_that_differ(made_for(machine), "native") == set()


def test_the_bound_of_each_machine():
    worst = {
        machine: {
            name: int(max_pair_sum(layer.weight.codes, order).max())
            for name, layer in made_for(machine).program.layers.items()
        }
        for machine, order in (("any", "channels_last"), ("any-order", "any"), ("vnni", "any"))
    }
    assert all(v <= 128 for v in worst["any-order"].values())
    assert all(v <= 128 for k, v in worst["any"].items() if k != "depthwise")
    assert all(v > 200 for v in worst["vnni"].values())
