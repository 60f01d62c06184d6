"""Weights files: what fits is loaded exactly, and everything that is wrong is said at once."""

import hashlib
import logging
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitsmith.errors import WeightsError
from bitsmith.zoo import load_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: value.clone() for name, value in network().state_dict().items()}


def equals(module: nn.Module, state: dict[str, Tensor]) -> bool:
    own = module.state_dict()
    return all(torch.equal(own[name], value) for name, value in state.items())


def test_safetensors(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    module = network()
    assert load_weights(module, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert equals(module, state)


def test_the_counter_of_batches_may_be_absent(tmp_path: Path, state: dict[str, Tensor]) -> None:
    del state["1.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    module = network()
    load_weights(module, tmp_path / "w.safetensors")
    assert equals(module, state)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    halves = {"weight": torch.randn(2, 3).half(), "bias": torch.randn(2).half()}
    save_file(halves, tmp_path / "w.safetensors")
    load_weights(module, tmp_path / "w.safetensors")
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, halves["weight"].float())


def test_a_shared_tensor_may_be_stored_once(tmp_path: Path) -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    module["head"].weight = module["embed"].weight
    save_file({"embed.weight": torch.ones(4, 3)}, tmp_path / "w.safetensors")
    load_weights(module, tmp_path / "w.safetensors")
    assert torch.equal(module["head"].weight, torch.ones(4, 3))


def test_every_problem_is_listed_and_nothing_is_loaded(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    del state["0.weight"], state["3.bias"]
    state["fc.weight"] = torch.zeros(1)
    state["aux.bias"] = torch.zeros(1)
    state["3.weight"] = torch.zeros(3, 9)
    state["0.bias"] = torch.zeros(2, dtype=torch.int32)
    state["1.weight"] = torch.tensor([float("nan"), 1.0])
    state["1.running_var"] = torch.tensor([float("inf"), float("nan")])
    save_file(state, tmp_path / "w.safetensors")
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(WeightsError) as raised:
        load_weights(module, tmp_path / "w.safetensors")
    message = str(raised.value)
    assert "missing in the file (2): 0.weight, 3.bias" in message
    assert "not in the model (2)" in message
    assert "fc.weight" in message
    assert "aux.bias" in message
    assert "of another shape (1): 3.weight [3, 9] (the model has [3, 8])" in message
    assert "of another kind of number (1): 0.bias torch.int32" in message
    assert "1.weight (1 NaN of 2)" in message
    assert "1.running_var (1 NaN and 1 infinite of 2)" in message
    assert equals(module, before)


def test_overflow_in_the_dtype_of_the_module(tmp_path: Path) -> None:
    save_file({"weight": torch.tensor([[1e6]])}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"weight \(1 infinite of 1\)"):
        load_weights(nn.Linear(1, 1, bias=False).half(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 8, 9, 60, -1])
def test_truncated(tmp_path: Path, state: dict[str, Tensor], keep: int) -> None:
    save_file(state, tmp_path / "w.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((tmp_path / "w.safetensors").read_bytes()[:keep])
    with pytest.raises(WeightsError, match="not a safetensors file, or is truncated"):
        load_weights(network(), cut)


@pytest.mark.parametrize("content", [b"hello, this is text", struct.pack("<Q", 2**60) + b"{}"])
def test_not_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_weights(network(), path)


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="No such file"):
        load_weights(network(), tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="cannot read"):
        load_weights(network(), tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["w.th", "w.safetensors", "w"])
@pytest.mark.parametrize("nested", [True, False])
def test_pickles_are_refused_by_content_and_read_if_allowed(
    tmp_path: Path, state: dict[str, Tensor], zipped: bool, name: str, nested: bool
) -> None:
    path = tmp_path / name
    saved = {"state_dict": state, "best": 91.7} if nested else state
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    module = network()
    with pytest.raises(WeightsError, match="--allow-pickle"):
        load_weights(module, path)
    digest = load_weights(module, path, allow_pickle=True)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert equals(module, state)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".PKL"])
def test_pickles_are_refused_by_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(WeightsError, match="--allow-pickle"):
        load_weights(network(), path)
    with pytest.raises(WeightsError, match="cannot be read as a pickle of plain tensors"):
        load_weights(network(), path, allow_pickle=True)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("allow", [True, False])
def test_a_pickle_never_runs_code(tmp_path: Path, protocol: int, allow: bool) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "w.safetensors"
    path.write_bytes(pickle.dumps({"a": Touch(mark)}, protocol))
    with pytest.raises(WeightsError, match="pickle"):
        load_weights(network(), path, allow_pickle=allow)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the file was a real trap


def test_the_advice_of_pytorch_is_not_repeated(tmp_path: Path) -> None:
    """It is to read the file without any protection."""
    torch.save({"a": Touch(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match="state_dict") as caught:
        load_weights(network(), tmp_path / "evil.pt", allow_pickle=True)
    assert "weights_only" not in str(caught.value)
    assert "torch.load" not in str(caught.value)
    assert str(tmp_path / "evil.pt") in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({}, "holds an empty dictionary"),
        ({"a": torch.zeros(1), "epoch": 3}, "no tensors: epoch: int"),
    ],
)
def test_a_pickle_that_is_no_state_dict(tmp_path: Path, saved: object, message: str) -> None:
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights(network(), tmp_path / "w.pt", allow_pickle=True)


def test_data_parallel_prefix_is_removed_and_said(
    tmp_path: Path, state: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "w.safetensors")
    module = network()
    with caplog.at_level(logging.WARNING, logger="bitsmith"):
        load_weights(module, tmp_path / "w.safetensors")
    assert equals(module, state)
    assert "removed the prefix 'module.'" in caplog.text


def test_a_model_with_an_own_part_called_module(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"module": nn.Linear(2, 1)})
    save_file({"module.weight": torch.ones(1, 2), "module.bias": torch.ones(1)}, tmp_path / "w")
    load_weights(wrapped, tmp_path / "w")
    assert torch.equal(wrapped["module"].weight, torch.ones(1, 2))


def test_a_zip_of_something_else_is_no_pickle(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_weights(network(), tmp_path / "data.npz")
