"""The user's own loop: checkpoints, compilation, autocast, processes, schedules, trouble."""

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

from bitsmith.errors import InputError
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.module_qat import (
    bit_schedule,
    check_finite,
    convert,
    freeze_scales,
    prepare,
    quant_noise,
    set_bits,
    weight_quantizers,
)
from bitsmith.model.train import fit


@pytest.fixture(autouse=True)
def _multiplied_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the trained weights are, so that bits can be compared; native sums have another order."""
    monkeypatch.setattr(PackedWeight, "ready", lambda self: False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.conv = nn.Conv1d(32, 16, 3)
        self.head = nn.Linear(16, 4)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        x = self.lstm(self.table(index))[0]
        return self.head(torch.relu(self.conv(x.mT)).mean(-1))


INDEX = torch.randint(0, 16, (12, 7), generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(1))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def descent(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 2) -> None:
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(INDEX), TARGET).backward()
        optimizer.step()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("learn", ["lsq", "minmax"])
@pytest.mark.parametrize("recipe", ["W3", "W4G32", "NF4", "CODEBOOK3", "W8A8-dynamic"])
def test_a_checkpoint_resumes_bit_for_bit(recipe, learn):
    if (recipe, learn) == ("CODEBOOK3", "minmax"):
        return
    first = prepare(net(), recipe, learn=learn, ragged="float")
    optimizer = descent(first)
    steps(first, optimizer)
    stream = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    steps(first, optimizer)

    torch.manual_seed(5)
    second = prepare(Net(), recipe, learn=learn, ragged="float")  # of other weights
    optimizer = descent(second)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    second.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    steps(second, optimizer)
    assert equal(state(first), state(second))


def test_a_checkpoint_of_another_recipe_is_refused():
    saved = prepare(net(), "W4").state_dict()
    for recipe, learn in (("W3", "lsq"), ("W4", "minmax")):
        other = prepare(net(), recipe, learn=learn)
        with pytest.raises(InputError) as caught:
            other.load_state_dict(saved, strict=False)
        message = str(caught.value)
        assert "the checkpoint was trained with another recipe" in message
        assert "conv.weight: uint4, PerChannel(axis=0), float32 scales, lsq+ there" in message
        assert "lstm.weight_hh_l0" in message
    partly = prepare(nn.Sequential(nn.Linear(40, 8), nn.Linear(32, 8)), "W4G32", ragged="float")
    wholly = prepare(nn.Sequential(nn.Linear(40, 8), nn.Linear(32, 8)), "W4G32", ragged="pad")
    with pytest.raises(InputError, match=r"0.weight: float in the checkpoint"):
        wholly.load_state_dict(partly.state_dict())
    with pytest.raises(InputError, match="there, here float"):
        partly.load_state_dict(wholly.state_dict())
    wrapped = AveragedModel(prepare(net(), "W4"))
    wrapped.module.load_state_dict(saved)
    wrapped.load_state_dict(wrapped.state_dict())  # under a prefix
    with pytest.raises(InputError, match="another recipe"):
        AveragedModel(prepare(net(), "W3")).load_state_dict(wrapped.state_dict())


@pytest.mark.parametrize(
    ("recipe", "backend"),
    [
        ("W3", "aot_eager"),
        ("W4G32", "eager"),
        ("NF4", "aot_eager"),
        ("CODEBOOK3", "aot_eager"),
        ("W8A8-dynamic", "aot_eager"),
    ],
)
def test_compiled_is_eager(recipe, backend):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Embedding(16, 64), nn.Flatten(), nn.Linear(448, 8), nn.Linear(8, 4))
    plain = prepare(model, recipe, ragged="float")
    traced = torch.compile(copy.deepcopy(plain), backend=backend)
    assert torch.equal(plain(INDEX), traced(INDEX))
    for one in (plain, traced):
        steps(one, torch.optim.SGD(one.parameters(), lr=0.1))
    names = [key.removeprefix("_orig_mod.") for key in traced.state_dict()]
    for key, value in zip(names, traced.state_dict().values(), strict=True):
        assert torch.allclose(value.float(), plain.state_dict()[key].float(), atol=1e-6), key
    with torch.no_grad():
        assert torch.equal(convert(traced)(INDEX), traced.eval()(INDEX))


def test_a_recurrent_layer_under_compile_computes_its_weights_anew():
    torch._dynamo.reset()
    plain = prepare(net(), "W3")
    traced = torch.compile(copy.deepcopy(plain), backend="eager")
    for model in (plain, traced):
        steps(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(plain(INDEX), traced(INDEX))


@pytest.mark.parametrize("recipe", ["W4", "W8A8-dynamic"])
def test_autocast_accumulation_and_averages_of_weights(recipe):
    model = prepare(net(), recipe)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = descent(model)
    model.train()
    for part in (slice(0, 6), slice(6, 12)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(INDEX[part]), TARGET[part]) / 2
        loss.backward()
    halves = [p.grad.clone() for p in model.parameters()]
    assert all(torch.isfinite(g).all() for g in halves)
    optimizer.step()
    average.update_parameters(model)
    with torch.no_grad():
        assert torch.equal(convert(average)(INDEX), average.eval()(INDEX))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(convert(model)(INDEX), model.eval()(INDEX))


def test_accumulated_gradients_are_those_of_the_whole_batch():
    model = prepare(net(), "W3")
    nn.functional.cross_entropy(model(INDEX), TARGET).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in (slice(0, 6), slice(6, 12)):
        (nn.functional.cross_entropy(model(INDEX[part]), TARGET[part]) / 2).backward()
    for one, p in zip(whole, model.parameters(), strict=True):
        assert torch.allclose(one, p.grad, atol=1e-6)


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    for recipe, learn in (("W3", "lsq"), ("W8A8-dynamic", "minmax"), ("CODEBOOK3", "lsq")):
        torch.manual_seed(rank)  # they start apart: rank 0 decides
        shared = DistributedDataParallel(prepare(Net(), recipe, learn=learn, ragged="float"))
        quant_noise(shared, 0.8)
        optimizer = torch.optim.AdamW(shared.parameters(), lr=3e-3)
        mine = slice(6 * rank, 6 * rank + 6)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(shared(INDEX[mine]), TARGET[mine]).backward()
            optimizer.step()
        packed = convert(shared).state_dict().items()
        there = {k: v for k, v in packed if not v.is_meta}  # the places of packed weights are
        kept = {"trained": shared.module.state_dict(), "packed": there}
        torch.save(kept, Path(folder) / f"{recipe}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_stay_identical(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, str(tmp_path)), nprocs=2)
    for recipe in ("W3", "W8A8-dynamic", "CODEBOOK3"):
        one, other = (torch.load(tmp_path / f"{recipe}-{rank}.pt") for rank in (0, 1))
        assert equal(one["trained"], other["trained"])
        assert equal(one["packed"], other["packed"])


def test_noise_leaves_a_share_in_float_in_training_only():
    model = prepare(nn.Sequential(nn.Linear(64, 64)), "W2")
    layer, original = model[0], model[0].parametrizations.weight.original
    whole = layer.weight.detach()
    for share in (0.0, 0.3):
        quant_noise(model, share, block=8)
        model.train()
        torch.manual_seed(0)
        found = layer.weight.detach()
        blocks = (found == whole).reshape(64, 8, 8).all(-1)
        kept = (found == original.detach()).reshape(64, 8, 8).all(-1)
        assert (blocks | kept).all()
        assert abs(float(blocks.float().mean()) - share) < 0.05
        assert torch.equal(model.eval()[0].weight, whole)
    quant_noise(model, 0.0)
    model.train()[0].weight.sum().backward()
    assert torch.equal(original.grad, torch.ones(64, 64))  # the gradient of a float weight
    with pytest.raises(InputError, match="a share is 0 to 1"):
        quant_noise(model, 1.5)
    dynamic = prepare(nn.Sequential(nn.Linear(8, 8)), "W8A8-dynamic")
    quant_noise(dynamic, 0.5)
    dynamic.train()(torch.randn(3, 8)).sum().backward()
    assert dynamic[0].parametrizations.weight.original.grad is not None


@pytest.mark.parametrize("learn", ["lsq", "minmax"])
def test_bits_are_lowered_step_by_step(learn):
    model = prepare(net(), "W2", learn=learn)
    optimizer = descent(model)
    seen = []
    schedule = bit_schedule({0: 8, 1: 4, 3: None})
    for epoch in range(4):
        schedule(epoch, model)
        steps(model, optimizer, 1)
        seen.append({q.current.format.bits for _, _, q in weight_quantizers(model)})
    assert seen == [{8}, {4, 8}, {4, 8}, {2, 8}]  # the embedding has 8 in the recipe
    with torch.no_grad():
        assert torch.equal(convert(model)(INDEX), model.eval()(INDEX))
    set_bits(model, 5)
    again = prepare(net(), "W2", learn=learn)
    again.load_state_dict(model.state_dict())
    assert {q.current.format.bits for _, _, q in weight_quantizers(again)} == {5, 8}
    assert torch.equal(again.eval()(INDEX), model.eval()(INDEX))
    with pytest.raises(InputError, match="never raises"):
        bit_schedule({0: 4, 2: 8})
    with pytest.raises(InputError, match="epoch 0"):
        bit_schedule({1: 4})
    with pytest.raises(InputError, match="2 to 8 bits"):
        set_bits(model, 1)
    tables = prepare(nn.Sequential(nn.Linear(64, 64)), "NF4")
    with pytest.raises(InputError, match="no weight of the model has integer codes"):
        set_bits(tables, 8)


@pytest.mark.parametrize("recipe", ["W3", "CODEBOOK3"])
def test_frozen_scales_stay_while_weights_train(recipe):
    model = prepare(net(), recipe, ragged="float")
    optimizer = descent(model)
    steps(model, optimizer)
    freeze_scales(model)
    before = state(model)
    steps(model, optimizer)
    for _, original, quantizer in weight_quantizers(model):
        assert original.grad is not None
        for name, parameter in quantizer.named_parameters():
            assert not parameter.requires_grad
            assert any(torch.equal(parameter, value) for value in before.values()), name
    again = prepare(net(), recipe, ragged="float")
    again.load_state_dict(model.state_dict())
    assert not any(p.requires_grad for _, _, q in weight_quantizers(again) for p in q.parameters())
    freeze_scales(model, False)
    steps(model, optimizer)
    after = state(model)
    learned = [key for key in before if key.endswith((".scale", ".table"))]
    assert learned
    assert not all(torch.equal(before[key], after[key]) for key in learned)


def test_what_has_gone_wrong_is_named():
    model = prepare(net(), "W4")
    check_finite(model)
    quantizers = {name: (w, q) for name, w, q in weight_quantizers(model)}
    with torch.no_grad():
        quantizers["conv.weight"][1].get_parameter("scale")[3] = float("nan")
        quantizers["lstm.weight_hh_l0"][1].get_parameter("scale").fill_(0.0)
        quantizers["head.weight"][0][0, 0] = float("inf")
        model.head.bias[1] = float("nan")
    quantizers["table.weight"][0].grad = torch.full((16, 32), float("nan"))
    with pytest.raises(InputError) as caught:
        check_finite(model)
    message = str(caught.value)
    for line in (
        "conv.weight: scale: 1 of 16 are NaN or infinite",
        "lstm.weight_hh_l0: its scale has collapsed to 0",
        "head.weight: weight: 1 of 64 are NaN or infinite",
        "head.bias: value: 1 of 4 are NaN or infinite",
        "table.weight: gradient of the weight: 512 of 512 are NaN or infinite",
    ):
        assert line in message
    with pytest.raises(InputError, match=r"conv\.weight: scale: 1 of 16"):
        convert(model)
    with pytest.raises(InputError, match="was not prepared"):
        check_finite(nn.Linear(2, 2))


def test_a_diverging_run_ends_in_its_last_good_state():
    torch.manual_seed(0)
    for recipe in ("W3", "W8A8-dynamic", "CODEBOOK3"):
        model = prepare(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), recipe, ragged="float")
        x, y = torch.randn(16, 8), torch.zeros(16, dtype=torch.int64)
        with pytest.raises(InputError, match=r"not finite|is nan|is inf"):
            fit(model, [(x * 1e6, y)], epochs=30, lr=1e30, progress=False)
        check_finite(model, collapsed=False)


def test_a_collapsed_scale_is_listed_and_can_still_be_converted():
    model = prepare(nn.Sequential(nn.Linear(8, 4)), "W4")
    ((_, _, quantizer),) = weight_quantizers(model)
    with torch.no_grad():
        quantizer.get_parameter("scale")[2] = -1.0
    packed = convert(model)
    assert packed.coverage[0].reason == "1 scales are at their floor"
    assert torch.equal(packed(torch.ones(1, 8)), model.eval()(torch.ones(1, 8)))
