"""A small network with weights in a file, the command line as a function, a quantized file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bitsmith.cli import main
from bitsmith.data import load_dataset
from bitsmith.data.training import training_batches
from bitsmith.model.train import fit
from bitsmith.zoo.models.digits_cnn import DigitsNet


@dataclass(frozen=True)
class Ran:
    """What one run of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return command


def digits_state() -> dict[str, torch.Tensor]:
    """The state of a digits network with random weights and batch norms that are not trivial."""
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = DigitsNet(width=8).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return {name: value.contiguous() for name, value in state.items()}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``module:callable`` of a network for digits, importable."""
    return "small_digits:net"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, modules: Path) -> None:
    monkeypatch.syspath_prepend(str(modules))


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and data sets that are functions."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "small_digits.py").write_text(
        "from bitsmith.zoo.models.digits_cnn import DigitsNet\n\n\n"
        "def net():\n    return DigitsNet(width=8)\n"
    )
    (folder / "odd_data.py").write_text(
        "import torch\n\n\n"
        "def empty(split):\n    return []\n\n\n"
        "def interrupted(split):\n    raise KeyboardInterrupt\n\n\n"
        "def narrow(split):\n    return torch.zeros(300, 1, 8, 7), torch.zeros(300).long()\n"
    )
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(digits_state(), path)
    return path


@pytest.fixture(scope="session")
def trained_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network after two epochs: its predictions depend on what it sees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DigitsNet(width=8)
    fit(net, training_batches(load_dataset("digits"), 64), epochs=2, lr=0.1, progress=False)
    path = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    return path


@pytest.fixture
def trained(small_model: str, trained_weights: Path) -> list[object]:
    """The arguments that name the trained network and its weights."""
    return [small_model, "--weights", trained_weights]


@pytest.fixture
def digits(small_model: str, weights: Path) -> list[object]:
    """The arguments that name the network, its weights and its data."""
    return [small_model, "--weights", weights, "--data", "digits"]


@pytest.fixture(scope="session")
def artefact(
    tmp_path_factory: pytest.TempPathFactory, modules: Path, small_model: str, weights: Path
) -> Path:
    """A quantized file with its simulation; do not change it."""
    path = tmp_path_factory.mktemp("artefact") / "small.onnx"
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(modules))
    arguments = ["quantize", small_model, "--weights", weights, "--data", "digits", "--out", path]
    assert main([str(a) for a in arguments]) == 0
    patch.undo()
    return path
