"""The training loop: learns, repeats exactly, and stops well when numbers go bad."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bitsmith as bs
from bitsmith.errors import DataError, InputError
from bitsmith.model.train import fit
from bitsmith.zoo.models.mlp import Mlp

Batch = tuple[Tensor, Tensor]


def shuffled(x: Tensor, y: Tensor, size: int) -> Callable[[int], Iterator[Batch]]:
    def batches(epoch: int) -> Iterator[Batch]:
        for index in torch.randperm(len(x)).split(size):
            yield x[index], y[index]

    return batches


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(y).long()


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 3e-3)])
def test_digits_reach_95_percent(
    digits: tuple[Tensor, Tensor], optimizer: Literal["sgd", "adamw"], lr: float
) -> None:
    x, y = digits
    # Drawn at random: in the order of the file the last 397 digits are clearly harder.
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    module = seeded(lambda: Mlp(in_features=64))
    batches, valid = shuffled(x[train], y[train], 64), [(x[test], y[test])]
    run = fit(module, batches, epochs=30, lr=lr, optimizer=optimizer, valid=valid)
    with torch.no_grad():
        accuracy = 100 * float((module(x[test]).argmax(1) == y[test]).double().mean())
    assert accuracy >= 95
    last = run.history[-1]
    assert last.valid_accuracy == pytest.approx(accuracy)
    assert last.samples == 1400
    assert last.loss < run.history[0].loss
    assert not module.training


def small() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)
    )


@pytest.fixture
def points() -> Batch:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()


def test_same_seed_same_weights_and_callers_random_state_is_kept(points: Batch) -> None:
    def trained(seed: int) -> tuple[nn.Module, object]:
        module = seeded(small)
        return module, fit(module, shuffled(*points, 16), epochs=3, seed=seed)

    a, run_a = trained(5)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert not torch.equal(before, state)
    module = small()
    after_building = torch.get_rng_state()
    module.load_state_dict(seeded_state())
    torch.set_rng_state(after_building)
    run_b = fit(module, shuffled(*points, 16), epochs=3, seed=5)
    assert torch.equal(torch.get_rng_state(), after_building)
    assert run_a == run_b
    for name, value in a.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    other, _ = trained(6)
    assert not torch.equal(other[0].weight, a[0].weight)


def seeded_state() -> dict[str, Tensor]:
    return seeded(small).state_dict()


def test_equals_plain_pytorch_step_by_step(points: Batch) -> None:
    """The oracle is PyTorch's own optimizer and scheduler, written out."""
    batches = [(points[0][i : i + 16], points[1][i : i + 16]) for i in range(0, 64, 16)]
    module, reference = seeded(lambda: nn.Linear(4, 2)), seeded(lambda: nn.Linear(4, 2))
    run = fit(module, batches, epochs=3, lr=0.2, weight_decay=0.1)
    groups = [{"params": [reference.weight]}, {"params": [reference.bias], "weight_decay": 0.0}]
    descent = torch.optim.SGD(groups, lr=0.2, momentum=0.9, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        descent, lambda step: (1 + math.cos(math.pi * step / 12)) / 2
    )
    losses = []
    for _ in range(3):
        for x, y in batches:
            descent.zero_grad()
            loss = F.cross_entropy(reference(x), y)
            loss.backward()
            descent.step()
            schedule.step()
            losses.append(float(loss.detach()))
    torch.testing.assert_close(module.weight, reference.weight)
    torch.testing.assert_close(module.bias, reference.bias)
    assert [e.loss for e in run.history] == pytest.approx(
        [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    )
    assert [e.lr for e in run.history] == pytest.approx([0.2, 0.15, 0.05])


def test_unknown_length_is_learned_from_the_epoch_before(points: Batch) -> None:
    """From the second epoch on, a generator is scheduled as a list is."""
    batches = [(points[0][i : i + 16], points[1][i : i + 16]) for i in range(0, 64, 16)]
    rates: dict[str, list[float]] = {}
    original = torch.optim.SGD.step
    for kind in ("list", "generator"):
        rates[kind] = []

        def step(self: torch.optim.SGD, *args: Any, kind: str = kind) -> Any:
            rates[kind].append(self.param_groups[0]["lr"])
            return original(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", step)
            source = batches if kind == "list" else lambda epoch: iter(batches)
            fit(seeded(small), source, epochs=3)
    assert rates["generator"][:4] == [0.05] * 4
    assert rates["generator"][4:] == pytest.approx(rates["list"][4:])


def test_frozen_parameters_stay(points: Batch) -> None:
    module = seeded(small)
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    fit(module, [points], epochs=2)
    assert torch.equal(module[0].weight, before)


def test_on_epoch_is_called_in_training_mode(points: Batch) -> None:
    seen = []
    fit(seeded(small), [points], epochs=2, on_epoch=lambda i, m: seen.append((i, m.training)))
    assert seen == [(0, True), (1, True)]


def test_other_loss_has_no_accuracy(points: Batch) -> None:
    x = points[0]
    target = x @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]])
    module = nn.Linear(4, 1)
    run = fit(
        module,
        [(x, target)],
        epochs=100,
        lr=0.1,
        loss=F.mse_loss,
        weight_decay=0,
        valid=[(x, target)],
    )
    assert run.history[-1].valid_accuracy is None
    assert run.history[-1].valid_loss < 1e-3


