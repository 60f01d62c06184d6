"""Data from batch norms: it has their statistics and the classes, and repeats exactly."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bitsmith.data import Augmentation, Normalization, load_dataset, training_batches
from bitsmith.errors import DataError, InputError, WeightsError
from bitsmith.model.evaluate import accuracy
from bitsmith.model.ptq import ptq
from bitsmith.model.train import fit
from bitsmith.model.zero_shot import Synthesis, SyntheticBatches, synthesize
from bitsmith.zoo.models.digits_cnn import DigitsNet

SHAPE = (1, 8, 8)
#: Digits are in [0, 1], not normalised.
DIGITS = {"limits": (0.0, 1.0), "input_weight": 0.0}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    model = DigitsNet(width=8)
    batches = training_batches(load_dataset("digits"), 64, augmentation=Augmentation())
    fit(model, batches, epochs=6, lr=0.1, progress=False)
    assert accuracy(model, load_dataset("digits").split("test").batches(540)) > 95
    return model


@pytest.fixture(scope="module")
def made(net: nn.Module) -> SyntheticBatches:
    return synthesize(net, SHAPE, samples=128, batch_size=64, **DIGITS)


def joined(batches: SyntheticBatches) -> tuple[Tensor, Tensor]:
    parts = list(batches)
    assert all(y is not None for _, y in parts)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts if y is not None])


def distance(model: nn.Module, x: Tensor) -> float:
    """Return the mean relative distance of mean and deviation, by other means than the code."""
    given: list[tuple[nn.BatchNorm2d, Tensor]] = []
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [
        m.register_forward_hook(lambda m, i, _: given.append((m, i[0].double()))) for m in norms
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    parts = []
    for norm, h in given:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        std = (norm.running_var.double() + norm.eps).sqrt()
        off = (h.mean((0, 2, 3)) - norm.running_mean) / std
        wide = (h.var((0, 2, 3), correction=0) + norm.eps).sqrt() / std - 1
        parts.append((off**2 + wide**2).mean())
    return float(torch.stack(parts).mean())


def test_statistics_come_ten_times_as_near(net: nn.Module, made: SyntheticBatches) -> None:
    for (x, _), run in zip(made, made.runs, strict=True):
        assert run.distance < run.start_distance / 10
        assert run.distance == pytest.approx(distance(net, x), rel=1e-3)
    noise = torch.rand(64, *SHAPE)
    assert made.runs[0].distance < distance(net, noise) / 10


def test_samples_are_of_every_class_and_known_as_such(
    net: nn.Module, made: SyntheticBatches
) -> None:
    x, y = joined(made)
    assert x.shape == (128, *SHAPE)
    assert x.dtype == torch.float32
    assert int(torch.bincount(y, minlength=10).min()) >= 12
    with torch.no_grad():
        probability = net.eval()(x).softmax(1)
    assert float((probability.argmax(1) == y).double().mean()) > 0.95
    confidence = float(probability.gather(1, y[:, None]).double().mean())
    assert confidence > 0.9
    means = [run.confidence for run in made.runs]
    assert sum(m for m in means if m is not None) / 2 == pytest.approx(confidence, rel=1e-4)
    assert accuracy(net, made) > 95


def test_within_limits_and_no_two_alike(made: SyntheticBatches) -> None:
    x, _ = joined(made)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    apart = torch.cdist(x.flatten(1), x.flatten(1)) + 99 * torch.eye(len(x))
    assert float(apart.min()) > 0.1


def test_ranges_from_it_quantize_as_well_as_those_from_data(
    net: nn.Module, made: SyntheticBatches
) -> None:
    digits = load_dataset("digits")
    test = list(digits.split("test").batches(540))
    real = accuracy(ptq(net, "W8A8", digits.split("train").batches(64, limit=128)), test)
    noise = accuracy(ptq(net, "W8A8", made), test)
    assert noise > real - 1.0


def test_same_seed_same_samples_and_nothing_else_changes(net: nn.Module) -> None:
    model = copy.deepcopy(net).train()
    model.stem.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    def run(seed: int) -> Tensor:
        return joined(synthesize(model, SHAPE, samples=20, steps=3, seed=seed))[0]

    first = run(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(run(1), first)
    assert not torch.equal(run(2), first)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model.stem.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_batches_are_of_nearly_one_size_and_differ(net: nn.Module) -> None:
    made = synthesize(net, SHAPE, samples=50, batch_size=16, steps=1)
    sizes = [len(x) for x, _ in made]
    assert (len(made), made.samples, sum(sizes)) == (4, 50, 50)
    assert max(sizes) <= 16
    assert max(sizes) - min(sizes) <= 1
    first, second = (x for x, _ in list(made)[:2])
    assert not torch.equal(first[:12], second[:12])


def test_what_is_handed_out_is_a_copy(net: nn.Module) -> None:
    made = synthesize(net, SHAPE, samples=8, steps=1)
    x, y = next(iter(made))
    before = x.clone()
    x.zero_()
    assert y is not None
    y.fill_(99)
    again, classes = next(iter(made))
    assert torch.equal(again, before)
    assert classes is not None
    assert int(classes.max()) < 10


def test_half_the_memory(net: nn.Module) -> None:
    whole, half = (synthesize(net, SHAPE, samples=8, steps=2, half=h) for h in (False, True))
    assert half._batches[0][0].dtype == torch.float16
    assert torch.equal(joined(half)[0], joined(whole)[0].half().float())


def after(calls: int, action: Callable[[], None]) -> nn.Module:
    """Return a layer that passes its input on and acts at one of its calls."""
    count = 0

    def hook(*_: object) -> None:
        nonlocal count
        count += 1
        if count == calls:
            action()

    layer = nn.Identity()
    layer.register_forward_hook(hook)
    return layer


def test_interrupted_it_keeps_what_is_done_and_goes_on(net: nn.Module) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    options = {"samples": 24, "batch_size": 8, "steps": 4, "seed": 3}
    whole = synthesize(net, SHAPE, **options)
    kept = SyntheticBatches()
    # One call to see whether the model takes the shape, five for the first batch, two more.
    stopping = nn.Sequential(net, after(8, interrupt))
    with pytest.raises(KeyboardInterrupt):
        synthesize(stopping, SHAPE, into=kept, **options)
    assert (len(kept), kept.samples, len(kept.runs)) == (1, 8, 1)
    assert torch.equal(next(iter(kept))[0], next(iter(whole))[0])
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert synthesize(stopping, SHAPE, into=kept, **options) is kept
    for (a, b), (c, d) in zip(kept, whole, strict=True):
        assert torch.equal(a, c)
        assert b is not None
        assert d is not None
        assert torch.equal(b, d)
    assert kept.runs == whole.runs
    assert len(synthesize(stopping, SHAPE, into=kept, **options)) == 3


def test_going_on_with_other_settings_is_refused(net: nn.Module) -> None:
    kept = synthesize(net, SHAPE, samples=8, steps=1)
    with pytest.raises(InputError, match=r"begun with steps 1 \(now 2\), lr 0.2 \(now 0.1\)"):
        synthesize(net, SHAPE, samples=8, steps=2, lr=0.1, into=kept)
    other = copy.deepcopy(net)
    other.stem[1].running_mean += 1
    with pytest.raises(InputError, match="begun with statistics"):
        synthesize(other, SHAPE, samples=8, steps=1, into=kept)


def trained(*layers: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    for _ in range(30):
        model(torch.randn(64, *shape))
    return model


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ((6,), [nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)]),
        ((2, 12), [nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(40, 3)]),
        ((2, 3, 4, 5), [nn.Conv3d(2, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(240, 3)]),
        ((3, 5, 1), [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(20, 3)]),
    ],
    ids=["points", "series", "volumes", "columns"],
)
def test_inputs_of_any_number_of_axes(shape: tuple[int, ...], layers: list[nn.Module]) -> None:
    model = trained(*layers, shape=shape)
    made = synthesize(model, shape, samples=64, steps=60)
    assert next(iter(made))[0].shape == (64, *shape)
    assert made.runs[0].distance < 0.05
    assert made.runs[0].distance < made.runs[0].start_distance


def test_without_classes() -> None:
    dense = trained(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), shape=SHAPE)
    with pytest.raises(InputError, match=r"output is of shape \[16, 4, 8, 8\]; class_weight=0"):
        synthesize(dense, SHAPE, samples=16, steps=1)
    made = synthesize(dense, SHAPE, samples=16, steps=1, class_weight=0)
    assert next(iter(made))[1] is None
    assert (made.runs[0].agreement, made.runs[0].confidence) == (None, None)


def test_a_double_precision_model_and_limits_of_each_channel() -> None:
    model = trained(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), shape=(3, 4, 4)).double()
    limits = Normalization((0.5, 0.4, 0.3), (0.5, 0.2, 0.1)).limits
    made = synthesize(model, (3, 4, 4), samples=32, steps=5, limits=limits)
    (x, _), *_ = made
    assert x.dtype == torch.float32
    for channel, (low, high) in enumerate(zip(*limits, strict=True)):
        assert low - 1e-6 <= float(x[:, channel].min())
        assert float(x[:, channel].max()) <= high + 1e-6
    with pytest.raises(DataError, match="float samples have no limits"):
        _ = Normalization().limits


def test_models_that_remember_nothing(net: nn.Module) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.LayerNorm(4))
    held = r"Sequential has no batch norms, only Conv2d ×2, ReLU ×1, LayerNorm ×1;.*use real data"
    with pytest.raises(InputError, match=held):
        synthesize(plain, SHAPE)
    blank = nn.Sequential(
        nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1, track_running_stats=False)
    )
    with pytest.raises(InputError, match="without running statistics: 0, 1;"):
        synthesize(blank, SHAPE)
    with pytest.raises(InputError, match=r"never trained.*: stem\.1, first\.1, second\.1"):
        synthesize(DigitsNet(), SHAPE)
    damaged = copy.deepcopy(net)
    damaged.stem[1].running_var[0] = -1.0
    damaged.down[1].running_mean[0] = float("nan")
    with pytest.raises(WeightsError, match=r"negative variance: stem\.1, down\.1"):
        synthesize(damaged, SHAPE)


def test_shapes_that_are_unknown_or_do_not_fit(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"its first layer is stem\.0 = Conv2d\(1, 8, .*shape="):
        synthesize(net)
    with pytest.raises(InputError, match=r"DigitsNet does not take .* shape \[3, 8, 8\]: .*1 ch"):
        synthesize(net, (3, 8, 8))


def test_batch_norms_that_are_never_called() -> None:
    @torch.no_grad()
    def forward(x: Tensor) -> Tensor:
        return x

    model = trained(nn.BatchNorm2d(1), shape=SHAPE)
    model.forward = forward  # type: ignore[method-assign]  # a pass that goes around its layers
    with pytest.raises(InputError, match="its forward pass calls none of 0"):
        synthesize(model, SHAPE)


def test_every_setting_out_of_range_is_named(net: nn.Module) -> None:
    with pytest.raises(InputError) as caught:
        synthesize(
            net,
            (1, 0, 8),
            samples=4,
            steps=0,
            seed=-1,
            lr=float("nan"),
            smoothness=-1,
            class_weight=float("inf"),
            temperature=0.0,
            limits=((0.0, 0.0), 1.0),
        )
    for part in ("(1, 0, 8)", "samples (4)", "steps (0)", "seed (-1)", "lr is", "smoothness is",
                 "class_weight is", "temperature is", "limits are numbers or 1"):  # fmt: skip
        assert part in str(caught.value)
    with pytest.raises(InputError, match="the least value is below the greatest"):
        synthesize(net, SHAPE, limits=(1.0, 1.0))


def test_it_stops_where_numbers_go_bad(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"batch 1: the objective is (nan|inf) at step \d; lower"):
        synthesize(net, SHAPE, samples=8, steps=9, lr=1e30)


def test_a_bar_is_drawn_on_terminals_only(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def drawn(stream: io.StringIO, progress: bool) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        synthesize(net, SHAPE, samples=8, steps=2, progress=progress)
        return stream.getvalue()

    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "synthesising" in drawn(Terminal(), True)
    assert drawn(Terminal(), False) == ""
    assert drawn(io.StringIO(), True) == ""


def test_runs_compare_without_their_seconds() -> None:
    assert Synthesis(1.0, 0.1, None, None, 3.0) == Synthesis(1.0, 0.1, None, None, 4.0)


def test_a_model_without_parameters() -> None:
    model = trained(nn.BatchNorm2d(1, affine=False), nn.Flatten(), shape=SHAPE)
    assert synthesize(model, SHAPE, samples=8, steps=1).samples == 8
