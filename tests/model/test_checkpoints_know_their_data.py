"""A checkpoint is of one run on one data set; divergence is told by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bitsmith.data import load_dataset, training_batches
from bitsmith.errors import DataError, InputError
from bitsmith.model.checkpoint import data_fingerprint
from bitsmith.model.divergence import DivergedError
from bitsmith.model.qat import fit as train_quantized
from bitsmith.model.qat import prepare
from bitsmith.model.train import fit


def test_what_each_kind_of_batches_tells() -> None:
    digits, x = load_dataset("digits"), torch.randn(10, 4)
    split = digits.split("train")
    known = data_fingerprint(training_batches(digits, 32, seed=5, limit=100))
    assert (known["data set"], known["split"], known["data sha256"]) == (
        "digits", "train", split.sha256,
    )  # fmt: skip
    assert (known["batch size"], known["batches"], known["samples"], known["seed"]) == (
        32, 4, 100, 5,
    )  # fmt: skip
    assert data_fingerprint(split.batches(64, limit=100))["batches"] == 2
    loader = DataLoader(TensorDataset(x), batch_size=5)
    other = DataLoader(TensorDataset(x + 1), batch_size=5)
    assert data_fingerprint(loader) == {
        "samples": 10, "batch size": 5, "batches": 2,
        "data sha256": data_fingerprint(loader)["data sha256"],
    }  # fmt: skip
    assert data_fingerprint(loader) != data_fingerprint(other)
    assert data_fingerprint(x.split(5)) != data_fingerprint((x + 1).split(5))
    assert data_fingerprint(lambda epoch: [x]) == {}


def test_another_data_set_or_batch_size_is_refused_by_name(tmp_path: Path) -> None:
    digits, moons = load_dataset("digits"), load_dataset("moons")
    x = torch.cat([a for a, _ in digits.split("train").batches(64, limit=64)]).flatten(1)
    net, path = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tmp_path / "run.pt"
    batches = training_batches(digits, 64, limit=128)
    fit(net, batches, epochs=1, checkpoint=path, progress=False)
    smaller, other = training_batches(digits, 32, limit=128), training_batches(moons, 64, limit=128)
    with pytest.raises(InputError, match="batch size: 64 there, 32 now"):
        fit(net, smaller, epochs=1, checkpoint=path, progress=False)
    with pytest.raises(InputError, match="data set: 'digits' there, 'moons' now"):
        fit(net, other, epochs=1, checkpoint=path, progress=False)
    model, path = prepare(net, "W4A8", x), tmp_path / "quantized.pt"
    train_quantized(model, x.split(32), epochs=1, checkpoint=path, progress=False)
    with pytest.raises(InputError, match=r"data sha256: '.*' there, '.*' now"):
        train_quantized(model, (x + 1).split(32), epochs=1, checkpoint=path, progress=False)


def test_a_bare_tensor_is_no_batches() -> None:
    net, x = nn.Linear(4, 2), torch.randn(8, 4)
    with pytest.raises(DataError, match="a tensor is no batches"):
        fit(net, x, epochs=1)
    with pytest.raises(DataError, match=r"x\.split\(batch_size\)"):
        train_quantized(prepare(net, "W4A8", x), x, epochs=1)


class Fragile(nn.Module):
    """Its second layer takes a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.log, self.last = nn.Linear(4, 4), Log(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.log(self.first(x)))


class Log(nn.Module):
    """NaN below 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def test_the_module_whose_output_went_wrong_first_is_named() -> None:
    x, y = torch.randn(16, 4), torch.zeros(16).long()
    with pytest.raises(DivergedError, match=r"step 1: output of log \(Log\): \d+ of 64 values"):
        fit(Fragile(), [(x, y)], epochs=1, progress=False)
    with pytest.raises(DivergedError, match="targets: 16 of 16 values are NaN"):
        fit(
            nn.Linear(4, 1), [(x, torch.full((16, 1), math.nan))], epochs=1,
            loss=nn.functional.mse_loss, progress=False,
        )  # fmt: skip
    with pytest.raises(DivergedError, match="targets are finite, their loss is not"):
        fit(nn.Linear(4, 2), [(x, y)], epochs=1, loss=lambda a, b: a.sum() / 0, progress=False)


def test_a_scale_that_is_too_large_is_named_though_every_parameter_is_finite() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(32, 6)
    model = prepare(net, "W4A8", x)

    def blow_up(trained: nn.Module) -> None:
        with torch.no_grad():  # exp(200) is infinite, 200 is not
            dict(trained.named_parameters())["weights.2.log_scale"].fill_(200.0)

    with pytest.raises(DivergedError, match="layer 2: scale: 3 of 3 are NaN or infinite"):
        train_quantized(model, x.split(16), epochs=1, on_step=blow_up, progress=False)
    assert all(bool(torch.isfinite(v).all()) for v in model.state_dict().values())
    packed = prepare(net, "W4")
    with pytest.raises(DivergedError, match=r"output of 2 \("):
        train_quantized(
            packed, x.split(16), epochs=1, teacher=net, on_step=_overflow,
            progress=False,
        )  # fmt: skip


def _overflow(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        p.data.fill_(3e38 if name == "0.bias" else 1e3)