def test_nan_in_the_data_keeps_the_last_good_state(points: Batch) -> None:
    x, y = points
    good = {}

    def batches(epoch: int) -> Iterator[Batch]:
        if epoch == 2:
            good.update({k: v.clone() for k, v in module.state_dict().items()})
        for step in range(3):
            yield (x * float("nan") if (epoch, step) == (2, 1) else x), y

    module = seeded(small)
    with pytest.raises(InputError, match=r"nan at epoch 3, step 2.*the end of epoch 2"):
        fit(module, batches, epochs=4)
    assert not module.training
    for name, value in good.items():
        assert torch.equal(module.state_dict()[name], value), name


def test_weights_that_blow_up_in_the_last_step(points: Batch) -> None:
    """The loss of the only step is finite; the weights after it are not."""
    module = seeded(lambda: nn.Linear(4, 2))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(InputError, match=r"epoch 1: weight.*before training.*lower the learning"):
        fit(module, [(points[0] * 1e20, points[1])], epochs=1, lr=1e30)
    for name, value in before.items():
        assert torch.equal(module.state_dict()[name], value)


def test_interruption_leaves_evaluation_mode(points: Batch) -> None:
    def batches(epoch: int) -> Iterator[Batch]:
        yield points
        raise KeyboardInterrupt

    module = seeded(small)
    with pytest.raises(KeyboardInterrupt):
        fit(module, batches, epochs=1)
    assert not module.training


def test_bad_settings(points: Batch) -> None:
    with pytest.raises(InputError, match="epochs must be at least 1"):
        fit(small(), [points], epochs=0)
    with pytest.raises(InputError, match="lr must be positive"):
        fit(small(), [points], epochs=1, lr=float("nan"))
    with pytest.raises(InputError, match="'sgd' or 'adamw'"):
        fit(small(), [points], epochs=1, optimizer="adam")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(InputError, match="no parameter"):
        fit(nn.ReLU(), [points], epochs=1)
    with pytest.raises(DataError, match="no training batches"):
        fit(small(), [], epochs=1)
    with pytest.raises(DataError, match="can be read only once"):
        fit(small(), iter([points]), epochs=2)
    with pytest.raises(DataError, match="no validation batches"):
        fit(small(), [points], epochs=1, valid=[])


def test_no_output_where_there_is_no_terminal(
    points: Batch, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(seeded(small), [points], epochs=2)
    assert capfd.readouterr() == ("", "")


def test_the_test_split_and_what_is_no_module_are_refused() -> None:
    digits = bs.load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(DataError, match="train split only"):
        fit(net, digits.split("test").batches(32), epochs=1, progress=False)
    loaded: Any = bs.load_model("digits-cnn", pretrained=False)
    with pytest.raises(InputError, match=r"LoadedModel is no .* give its \.module"):
        fit(loaded, digits.split("train").batches(32), epochs=1, progress=False)
