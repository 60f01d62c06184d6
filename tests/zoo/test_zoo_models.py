"""The contract of every zoo model, and the published weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from bitsmith.data.texts import texts
from bitsmith.errors import DataError, UnknownNameError
from bitsmith.zoo import load_model, zoo_models
from bitsmith.zoo.models.cifar_resnet import CifarResNet
from bitsmith.zoo.models.mlp import Mlp
from bitsmith.zoo.models.mobilenet_small import MobileNet

PARAMETERS = {
    "mlp": 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10,
    "mnist-cnn": 1_199_882,  # as PyTorch's example prints
    "cifar-resnet20": 269_722,  # as the source states: 0.27, 0.46, 0.66, 0.85, 1.7 million
    "cifar-resnet32": 464_154,
    "cifar-resnet44": 658_586,
    "cifar-resnet56": 853_018,
    "cifar-resnet110": 1_727_962,
    # 30,522 + 512 + 2 embeddings of 384 and their norm; six layers; without the pooler.
    "minilm": 31_036 * 384 + 768 + 6 * (4 * 147_840 + 384 * 1536 * 2 + 1536 + 384 + 4 * 384),
    "stories260k": 260_032,  # as the source states; the tied head counts once
}
SIZES = ((1, 1), (3, 7), (2, 512))
SAMPLES = [name for name in zoo_models if zoo_models[name].input_shape is not None]
TEXTS = [name for name in zoo_models if zoo_models[name].input_shape is None]


def data_file(name: str) -> Path:
    folder = os.environ.get("BITSMITH_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"needs {name} in the folder BITSMITH_DATA")
    return Path(folder) / name


@pytest.mark.parametrize("name", SAMPLES)
class TestContract:
    def test_maps_a_batch_of_its_shape_to_logits(self, name: str) -> None:
        entry = zoo_models[name]
        module = entry.build()
        assert module.training
        assert module(torch.zeros(3, *entry.input_shape)).shape == (3, 10)

    def test_is_described(self, name: str) -> None:
        entry = zoo_models[name]
        assert entry.name == name
        assert entry.dataset
        assert entry.weights_file is None or entry.weights_file.endswith(".safetensors")

    def test_exports_with_a_dynamic_batch(self, name: str) -> None:
        entry = zoo_models[name]
        module = entry.build().eval()
        example = torch.randn(2, *entry.input_shape)
        program = torch.export.export(module, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
        five = torch.randn(5, *entry.input_shape)
        torch.testing.assert_close(program.module()(five), module(five))


@pytest.mark.parametrize("name", TEXTS)
class TestContractOfText:
    def test_is_described(self, name: str) -> None:
        entry = zoo_models[name]
        assert entry.dataset in texts
        assert entry.weights_file is None or entry.weights_file.endswith(".safetensors")

    def test_maps_token_ids_of_any_batch_and_length(self, name: str) -> None:
        module = zoo_models[name].build()
        assert module.training
        shapes = {tuple(module(torch.ones(b, t, dtype=torch.long)).shape[:1]) for b, t in SIZES}
        assert shapes == {(b,) for b, _ in SIZES}

    def test_exports_with_dynamic_batch_and_tokens(self, name: str) -> None:
        module = zoo_models[name].build().eval()
        example = torch.randint(1, 500, (2, 7))
        shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        other = torch.randint(1, 500, (5, 11))
        torch.testing.assert_close(program.module()(other), module(other))

    def test_more_tokens_than_it_has_positions(self, name: str) -> None:
        with pytest.raises(DataError, match=r"at most 512 tokens, not \[1, 513\]"):
            zoo_models[name].build()(torch.ones(1, 513, dtype=torch.long))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_number_of_parameters(name: str, count: int) -> None:
    assert sum(p.numel() for p in zoo_models[name].build().parameters()) == count


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cifar-resnet20'"):
        load_model("cifar-resnt20")


def test_option_a_shortcut() -> None:
    """With the residual branch at zero a strided block subsamples and centres the channels."""
    block = CifarResNet(20).layer2[0].eval()
    assert isinstance(block.bn2, nn.BatchNorm2d)
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    y = block(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        CifarResNet(depth)


def test_mlp_on_small_digits() -> None:
    assert Mlp(in_features=64)(torch.zeros(4, 1, 8, 8)).shape == (4, 10)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
def test_mobilenet_sizes_and_operators(channels: int, size: int) -> None:
    module = MobileNet(channels).eval()
    assert module(torch.zeros(2, channels, size, size)).shape == (2, 10)
    depthwise = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(depthwise) == 7
    assert all(m.groups == m.in_channels == m.out_channels for m in depthwise)
    assert sum(isinstance(m, nn.ReLU6) for m in module.modules()) == 2 + 2 * 7
    assert sum(bool(block.residual) for block in module.blocks) == 4


@pytest.mark.parametrize(("name", "right"), [("cifar-resnet20", 915), ("cifar-resnet32", 928)])
def test_published_weights_on_the_first_1000_test_images(name: str, right: int) -> None:
    """The whole test split gives the published 91.73 and 92.63 %; here its first 1,000 images."""
    entry = zoo_models[name]
    assert entry.weights_file is not None
    weights = data_file(entry.weights_file)
    with np.load(data_file("cifar10-test.npz")) as data:
        x, y = torch.from_numpy(data["x"][:1000]), torch.from_numpy(data["y"][:1000])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = (x.permute(0, 3, 1, 2).float() / 255 - mean) / std
    loaded = load_model(name, weights)
    with torch.inference_mode():
        predicted = torch.cat([loaded.module(part).argmax(1) for part in images.split(250)])
    # Another order of float32 sums may turn one borderline image.
    assert abs(int((predicted == y).sum()) - right) <= 1
