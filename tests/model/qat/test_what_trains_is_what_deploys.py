"""Training mode, evaluation mode, the converted model and ONNX Runtime give the same numbers."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from bitsmith.deploy.export.onnx.model_writer import write_model
from bitsmith.model.qat import convert, freeze_batch_norms, prepare
from bitsmith.model.qat.ranges import ActivationRange
from bitsmith.model.quantized import QuantizedModel
from networks.convolutional import BETWEEN, CONVOLUTIONS, conv, plain
from networks.harness import Specimen, batches, randomised
from networks.structured import STRUCTURED, Attention, Residual, SqueezeExcite

RECIPES = ("W4A4", "W4A4-edge8", "W3A3", "W2A2", "W4A8", "W2A8", "W8A8", "CODEBOOK4A8", "W1A8")
EVERYTHING = {**CONVOLUTIONS, **BETWEEN, **STRUCTURED}


class Words(nn.Module):
    """An embedding, attention by hand and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.attention = nn.Embedding(11, 16), Attention()
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.attention(self.table(ids)).mean(1))


def trained(model: nn.Module, inputs: list[Tensor], steps: int = 2) -> None:
    """Take steps that are large enough to move scales, zero points and codes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    descent = torch.optim.Adam(parameters, lr=0.02)
    model.train()
    for _ in range(steps):
        descent.zero_grad()
        made = model(*inputs)
        sum(o.square().mean() for o in _tuple(made)).backward()
        descent.step()


def _tuple(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def check(model: nn.Module, inputs: list[Tensor]) -> QuantizedModel:
    """Compare the modes bit for bit and return what is deployed."""
    with torch.no_grad():
        training = _tuple(model.train()(*inputs))
    deployed = convert(model)
    for ours, evaluated, theirs in zip(
        training, _tuple(model.eval()(*inputs)), _tuple(deployed(*inputs)), strict=True
    ):
        assert torch.equal(ours, evaluated)
        assert torch.equal(ours, theirs)
    return deployed


def specimen_model(
    specimen: Specimen, recipe: str, **more: object
) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    inputs = batches(specimen.shapes, (12,))[0]
    model = randomised(specimen.build())
    return prepare(model, recipe, [tuple(inputs)], **more), inputs


@pytest.mark.parametrize(
    ("name", "recipe"),
    list(zip(list(EVERYTHING)[::4], itertools.cycle(RECIPES), strict=False)),
    ids=str,
)
def test_of_small_networks(name: str, recipe: str):
    model, inputs = specimen_model(EVERYTHING[name], recipe)
    trained(model, inputs)
    check(model, inputs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_in_onnx_runtime(recipe: str):
    model, inputs = specimen_model(Specimen(Residual, ((8, 9, 10),)), recipe)
    trained(model, inputs)
    deployed = check(model, inputs)
    file = write_model(deployed, {}).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (name,) = [i.name for i in session.get_inputs()]
    (theirs,) = session.run(None, {name: inputs[0].numpy()})
    assert np.array_equal(theirs, deployed(*inputs).numpy())


def test_of_words():
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (9, 7))
    model = prepare(Words(), "W4A4-edge8", [ids])
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    descent = torch.optim.Adam(parameters, lr=0.02)
    model(ids).square().mean().backward()
    descent.step()
    check(model, [ids])


@pytest.mark.parametrize("weights", ["lsq", "minmax"])
@pytest.mark.parametrize("ranges", list(ActivationRange.registry))
def test_with_every_kind_of_range(ranges: str, weights: str):
    specimen = Specimen(SqueezeExcite, ((8, 9, 10),))
    model, inputs = specimen_model(specimen, "W3A4", ranges=ranges, weights=weights)
    trained(model, inputs)
    check(model, inputs)


@pytest.mark.parametrize("machine", ["any", "vnni"])
@pytest.mark.parametrize("weights", ["lsq", "minmax"])
def test_layers_of_8_bits_train_when_asked(machine: str, weights: str):
    model, inputs = specimen_model(
        Specimen(Residual, ((8, 9, 10),)), "W8A8", learn_edges=True, machine=machine,
        weights=weights,
    )  # fmt: skip
    before = convert(model)
    trained(model, inputs)
    deployed = check(model, inputs)
    largest = max(int(v.weight.codes.abs().max()) for v in deployed.program.layers.values())
    assert largest <= (64 if machine == "any" else 127)
    moved = [
        name
        for name, layer in before.program.layers.items()
        if not torch.equal(layer.weight.codes, deployed.program.layers[name].weight.codes)
    ]
    assert moved == list(before.program.layers)


def test_training_starts_where_rounding_without_it_ended():
    torch.manual_seed(0)
    for recipe in ("W4A4", "W2A8", "W8A8"):
        model, inputs = specimen_model(Specimen(Residual, ((8, 9, 10),)), recipe)
        assert torch.equal(model.source(*inputs), model(*inputs))


def test_batch_norms_that_train():
    model, inputs = specimen_model(
        Specimen(Residual, ((8, 9, 10),)), "W4A4", batch_norm="train"
    )  # fmt: skip
    before = convert(model)(*inputs)
    trained(model, inputs)
    assert not torch.equal(model.train()(*inputs), model.eval()(*inputs))  # batch statistics
    freeze_batch_norms(model)
    trained(model, inputs, 1)
    assert not torch.equal(check(model, inputs)(*inputs), before)


def test_sums_that_no_float32_holds():
    """4096 products of 8 bits pass 2**24, where float32 skips odd numbers."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(4096, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        dense[0].weight.abs_().add_(0.01)
        dense[0].bias.zero_()
    x = torch.rand(16, 4096)
    model = prepare(dense, "W8A8", x, machine="vnni")
    deployed = check(model, [x])
    layer = deployed.program.layers["0"].weight.codes.double()
    assert (layer.sum(1) * 128).max() > 2**24
    wide = plain(conv(512, 4, 3), nn.ReLU, shape=(512, 5, 5))
    model = prepare(wide.build(), "W8A8", batches(wide.shapes, (12,)), machine="vnni")
    trained(model, batches(wide.shapes, (12,))[0], 1)
    check(model, batches(wide.shapes, (12,))[0])


def test_under_autocast():
    model, inputs = specimen_model(Specimen(Attention, ((7, 16),)), "W4A4")
    plainly = model(*inputs)
    plainly.square().mean().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = model(*inputs)
        assert made.dtype == torch.float32
        assert torch.equal(made, plainly)
        made.square().mean().backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], rtol=0.1, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.eval()(*inputs), plainly)
