"""Efforts: rungs are judged, the best is kept, a stop loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitsmith.model.qat.ladder as module
import bitsmith.model.qat.reconstruct as reconstruction
from bitsmith.data import load_dataset, training_batches
from bitsmith.errors import DataError, InputError
from bitsmith.model.ptq import ptq
from bitsmith.model.qat.fit import distillation
from bitsmith.model.qat.judge import Found
from bitsmith.model.qat.ladder import Ladder
from bitsmith.model.qat.mixtures import mixed
from bitsmith.model.qat.reconstruct import Reconstruction
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.train import fit

QUICK = Ladder(blocks=Reconstruction(steps=200, batch_size=32), epochs=(4, 4))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    train = load_dataset("digits").split("train").batches(64)
    fit(net, train, epochs=8, lr=0.1, progress=False)
    return net


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.cat([x for x, _ in load_dataset("digits").split("train").batches(64, limit=256)])


def high(network: nn.Module, images: Tensor, **more: object) -> QuantizedModel:
    settings: dict[str, object] = {"effort": "high", "ladder": QUICK, "progress": False}
    return ptq(network, "W2A2", images.split(64), **(settings | more))  # type: ignore[arg-type]  # keywords by name


def test_each_rung_is_recorded_and_the_nearest_is_returned(
    network: nn.Module, images: Tensor
) -> None:
    best = high(network, images)
    rungs = best.provenance["rungs"]
    names = ["ranges and rounding", "block reconstruction", "distillation"]
    assert [r["name"] for r in rungs] == names
    assert best.provenance["effort"] == "high"
    distances = [r["distance"] for r in rungs]
    assert [r["kept"] for r in rungs] == [
        not k or d < min(distances[:k]) for k, d in enumerate(distances)
    ]
    with torch.no_grad():
        last = images[-32:]
        mixtures = torch.cat([mixture(last, seed) for seed in range(8)])
        found = float(distillation(best(mixtures), network(mixtures), 1.0))
    assert found == pytest.approx(min(distances), rel=1e-5)
    assert min(distances) <= distances[0]


def mixture(x: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return mixed(x)


def test_a_worse_rung_is_not_kept(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: module.TrainableModel, *_: object) -> None:
        for p in model.parameters():
            p.data.neg_()

    monkeypatch.setattr(module, "_distil", spoil)
    found = high(network, images)
    reference = high(network, images, effort="medium")
    assert found.provenance["rungs"][-1]["kept"] is False
    assert torch.equal(found(images), reference(images))


def test_a_goal_that_is_met_ends_the_climb(network: nn.Module, images: Tensor) -> None:
    ladder = Ladder(QUICK.blocks, epochs=QUICK.epochs, goal=1.0)
    found = high(network, images, ladder=ladder)
    assert [r["name"] for r in found.provenance["rungs"]] == ["ranges and rounding"]


def test_interrupted_it_returns_the_best_so_far(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_distil", stop)
    found = high(network, images)
    assert found.provenance["interrupted"] is True
    assert torch.equal(found(images), high(network, images, effort="medium")(images))


def test_a_stopped_run_goes_on_bit_for_bit(
    network: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = high(network, images)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_distil", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        high(network, images, checkpoint=tmp_path)
    with monkeypatch.context() as patch:  # what is done is not done again
        patch.setattr(reconstruction, "_tune", lambda *_: pytest.fail("done already"))
        resumed = high(network, images, checkpoint=tmp_path)
    assert torch.equal(resumed(images), whole(images))
    with pytest.raises(InputError, match="of another run"):
        high(network, images + 1, checkpoint=tmp_path)


def test_stopped_between_two_blocks_it_goes_on_bit_for_bit(
    network: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    steps = []

    def count(done: int) -> None:
        steps.append(done)
        if len(steps) == stop:
            raise KeyboardInterrupt

    stop = -1
    whole = high(network, images, effort="medium", advance=count)
    stop, total = len(steps) - 100, len(steps)  # in the last block
    steps.clear()
    first = high(network, images, effort="medium", advance=count, checkpoint=tmp_path)
    assert first.provenance["interrupted"] is True
    assert [b["reason"] for b in first.provenance["blocks"]][-1] == "interrupted"
    stop = -1
    steps.clear()
    resumed = high(network, images, effort="medium", advance=count, checkpoint=tmp_path)
    assert len(steps) < total - 200  # a block that is done is one step
    assert sum(steps) == sum([64] * 4) + 200 * len(whole.provenance["blocks"])
    assert resumed.provenance["blocks"] == whole.provenance["blocks"]
    assert torch.equal(resumed(images), whole(images))


@pytest.mark.parametrize("change", [{"calibrator": "minmax"}, {"machine": "vnni"}], ids=str)
def test_a_checkpoint_of_other_ranges_or_another_machine_is_refused(
    network: nn.Module, images: Tensor, tmp_path: Path, change: dict[str, str]
) -> None:
    high(network, images, effort="medium", checkpoint=tmp_path)
    with pytest.raises(InputError, match=f"{next(iter(change))}: .* there, .* now"):
        high(network, images, effort="medium", checkpoint=tmp_path, **change)


def test_a_rung_that_is_not_kept_meets_no_goal(
    network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = iter([(1.0, 90.0), (2.0, 99.0), (0.5, 95.0)])

    class Told:
        def __init__(self, *_: object) -> None: ...

        def __call__(self, _: object) -> Found:
            distance, agreement = next(results)
            return Found(distance, distance, agreement)

    monkeypatch.setattr(module, "Judge", Told)
    ladder = Ladder(Reconstruction(steps=2, batch_size=32), epochs=(1, 1), goal=98.0)
    found = high(network, images, ladder=ladder)
    assert [r["kept"] for r in found.provenance["rungs"]] == [True, False, True]


def test_data_that_is_read_once_and_test_data_are_refused(
    network: nn.Module, images: Tensor
) -> None:
    with pytest.raises(DataError, match="read only once"):
        ptq(network, "W4A4", iter(images.split(64)), effort="high", progress=False)
    digits = load_dataset("digits")
    with pytest.raises(DataError, match="train split only"):
        ptq(network, "W4A4", digits.split("test").batches(64))
    with pytest.raises(InputError, match="low, medium, high"):
        ptq(network, "W4A4", images.split(64), effort="extreme")  # type: ignore[arg-type]  # on purpose
    found = ptq(
        network,
        "W4A4",
        digits.split("train").batches(64, limit=256),
        effort="high",
        training=training_batches(digits, 64, labelled=False),
        ladder=QUICK,
        progress=False,
    )
    assert len(found.provenance["rungs"]) == 3
