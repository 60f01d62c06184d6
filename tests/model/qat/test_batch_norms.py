"""Batch norms that train folded: PyTorch's own numbers in training, deployment's when frozen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitsmith.data import load_dataset
from bitsmith.errors import DataError, InputError
from bitsmith.model.qat import convert, freeze_batch_norms, prepare, reestimate_batch_norms
from bitsmith.model.qat.batch_norms import FoldedNorm, NormStart
from networks.harness import randomised
from networks.structured import Residual

X = torch.randn(24, 8, 9, 10, generator=torch.Generator().manual_seed(0))


def norm(channels: int = 5, gamma: float | None = None) -> FoldedNorm:
    generator = torch.Generator().manual_seed(1)
    parts = torch.rand(5, channels, generator=generator) + 0.5
    if gamma is not None:
        parts[0, 2] = gamma
    weight = torch.randn(channels, 3, 3, 3, generator=generator)
    return FoldedNorm(NormStart(weight, parts[1], parts[0], parts[2], parts[3], parts[4], 1e-5))


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (40, 5)])
def test_the_batch_is_normalised_as_by_pytorch(shape: tuple[int, ...]):
    folded, y = norm(), torch.randn(shape, generator=torch.Generator().manual_seed(2))
    wide = (1, -1, *[1] * (len(shape) - 2))
    a = (folded.gamma * torch.rsqrt(folded.running_var + folded.eps)).detach()
    mean, var = folded.running_mean.clone(), folded.running_var.clone()
    raw = y.clone().requires_grad_()
    expected = F.batch_norm(raw, mean, var, folded.gamma, folded.beta, True, 0.1, folded.eps)
    own = y.clone().requires_grad_()
    made = folded.normalised(own * a.reshape(wide))
    assert torch.allclose(made, expected, atol=1e-5)
    assert torch.allclose(folded.running_mean, mean, atol=1e-6)
    assert torch.allclose(folded.running_var, var, atol=1e-5)
    slope = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    (ours,) = torch.autograd.grad((made * slope).sum(), own)
    (theirs,) = torch.autograd.grad((expected * slope).sum(), raw)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_folding_is_the_running_batch_norm():
    folded = norm()
    generator = torch.Generator().manual_seed(4)
    x, w = torch.randn(2, 3, 6, 6, generator=generator), torch.randn(5, 3, 3, 3)
    weight, size, bias = folded.folded(w)
    weight = weight * size.reshape(-1, 1, 1, 1)
    expected = F.batch_norm(
        F.conv2d(x, w), folded.running_mean, folded.running_var, folded.gamma, folded.beta,
        False, 0.1, folded.eps,
    )  # fmt: skip
    assert torch.allclose(F.conv2d(x, weight, bias), expected, atol=1e-4)
    (weight.sum() + bias.sum()).backward()
    assert folded.get_parameter("gamma").grad is not None


def test_a_bias_before_a_batch_norm_moves_its_mean():
    folded = norm()
    parts = torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) + 0.5
    assert torch.allclose(folded.running_mean, parts[3] - parts[1])


def test_a_gamma_of_zero_keeps_its_statistics():
    folded = norm(gamma=0.0)
    before = folded.running_var.clone()
    y = torch.randn(8, 5, 3, 3)
    y[:, 2] = 0
    made = folded.normalised(y)
    assert bool(made.isfinite().all())
    assert torch.allclose(folded.running_var[2], before[2])


def trained(model: nn.Module, count: int = 3) -> None:
    model.train()
    descent = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(count):
        descent.zero_grad()
        model(X).square().mean().backward()
        descent.step()


def made() -> nn.Module:
    torch.manual_seed(0)
    return prepare(randomised(Residual()), "W4A8", X, batch_norm="train")


def test_it_starts_where_folding_does():
    model = made()
    torch.manual_seed(0)
    folded = prepare(randomised(Residual()), "W8A8", X)
    near, far = convert(model)(X), convert(folded)(X)
    assert (near - far).square().mean() < 0.1 * far.square().mean()
    assert len(model.norms) == 5  # the body is called twice, and each call is a layer of its own


def test_statistics_move_until_they_are_frozen():
    model = made()
    running = model.norms["stem__0"].running_mean
    before = running.clone()
    trained(model, 1)
    assert not torch.equal(running, before)
    freeze_batch_norms(model)
    before = running.clone()
    trained(model, 2)
    assert torch.equal(running, before)
    assert torch.equal(model(X), convert(model)(X))
    freeze_batch_norms(model, False)
    trained(model, 1)
    assert not torch.equal(running, before)


def test_statistics_are_found_anew():
    model = made()
    with torch.no_grad():
        for folded in model.norms.values():
            folded.running_mean.add_(0.5)
    lost = (model.train()(X) - model.eval()(X)).square().mean()
    model.train()
    freeze_batch_norms(model)
    reestimate_batch_norms(model, [(X, torch.zeros(24).long())])
    assert model.training
    assert int(model.norms["stem__0"].frozen) == 1
    frozen = model(X)
    freeze_batch_norms(model, False)
    assert (model(X) - frozen).square().mean() < 0.1 * lost
    with pytest.raises(DataError, match="no batches"):
        reestimate_batch_norms(model, [])


@pytest.mark.parametrize("recipe", ["W4A8", "W4"])
@pytest.mark.parametrize("bad", [[], [X, X * float("nan")]], ids=["no batches", "NaN"])
def test_statistics_stay_where_none_can_be_found(recipe: str, bad: list[torch.Tensor]):
    model = prepare(
        randomised(Residual()), recipe, X, **({"batch_norm": "train"} if recipe == "W4A8" else {})
    ).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if torch.is_tensor(v)}
    with pytest.raises(DataError, match=r"no batches|batch 2 has values that are NaN"):
        reestimate_batch_norms(model, bad)
    for name, value in before.items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(DataError, match="train split only"):
        reestimate_batch_norms(model, load_dataset("digits").split("test").batches(8))


def test_norms_whose_layers_stay_are_told():
    torch.manual_seed(0)
    net = randomised(Residual())
    with pytest.raises(InputError, match=r"stem\.0.* stay folded.* learn_edges=True"):
        prepare(net, "W8A8", X, batch_norm="train")
    with pytest.warns(RuntimeWarning, match=r"batch norms of stem\.0 stay folded"):
        some = prepare(net, "W4A8-edge8", X, batch_norm="train")
    assert len(some.norms)
    assert len(prepare(net, "W8A8", X, batch_norm="train", learn_edges=True).norms) == 5


def test_modules_keep_their_batch_norms():
    torch.manual_seed(0)
    model = prepare(randomised(Residual()), "W4").train()
    stem = model.get_submodule("stem.1")
    freeze_batch_norms(model)
    before = stem.running_mean.clone()
    model(X)
    assert torch.equal(stem.running_mean, before)
    reestimate_batch_norms(model, [X])
    assert not torch.equal(stem.running_mean, before)
    before = stem.running_mean.clone()
    model.train()(X)
    assert torch.equal(stem.running_mean, before)  # still frozen
    freeze_batch_norms(model, False)
    model(X)
    assert not torch.equal(stem.running_mean, before)
    assert stem.momentum == 0.1


def test_without_batch_norms():
    model = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "W4A4", torch.randn(8, 4))
    with pytest.raises(InputError, match="batch_norm='train'"):
        freeze_batch_norms(model)
    with pytest.raises(InputError, match="no batch norm that folds"):
        prepare(nn.Linear(4, 4), "W4A4", torch.randn(8, 4), batch_norm="train")
