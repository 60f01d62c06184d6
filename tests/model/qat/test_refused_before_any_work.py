"""What effort medium and high cannot do is said before calibration, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bitsmith.errors import DataError, InputError
from bitsmith.model import ptq as module
from bitsmith.model.ptq import ptq
from bitsmith.model.qat import prepare
from bitsmith.model.qat.ladder import Ladder, climb
from bitsmith.model.qat.reconstruct import Reconstruction, reconstruct
from bitsmith.model.qat.trainable import TrainableModel

QUICK = Ladder(blocks=Reconstruction(steps=20, batch_size=8), epochs=(1, 1))


class Two(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.a(x)), torch.relu(self.b(y)) + 1


def pairs(n: int = 32) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(n, 6), torch.randn(n, 6)) for _ in range(2)]


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows if calibration begins."""
    seen: list[str] = []
    original = module.quantize_graph

    def watched(*args: object, **more: object) -> object:
        seen.append("calibrated")
        return original(*args, **more)  # type: ignore[arg-type]  # as they are

    monkeypatch.setattr(module, "quantize_graph", watched)
    return seen


@pytest.mark.parametrize("effort", ["medium", "high"])
def test_every_fault_is_in_one_message(calibrated: list[str], effort: str) -> None:
    with pytest.raises(InputError) as caught:
        ptq(Two().eval(), "W4A8", iter(pairs()), effort=effort)  # type: ignore[arg-type]  # parametrized
    said = str(caught.value)
    assert "2 inputs (x, y)" in said
    assert "2 outputs" in said
    assert ("read only once" in said) == (effort == "high")
    assert not calibrated
    assert ptq(Two().eval(), "W4A8", pairs()).provenance["calibration_samples"] == 64


def test_the_effort_is_looked_at_first(calibrated: list[str]) -> None:
    def data() -> Iterator[Tensor]:
        pytest.fail("was read")
        yield torch.zeros(1)

    with pytest.raises(InputError, match="low, medium, high, not 'extreme'"):
        ptq(Two(), "W4A8", data(), effort="extreme")  # type: ignore[arg-type]  # on purpose
    assert not calibrated


def test_data_that_a_second_epoch_finds_used_up(calibrated: list[str]) -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 6)
    for given in ({"data": iter(x.split(32))}, {"data": x.split(32), "training": iter([x])}):
        with pytest.raises(DataError, match="read only once"):
            ptq(net, "W4A8", effort="high", **given)  # type: ignore[arg-type]  # keywords by name
    with pytest.raises(DataError, match="draws 32 samples a step, and there are 28 besides the 4"):
        ptq(net, "W4A8", [x[:32]], effort="medium")
    assert not calibrated


def test_a_model_without_a_block_is_not_skipped_in_silence(calibrated: list[str]) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids).mean(1)

    ids = torch.randint(0, 9, (64, 5))
    with pytest.raises(InputError, match="no convolution or linear layer of the model runs in int"):
        ptq(Table().eval(), "W8A8", [ids], effort="medium")
    assert not calibrated


def test_learned_rounding_of_a_table_is_refused_and_names_the_layers(calibrated: list[str]) -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 6)
    how = Reconstruction(steps=2, batch_size=8, learn="rounding")
    with pytest.raises(InputError, match=r"how 0, 2 train.*use learn='weights'"):
        ptq(net, "CODEBOOK2A8", [x], effort="medium", ladder=Ladder(blocks=how))
    assert not calibrated
    model = TrainableModel(ptq(net, "CODEBOOK2A8", [x]))
    with pytest.raises(InputError, match="how 0, 2 train"):
        reconstruct(model, x, how)


def test_climbing_itself_refuses_what_it_cannot_judge() -> None:
    quantized = ptq(Two().eval(), "W4A8", pairs())
    with pytest.raises(InputError, match=r"2 inputs \(x, y\)") as caught:
        climb(quantized, torch.randn(64, 6), pairs(), "medium")
    assert "2 outputs" in str(caught.value)


@pytest.mark.parametrize("goal", [0, 0.0, -1.0, 100.5, float("nan")])
def test_a_goal_is_above_0(goal: float) -> None:
    with pytest.raises(InputError, match=r"goal in \(0, 100\]"):
        Ladder(goal=goal)


class Islands(nn.Module):
    """Tokens, a float sum, a layer norm and a float activation between integer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a, self.norm = nn.Embedding(20, 12), nn.Linear(12, 12), nn.LayerNorm(12)
        self.b, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = self.norm(x + self.a(x))
        return self.head(nn.functional.hardswish(self.b(x)).mean(1))


def test_blocks_begin_and_end_at_float_tensors_too() -> None:
    torch.manual_seed(0)
    net, ids = Islands().eval(), torch.randint(0, 20, (64, 7))
    found = ptq(net, "W3A8", ids.split(16), effort="high", ladder=QUICK, progress=False)
    blocks = found.provenance["blocks"]
    assert [name for b in blocks for name in b["layers"]] == ["a", "b", "head"]
    assert all(b["kept"] or b["reason"] == "what was learned is no nearer" for b in blocks)
    assert len(found.provenance["rungs"]) == 3
    model = prepare(net, "W3A8", ids.split(16))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that each block has something to learn
        for weight in model.weights_of(["a", "b", "head"]):
            weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
    rows = reconstruct(model, ids, Reconstruction(steps=100, batch_size=8, lr=0.05))
    assert all(row.kept and row.after < 0.8 * row.before for row in rows)
