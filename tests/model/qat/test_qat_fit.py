"""The training loop for quantized models: distillation, labels, divergence, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitsmith.errors import DataError, InputError
from bitsmith.model.qat import convert, fit, prepare
from bitsmith.model.qat.fit import distillation, parameter_groups
from bitsmith.model.qat.relative import RelativeAdam


@pytest.fixture
def images() -> Tensor:
    return torch.randn(96, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


@pytest.mark.parametrize("recipe", ["W2A4", "W3A8-edge8", "CODEBOOK2A8"])
def test_distillation_needs_no_labels_and_deploys_what_it_trained(
    network: nn.Module, images: Tensor, recipe: str
) -> None:
    model = prepare(network, recipe, images.split(32))
    with torch.no_grad():  # from where there is something to learn
        for bias in model.biases.parameters():
            bias.add_(0.3 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)))
        before = float(distillation(model(images), network(images)))
    run = fit(model, images.split(32), epochs=10, lr=3e-3, progress=False)
    assert run.history[-1].loss < 0.9 * before
    model.train()
    assert torch.equal(model(images), convert(model)(images))


def test_module_lane_takes_a_teacher(network: nn.Module, images: Tensor) -> None:
    model = prepare(network, "W2")
    with pytest.raises(InputError, match="a teacher is needed"):
        fit(model, images.split(32), epochs=1, progress=False)
    run = fit(model, images.split(32), epochs=5, teacher=network, progress=False)
    assert run.history[-1].loss < run.history[0].loss
    # the same weights bit for bit; native kernels add float sums in an order of their own
    torch.testing.assert_close(convert(model)(images), model(images), rtol=1e-5, atol=1e-6)


def test_labels_where_they_are_wanted(network: nn.Module, images: Tensor) -> None:
    model = prepare(network, "W4A8", images.split(32))
    y = images[:, :4].argmax(1)
    fit(model, [(images, y)], epochs=2, labels=True, progress=False)
    for unlabelled in (list(images.split(32)), [(images, None)]):
        with pytest.raises(DataError, match="have no labels"):
            fit(model, unlabelled, epochs=1, labels=True, progress=False)
    with pytest.raises(InputError, match="not both"):
        fit(model, [(images, y)], epochs=1, labels=True, teacher=network)


def test_the_teacher_says_what_a_mixture_is(network: nn.Module, images: Tensor) -> None:
    seen: list[Tensor] = []

    def teacher(x: Tensor) -> Tensor:
        seen.append(x)
        return network(x)

    model = prepare(network, "W4A8", images.split(32))
    fit(model, [torch.eye(12)], epochs=2, teacher=teacher, mix=True, progress=False)
    for x in seen:
        assert int((x > 0).sum(1).max()) == 2
    assert not torch.equal(*seen)
    table = nn.Sequential(nn.Embedding(9, 12), nn.Flatten(), nn.Linear(24, 4)).eval()
    tokens = torch.randint(0, 9, (6, 2))
    with pytest.raises(DataError, match=r"mixed are floats, and these are torch.int64"):
        fit(prepare(table, "W4"), [tokens], epochs=1, teacher=table, mix=True, progress=False)
    with pytest.raises(InputError, match="no one label"):
        fit(model, [(images, images[:, 0])], epochs=1, labels=True, mix=True)


def test_divergence_stops_names_the_parameter_and_keeps_the_last_good_state(
    network: nn.Module, images: Tensor
) -> None:
    model = prepare(network, "W4A8", images.split(32))
    good = {k: v.clone() for k, v in model.state_dict().items()}
    scale = next(k for k in good if "log_scale" in k and "weights" in k)

    def spoil(trained: nn.Module) -> None:
        dict(trained.named_parameters())[scale].data.fill_(float("nan"))

    with pytest.raises(InputError) as caught:
        fit(model, images.split(32), epochs=2, on_step=spoil, progress=False)
    assert f"layer {scale.split('.')[1]}: scale: " in str(caught.value)
    assert "lower the learning rate (0.003, 0.001)" in str(caught.value)
    assert all(torch.equal(v, good[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("mix", [False, True])
def test_a_broken_run_goes_on_bit_for_bit(
    network: nn.Module, images: Tensor, tmp_path: Path, mix: bool
) -> None:
    def stop(epoch: int, _: nn.Module) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    data, path = images.split(32), tmp_path / "run.pt"
    whole = prepare(network, "W3A4", data)
    history = fit(whole, data, epochs=4, mix=mix, progress=False).history
    broken = prepare(network, "W3A4", data)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, data, epochs=4, mix=mix, on_epoch=stop, checkpoint=path, progress=False)
    fresh = prepare(network, "W3A4", data)
    resumed = fit(fresh, data, epochs=4, mix=mix, checkpoint=path, progress=False)
    assert resumed.history == history
    for k, v in whole.state_dict().items():
        assert torch.equal(v, fresh.state_dict()[k]), k
    with pytest.raises(InputError, match=f"mix: {mix} there, {not mix} now"):
        fit(fresh, data, epochs=4, mix=not mix, checkpoint=path, progress=False)
    other = prepare(network, "W2A4", data)
    with pytest.raises(InputError, match=r"recipe: 'W3A4' there, 'W2A4' now"):
        fit(other, data, epochs=4, mix=mix, checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="not a training checkpoint, or is damaged"):
        fit(fresh, data, epochs=4, mix=mix, checkpoint=path, progress=False)


def test_one_pass_data_is_refused_for_several_epochs(network: nn.Module, images: Tensor) -> None:
    model = prepare(network, "W4A8", images.split(32))
    with pytest.raises(DataError, match="read only once"):
        fit(model, iter(images.split(32)), epochs=2, progress=False)


def test_scales_have_their_own_rate(network: nn.Module, images: Tensor) -> None:
    for model in (prepare(network, "W4A8", images.split(32)), prepare(network, "W4")):
        rates = {id(p): g["lr"] for g in parameter_groups(model, 1.0, 2.0) for p in g["params"]}
        for name, p in model.named_parameters():
            scale = name.rpartition(".")[2] in ("log_scale", "scale", "offset")
            assert not p.requires_grad or rates[id(p)] == (2.0 if scale else 1.0), name


def test_distillation_is_the_divergence_at_temperature_four() -> None:
    ours, theirs = torch.randn(5, 7), torch.randn(5, 7)
    p, q = torch.softmax(theirs.double() / 4, 1), torch.softmax(ours.double() / 4, 1)
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation(ours, theirs)) == pytest.approx(float(expected), rel=1e-4)


def test_relative_steps_are_shares_of_a_channel() -> None:
    weight = nn.Parameter(torch.tensor([[8.0, -8.0], [0.5, 0.5], [0.0, 0.0]]))
    scalar = nn.Parameter(torch.tensor(5.0))
    descent = RelativeAdam([{"params": [weight, scalar]}], lr=0.1)
    before = weight.detach().clone()
    (weight.sum() + scalar).backward()
    descent.step()
    moved = before - weight.detach()
    assert moved[0].tolist() == pytest.approx([0.8, 0.8], rel=1e-4)
    assert moved[1].tolist() == pytest.approx([0.05, 0.05], rel=1e-4)
    assert bool((moved[2] > 0).all())  # a channel of zeros takes the whole weight's size
    assert float(scalar.detach()) == pytest.approx(4.9, rel=1e-5)


class Two(nn.Module):
    """Two inputs, or two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.one(a) + self.other(b)


