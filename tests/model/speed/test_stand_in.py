"""Layers that are as fast as those a recipe makes: same type, same bytes."""

import pytest
import torch
from torch import nn

from bitsmith.model.owners import weight_owners
from bitsmith.model.presets import make_recipe
from bitsmith.model.speed.stand_in import packed_bytes, stand_in, stand_in_weight
from bitsmith.model.weights import quantize_weights

RECIPES = ["W8", "W4G64", "W3G32", "W1", "TERNARY", "NF4", "MXFP4", "CODEBOOK4", "Q4_K", "Q6_K",
           "W8A8-dynamic"]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("rows", [128, 24])
def test_same_form_and_bytes_as_what_the_recipe_makes(name, rows):
    torch.manual_seed(0)
    layer = nn.Linear(256, rows)
    before = layer.weight.detach().clone()
    real = quantize_weights(nn.Sequential(layer), name)[0]
    recipe = make_recipe(name)
    made = stand_in(weight_owners(layer)[0], {"weight": recipe.rules[-1].weight}, recipe.activation)
    assert type(made) is type(real)
    assert packed_bytes(made) == packed_bytes(real)
    assert {n: (t.shape, t.dtype) for n, t in made.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in real.state_dict().items()
    }
    x = torch.randn(3, 256)
    with torch.no_grad():
        assert made(x).shape == real(x).shape
        error = (made.packed.dequantize()[:24] - before[:24]).norm() / before[:24].norm()
    # The first rows are the layer's own; ±absmax is far from most of a binary layer's weights.
    assert error < (1.5 if name == "W1" else 0.7)
    assert torch.equal(layer.weight, before)


def test_rows_are_repeated():
    weight = torch.randn(192, 64)
    values = stand_in_weight(weight, make_recipe("W4G64").rules[-1].weight).dequantize()
    assert torch.equal(values[:64], values[64:128])
    assert torch.equal(values[:64], values[128:])


def test_rows_that_are_padded():
    found = stand_in_weight(torch.randn(64, 100), make_recipe("W4G64").rules[-1].weight, 128)
    assert found.shape == (64, 100)
    assert found.stored_shape == (64, 128)
    assert found.dequantize().shape == (64, 100)


def test_other_layers_run_too():
    recipe = make_recipe("W8").rules[-1].weight
    for layer, x in [
        (nn.Conv2d(4, 64, 3), torch.randn(1, 4, 8, 8)),
        (nn.LSTM(8, 16), torch.randn(3, 2, 8)),
        (nn.Embedding(64, 8), torch.tensor([1, 2])),
    ]:
        owner = weight_owners(layer)[0]
        made = stand_in(owner, dict.fromkeys(owner.weights, recipe), None)
        with torch.no_grad():
            made(x)
            layer(x)  # the layer itself was left alone
