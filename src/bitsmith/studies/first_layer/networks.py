"""Pretrained networks: the weights of their convolutions, or why they are not at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from bitsmith.data import load_dataset
from bitsmith.errors import DataError, WeightsError
from bitsmith.model.trained import Training, trained_network
from bitsmith.studies import Options
from bitsmith.zoo import load_model
from bitsmith.zoo.models.digits_cnn import DigitsNet
from bitsmith.zoo.weights import read_weights

__all__ = ["Network", "known_networks"]

_FILES = "resnet18-*.pth"


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A trained network.

    Attributes:
        key: in records.
        name: for people.
        weights: layer → weight ``[out, in, height, width]`` of every convolution, in order.
    """

    key: str
    name: str
    weights: Mapping[str, Tensor]

    @property
    def first(self) -> str:
        """The first convolution."""
        return next(iter(self.weights))


def known_networks(options: Options) -> tuple[list[Network], list[str]]:
    """Return the networks whose weights are at hand, and why others are not.

    Without the published weights of ResNet-20 a small residual network is trained on scikit-learn's
    digits, which takes seconds.
    """
    found: list[Network] = []
    skipped: list[str] = []
    try:
        module = load_model("cifar-resnet20").module
        found.append(Network("cifar-resnet20", "ResNet-20, CIFAR-10", _convolutions(module)))
    except (DataError, WeightsError) as error:
        skipped.append(f"ResNet-20: {error}; a network trained here on digits takes its place")
        found.append(_digits(options))
    try:
        found.append(_resnet18())
    except WeightsError as error:
        skipped.append(f"torchvision's ResNet-18: {error}")
    return found, skipped


def _digits(options: Options) -> Network:
    training = Training(epochs=3 if options.quick else 20, seed=options.seed)
    split = load_dataset("digits").split("train")
    module = trained_network("digits-cnn", DigitsNet, split, training, stage=options.stage)
    return Network("digits-cnn", "digits-cnn, trained here", _convolutions(module))


def _resnet18() -> Network:
    """Return torchvision's ResNet-18 from the file that torchvision keeps; nothing is fetched."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(folder.glob(_FILES))
    if not files:
        raise WeightsError(
            f"no {_FILES} in {folder}; torchvision.models.resnet18(weights='DEFAULT') puts it there"
        )
    _, state = read_weights(files[0], allow_pickle=True)  # tensors only: nothing else is read
    weights = {
        name.removesuffix(".weight"): value.detach().float()
        for name, value in state.items()
        if value.dim() == 4
    }
    if next(iter(weights), "") != "conv1":
        raise WeightsError(f"{files[0]} does not begin with the convolution conv1")
    if broken := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise WeightsError(f"{files[0]}: weights of {', '.join(broken)} are NaN or infinite")
    return Network("resnet18", "ResNet-18, torchvision", weights)


def _convolutions(module: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name.removesuffix(".weight"): p.detach()
        for name, p in module.named_parameters()
        if p.dim() == 4
    }
