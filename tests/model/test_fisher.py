"""Squared gradients sample by sample: against formulas, finite differences and torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from bitsmith.algorithms import FisherKMeans, KMeans
from bitsmith.errors import DataError
from bitsmith.model.fisher import squared_gradients
from bitsmith.numbers import PerChannel, Scheme, codebook2
from bitsmith.numbers.statistics import Fisher


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    stem = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    return nn.Sequential(*stem, nn.ReLU(), nn.Dropout(), nn.Linear(36, 3))


def batches(seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 2, 5, 5, generator=g), torch.randint(3, (n,), generator=g)) for n in (4, 3)
    ]


def test_it_is_the_mean_of_per_sample_squares():
    """Against torch.func's vectorised gradients; whatever the batches."""
    model, data = network(), batches()
    found = squared_gradients(model, ["0.weight", "5.weight"], data)
    model.eval()
    params = dict(model.named_parameters())
    buffers = dict(model.named_buffers())

    def loss(p, x, y):
        logits = torch.func.functional_call(model, {**p, **buffers}, (x[None],))
        return functional.cross_entropy(logits, y[None])

    x, y = (torch.cat(part) for part in zip(*data, strict=True))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
    for name, fisher in found.items():
        wanted = each[name].detach().double().square().mean(0)
        torch.testing.assert_close(fisher.mean_square, wanted, rtol=1e-4, atol=1e-12)
        assert fisher.samples == 7
    split = squared_gradients(
        model, ["5.weight"], [(a[None], b[None]) for a, b in zip(x, y, strict=True)]
    )
    torch.testing.assert_close(split["5.weight"].sums, found["5.weight"].sums, rtol=1e-6, atol=0)


def test_the_model_is_left_as_it_was():
    model = network().train()
    model[5].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    told = []
    with torch.no_grad():
        squared_gradients(model, ["5.weight"], batches(), advance=told.append)
    assert told == [4, 3]
    assert not model[5].weight.requires_grad
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert [m.training for m in model] == [True, True, True, True, False, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_without_labels_it_estimates_the_fisher_information():
    """Logistic regression, where E_y[(p − y)²] = p·(1 − p) is known: many draws come to it."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.2], [-0.3, 0.8]]))
    x = torch.tensor([[1.0, 2.0]]).repeat(3000, 1)
    found = squared_gradients(layer, ["weight"], [x])["weight"].mean_square
    p = torch.softmax(layer(x[:1]), 1)[0].double().detach()
    wanted = (p * (1 - p))[:, None] * x[0].double().square()
    torch.testing.assert_close(found, wanted, rtol=0.08, atol=0)
    again = squared_gradients(layer, ["weight"], [x[:50]])
    assert torch.equal(
        again["weight"].sums, squared_gradients(layer, ["weight"], [x[:50]])["weight"].sums
    )
    other = squared_gradients(layer, ["weight"], [x[:50]], seed=1)
    assert not torch.equal(again["weight"].sums, other["weight"].sums)


def test_positions_dictionaries_and_named_logits():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, str]:
            return self.head(self.table(ids)), "and more"

    torch.manual_seed(0)
    model, ids = Tokens(), torch.tensor([[0, 1, 2], [3, 4, 0]])
    labels = torch.tensor([[1, 2, -100], [4, 0, -100]])
    found = squared_gradients(model, ["head.weight"], [({"ids": ids}, labels)])["head.weight"]
    total = torch.zeros(5, 4, dtype=torch.float64)
    for i in range(2):
        logits = model(ids[i])[0]
        loss = functional.cross_entropy(logits[:2], labels[i, :2])
        total += torch.autograd.grad(loss, model.head.weight)[0].double().square()
    torch.testing.assert_close(found.sums, total, rtol=1e-5, atol=1e-12)
    assert squared_gradients(model, ["table.weight"], [{"ids": ids}])["table.weight"].samples == 2


def test_it_is_what_keeps_the_loss_when_weights_share_values():
    """A trained classifier with codebooks of 4 entries: by squared gradients or blindly."""
    torch.manual_seed(0)
    x = torch.randn(400, 12) * torch.linspace(0.05, 3, 12)
    y = (x @ torch.randn(12, 4)).argmax(1)
    model = nn.Linear(12, 4)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    squared = squared_gradients(model, ["weight"], [x[:200]])["weight"]
    scheme, w = Scheme(codebook2, granularity=PerChannel(0)), model.weight.detach()

    def loss(q) -> float:
        return float(
            functional.cross_entropy(functional.linear(x, q.dequantize(), model.bias.detach()), y)
        )

    felt = loss(FisherKMeans()(w, scheme, statistic=squared).qtensor)
    assert felt < loss(KMeans()(w, scheme).qtensor)


def test_refusals():
    model, data = network(), batches()
    with pytest.raises(DataError, match=r"no parameters 9\.weight, 8\.bias; it has 0\.weight"):
        squared_gradients(model, ["9.weight", "8.bias"], data)
    for names in ([], "0.weight"):
        with pytest.raises(DataError, match="a list of names"):
            squared_gradients(model, names, data)
    with pytest.raises(DataError, match="held no sample"):
        squared_gradients(model, ["0.weight"], [])
    x, y = data[0]
    for bad in ((x, y[:2]), (x, y.float()), (x, 3), {"x": x, "n": 4}, (x, y, y)):
        with pytest.raises(DataError, match="a batch is x or"):
            squared_gradients(model, ["0.weight"], [bad])
    with pytest.raises(
        DataError, match=r"labels .* do not fit logits of 1 positions and 3 classes"
    ):
        squared_gradients(model, ["0.weight"], [(x, y + 3)])
    with pytest.raises(DataError, match="logits are NaN or infinite"):
        squared_gradients(model, ["0.weight"], [x * torch.nan])
    with pytest.raises(DataError, match=r"the gradient of 5.weight: .*NaN"):
        squared_gradients(model, ["5.weight"], [(x * torch.nan, y)])
    with pytest.raises(DataError, match="needs logits"):
        squared_gradients(Flat(), ["weight"], [x])
    unused = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    unused.forward = unused["a"].forward
    with pytest.raises(DataError, match=r"does not depend on b\.weight"):
        squared_gradients(unused, ["a.weight", "b.weight"], [torch.ones(2, 2)])
    f = Fisher()
    with pytest.raises(DataError, match="a scalar has no samples"):
        f.update(torch.tensor(1.0))
    f.update(torch.ones(2, 3))
    with pytest.raises(DataError, match=r"shape \(3,\) cannot take in gradients of shape \(4,\)"):
        f.update(torch.ones(2, 4))


class Flat(nn.Linear):
    """Returns one number per sample."""

    def __init__(self) -> None:
        super().__init__(50, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1)).flatten()
