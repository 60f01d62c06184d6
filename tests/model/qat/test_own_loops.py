"""The user's own loop: checkpoints, accumulation, compilers, averages, processes."""

from __future__ import annotations

import copy
import io
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bitsmith.model.qat import convert, fit, parameter_groups, prepare
from networks.harness import randomised
from networks.structured import Residual

X = torch.randn(12, 8, 9, 10, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 5, (12,), generator=torch.Generator().manual_seed(1))


def net(recipe: str = "W4A4", **more: object) -> nn.Module:
    torch.manual_seed(0)
    return prepare(randomised(Residual()), recipe, X, **more)


def descent(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameter_groups(model, 1e-2, 1e-2))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 2) -> list[float]:
    model.train()
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    "more",
    [{}, {"ranges": "lsq+"}, {"ranges": "moving_average"}, {"batch_norm": "train"}],
    ids=str,
)
def test_a_checkpoint_goes_on_bit_for_bit(more: dict[str, str]):
    whole, optimizer = net(**more), None
    optimizer = descent(whole)
    steps(whole, optimizer)
    file = io.BytesIO()
    torch.save([whole.state_dict(), optimizer.state_dict()], file)
    steps(whole, optimizer)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    other = net(**more)
    other.load_state_dict(states[0])
    again = descent(other)
    again.load_state_dict(states[1])
    steps(other, again)
    assert torch.equal(convert(whole)(X), convert(other)(X))


def test_gradients_accumulate():
    model = net()
    model.zero_grad()
    model(X).square().sum().backward()
    whole = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in X.split(4):
        model(part).square().sum().backward()
    assert whole
    for name, parameter in model.named_parameters():
        if name in whole:
            assert torch.allclose(parameter.grad, whole[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_under_torch_compile(backend: str):
    plain, compiled = net(), net()
    fast = torch.compile(compiled, backend=backend)
    assert steps(plain, descent(plain)) == steps(fast, descent(fast))
    assert torch.equal(plain(X), fast(X))
    assert torch.equal(convert(fast)(X), convert(plain)(X))


def test_averages_of_the_weights():
    model = net()
    optimizer = descent(model)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        steps(model, optimizer, 1)
        mean.update_parameters(model)
    deployed = convert(mean)
    assert torch.equal(deployed(X), mean.eval()(X))
    assert torch.equal(deployed(X), mean.train()(X))
    assert not torch.equal(deployed(X), convert(model)(X))


def test_copies_are_independent():
    model = net()
    before = convert(model)(X)
    other = copy.deepcopy(model)
    steps(other, descent(other))
    assert torch.equal(convert(model)(X), before)
    assert not torch.equal(convert(other)(X), before)


def test_conversion_ends_nothing():
    model = net()
    first = convert(model)
    before = first(X)
    steps(model, descent(model))
    assert torch.equal(first(X), before)
    assert not torch.equal(convert(model)(X), before)


def test_the_teacher_is_the_float_model():
    model = net("W3A3")
    run = fit(model, [X, X], epochs=4, lr=3e-3, progress=False)
    assert run.history[-1].loss < run.history[0].loss


def test_fit_learns_labels():
    model = net()
    run = fit(model, [(X, Y)], epochs=8, labels=True, progress=False)
    assert run.history[-1].loss < run.history[0].loss
    assert torch.equal(model(X), convert(model)(X))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


WAYS: dict[str, dict[str, str]] = {
    "lsq+": {"ranges": "lsq+"},
    "moving average": {"ranges": "moving_average"},
    "batch norms": {"batch_norm": "train"},
}


def _process(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    own = slice(rank, None, 2)
    for way, settings in WAYS.items():
        model = net(**settings)
        wrapped = DistributedDataParallel(model)
        optimizer = descent(wrapped)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(X[own] * (1 + rank)), Y[own]).backward()
            optimizer.step()
        result = [model.state_dict(), convert(wrapped)(X)]
        torch.save(result, Path(folder) / f"{way}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_agree(tmp_path: Path):
    torch.multiprocessing.spawn(_process, (_free_port(), str(tmp_path)), nprocs=2)
    for way, settings in WAYS.items():
        (one, outputs), (other, theirs) = (
            torch.load(tmp_path / f"{way}{rank}.pt") for rank in range(2)
        )
        fresh = net(**settings).state_dict()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
        part = "running" if "batch_norm" in settings else "ranges"
        assert [n for n, v in one.items() if part in n and not torch.equal(v, fresh[n])]
        assert torch.equal(outputs, theirs)