class Heads(Two):
    def forward(self, a: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # one input
        return self.one(a), self.other(a)


def test_what_it_cannot_give_or_compare_is_said(network: nn.Module, images: Tensor) -> None:
    two = prepare(Two().eval(), "W4A8", [((images, images), None)])
    with pytest.raises(InputError, match="models of one input, and this one has 2"):
        fit(two, [((images, images), None)], epochs=1, progress=False)
    module = prepare(Two().eval(), "W4")
    for batch in (((images, images), None), (images, images, images)):
        with pytest.raises(DataError, match="gives a model one input"):
            fit(module, [batch], epochs=1, teacher=network, progress=False)
    with pytest.raises(DataError, match=r"a batch is x, .*, not dict"):
        fit(module, [{"x": images}], epochs=1, teacher=network, progress=False)
    heads = Heads().eval()
    with pytest.raises(InputError, match="one output, and the model gives a tuple"):
        fit(prepare(heads, "W4A8", images), [images], epochs=1, progress=False)
    with pytest.raises(InputError, match="the teacher gives a tuple"):
        fit(prepare(heads, "W4"), [images], epochs=1, teacher=heads, progress=False)


def test_one_output_is_no_class(images: Tensor) -> None:
    model = prepare(nn.Linear(12, 1).eval(), "W4A8", images)
    pairs = [(images, images[:, :1])]
    with pytest.raises(InputError, match=r"at least two classes .* gives \[96, 1\]: give loss"):
        fit(model, pairs, epochs=1, labels=True, progress=False)
    squared = nn.functional.mse_loss
    run = fit(model, pairs, epochs=3, labels=True, loss=squared, progress=False)
    assert 0 < run.history[-1].loss < run.history[0].loss


def test_the_optimizer_is_one_of_this_model(network: nn.Module, images: Tensor) -> None:
    model = prepare(network, "W4A8", images)
    foreign = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"4 of 4 parameters of the optimizer are not"):
        fit(model, [images], epochs=1, optimizer=foreign, progress=False)
    with pytest.raises(InputError, match=r"optimizer is one of torch\.optim"):
        fit(model, [images], epochs=1, optimizer="sgd", progress=False)  # type: ignore[arg-type]


def test_validation_is_against_the_teacher_too(network: nn.Module, images: Tensor) -> None:
    model = prepare(network, "W4A8", images)
    run = fit(model, [images], epochs=1, valid=images.split(32), progress=False)
    with torch.no_grad():
        wanted = float(distillation(model(images), network(images)))
    assert run.history[-1].valid_loss == pytest.approx(wanted, rel=1e-4)


def test_a_scale_of_nothing_is_told_when_it_is_deployed(network: nn.Module, images: Tensor) -> None:
    model = prepare(network, "W3A8", images)
    with torch.no_grad():
        model.codes_of("0").log_scale.fill_(-8.0)
    with pytest.warns(RuntimeWarning, match="layer 0: its scale has collapsed to 0"):
        convert(model)
