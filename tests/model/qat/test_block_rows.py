"""Rows of block reconstruction: recorded, resumed, true of what is deployed; stops undo a block."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitsmith.model.qat.reconstruct as reconstruction
from bitsmith.model.ptq import ptq
from bitsmith.model.qat.block_inputs import BlockInputs
from bitsmith.model.qat.ladder import Ladder
from bitsmith.model.qat.reconstruct import Reconstruction, ReconstructionRow, reconstruct
from bitsmith.model.qat.segments import segments
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.weights import LearnedStep

QUICK = Ladder(blocks=Reconstruction(steps=60, batch_size=8), epochs=(2, 2))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4),
    ).eval()  # fmt: skip


@pytest.fixture
def samples() -> Tensor:
    return torch.randn(64, 2, 8, 8)


def test_the_errors_are_those_of_the_finished_model(network: nn.Module, samples: Tensor) -> None:
    quantized = ptq(network, "W3A8", samples.split(32), calibrator="percentile:90")
    model = TrainableModel(quantized)
    parts = segments(quantized.program.graph, model.layer_names())
    begins = [model.range_of(part.input) for part in parts]
    given: list[float] = []

    def told(_: int) -> None:
        if len(given) > 1:  # a pool begins this block: its codes have the scale of what it is given
            assert float(begins[len(given) - 1].scale().detach()) == given[-1]

    def next_block(_: ReconstructionRow | None = None) -> None:
        position = min(len(given), len(parts) - 1)
        given.append(float(begins[position].scale().detach()))

    next_block()
    how = Reconstruction(steps=80, batch_size=16)
    rows = reconstruct(model, samples, how, advance=told, on_block=next_block)
    assert any(row.kept for row in rows)
    inputs = BlockInputs(model, samples)
    for part, row in zip(parts, rows, strict=True):
        inputs.begin(part)
        power = float(inputs.target.double().square().mean())
        found = row.after if row.kept else row.before
        assert inputs.error(part) / power == pytest.approx(found, rel=1e-6), row.segment
        inputs.end(part)


def test_blocks_are_recorded_and_a_resumed_run_has_them(
    network: nn.Module, samples: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def climbed() -> list[dict[str, object]]:
        found = ptq(
            network, "W3A8-edge8", samples.split(32), effort="medium", ladder=QUICK,
            checkpoint=tmp_path,
        )  # fmt: skip
        blocks: list[dict[str, object]] = found.provenance["blocks"]
        return blocks

    first = climbed()
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert [b["layers"] for b in first] == [["0"], ["3"], ["6"]]
    assert [b["frozen"] for b in first] == [["0"], [], ["6"]]
    assert all(b["kept"] == (b["after"] < b["before"]) == (not b["reason"]) for b in first)  # type: ignore[operator]  # numbers
    assert all("seconds" not in b for b in first)  # else no two files were the same
    monkeypatch.setattr(reconstruction, "_tune", lambda *_: pytest.fail("done already"))
    assert climbed() == first


@pytest.mark.parametrize("learn", ["weights", "rounding"])
def test_a_stop_in_a_block_leaves_it_as_it_was(
    network: nn.Module, samples: Tensor, learn: str
) -> None:
    model = TrainableModel(ptq(network, "W3A8", samples.split(32)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    steps = 0
    rows: list[ReconstructionRow] = []

    def stop(count: int) -> None:
        nonlocal steps
        steps += count
        if steps == 5:
            raise KeyboardInterrupt

    how = Reconstruction(steps=40, batch_size=8, learn=learn, lr=0.5)  # type: ignore[arg-type]  # parametrized
    with pytest.raises(KeyboardInterrupt):
        reconstruct(model, samples, how, advance=stop, on_block=rows.append)
    assert model.drop == 0
    assert all(isinstance(model.weights[key], LearnedStep) for key in model.weights)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in after.items())
    assert [(r.kept, r.reason, r.after) for r in rows] == [(False, "interrupted", None)] * 3


def test_distillation_that_diverges_leaves_the_best_so_far(
    network: nn.Module, samples: Tensor
) -> None:
    def training(epoch: int) -> list[Tensor]:
        return [samples[:16], samples[16:32] * (math.nan if epoch else 1)]

    given: Any = training  # without labels
    with pytest.warns(RuntimeWarning, match="distillation stopped"):
        found = ptq(
            network, "W3A8", samples.split(32), effort="high", ladder=QUICK, training=given,
            progress=False,
        )  # fmt: skip
    last = found.provenance["rungs"][-1]
    assert "inputs of this batch: 2048 of 2048 values" in last["stopped"]
    assert "epoch 2, step 2" in last["stopped"]
    assert bool(torch.isfinite(found(samples)).all())


def test_a_constant_of_an_earlier_block_is_read_in_a_later_one(samples: Tensor) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)
            self.shift = nn.Buffer(torch.tensor([0.5]))

        def forward(self, x: Tensor) -> Any:
            return self.b(torch.relu(self.a(x + self.shift)) + self.shift) + self.shift

    torch.manual_seed(0)
    found = ptq(
        Shifted().eval(), "W4A8", samples.split(32), effort="medium", ladder=QUICK, progress=False
    )
    assert [b["layers"] for b in found.provenance["blocks"]] == [["a"], ["b"]]
