"""Which weights are one, which share a part of their memory, and which cannot be quantized."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bitsmith.model.store as store
from bitsmith.errors import WeightsError
from bitsmith.model.owners import memory_key, overlaps
from bitsmith.model.weights import coverage_of, quantize_weights


class Tied(nn.Module):
    """A head whose weight is another Parameter with the storage of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(48, 32), nn.Linear(32, 48, bias=False)
        self.gain = nn.Parameter(torch.ones(32))
        self.head.weight = nn.Parameter(self.table.weight.data)
        self.gain_too = nn.Parameter(self.gain.data)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(index) * self.gain * self.gain_too)


def test_one_storage_is_packed_once_and_stays_one(tmp_path) -> None:
    torch.manual_seed(0)
    net = Tied()
    assert net.head.weight is not net.table.weight
    quantized = quantize_weights(net, "W4G32")
    assert quantized.head.packed is quantized.table.packed
    rows = {r.layer: r for r in coverage_of(quantized)}
    assert rows["head.weight"].reason == "tied to table.weight"
    index = torch.arange(48)
    expected = quantized(index)
    loaded = store.load(store.save(quantized, tmp_path / "m"), Tied)
    assert loaded.head.packed is loaded.table.packed
    assert loaded.gain_too is loaded.gain
    assert torch.equal(loaded(index), expected)
    path = store.save_encodings(quantized, tmp_path / "e.safetensors")
    assert torch.equal(store.apply_encodings(net, path)(index), expected)


def test_a_transform_leaves_a_shared_storage_alone() -> None:
    torch.manual_seed(0)
    net = Tied()
    quantized = quantize_weights(net, "W4", [torch.arange(48)], transform="awq")
    assert quantized.head.input_scale is None


def test_a_part_of_the_memory_is_noted() -> None:
    net = nn.ModuleDict({n: nn.Linear(32, 32, bias=False) for n in "abcd"})
    base = torch.randn(48, 32)
    net["a"].weight = nn.Parameter(base[:32])
    net["b"].weight = nn.Parameter(base[16:])
    net["c"].weight = nn.Parameter(base[:32].T)
    rows = {r.layer: r for r in coverage_of(quantize_weights(net, "W8"))}
    note = "shares a part of its memory with a.weight, from which it is stored apart"
    assert [rows[f"{n}.weight"].reason for n in "abcd"] == ["", note, note, ""]
    assert {r.outcome for r in rows.values()} == {"packed"}


def test_neighbours_in_one_storage_share_nothing() -> None:
    base = torch.randn(64, 32)
    halves = {"top": base[:32], "low": base[32:], "left": base[:, :16].clone()}
    assert overlaps(halves) == {}
    assert overlaps({"left": base[:, :16], "right": base[:, 16:]}) == {}
    assert overlaps({"left": base[:, :17], "right": base[:, 16:]}) == {"right": "left"}
    assert overlaps({"even": base[::2], "odd": base[1::2], "all": base}) == {"all": "even"}
    assert overlaps({"wide": base[:1].expand(4, 32), "row": base[0]}) == {"row": "wide"}
    assert overlaps({"bits": base.view(torch.int16), "real": base}) == {"real": "bits"}


@pytest.mark.parametrize("seed", range(20))
def test_overlaps_are_those_of_the_addresses(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.arange(600)
    views = {}
    for i in range(8):
        at, rows, columns, down, along = torch.randint(1, 7, (5,), generator=generator).tolist()
        views[str(i)] = base.as_strided((rows, columns), (13 * down, along), 17 * at)
    places = {n: set(v.reshape(-1).tolist()) for n, v in views.items()}
    expected = {
        later: earlier[0]
        for i, later in enumerate(views)
        if (earlier := [
            n for n in list(views)[:i]
            if places[n] & places[later] and memory_key(views[n]) != memory_key(views[later])
        ])
    }  # fmt: skip
    assert overlaps(views) == expected
    assert seed or expected


def test_what_has_no_memory_is_only_itself() -> None:
    for one, other in (
        (torch.empty(0, 4), torch.empty(0, 4)),
        (torch.empty(2, 4, device="meta"), torch.empty(2, 4, device="meta")),
    ):
        assert memory_key(one) == memory_key(one) != memory_key(other)
        assert overlaps({"one": one, "other": other}) == {}
    pairs = torch.zeros(3, dtype=torch.complex64)
    assert memory_key(pairs) != memory_key(pairs.conj())
    sparse = torch.eye(2).to_sparse()
    assert memory_key(sparse) == memory_key(sparse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["W8", "W4G32", "NF4", "CODEBOOK4"])
def test_infinities_of_half_precision_name_the_layer(dtype: torch.dtype, recipe: str) -> None:
    net = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64), nn.Conv1d(4, 4, 1)).to(dtype)
    with torch.no_grad():
        net[2].weight[0, :3] = 1e39  # beyond both types
        net[3].bias[1] = -torch.inf
    with pytest.raises(WeightsError) as caught:
        quantize_weights(net, recipe, ragged="float")
    assert str(caught.value).splitlines()[1:] == [
        "  2.weight has 3 NaN or infinite of 512 values",
        "  3.bias has 1 NaN or infinite of 4 values",
    ]


def test_what_float32_cannot_hold_names_the_layer() -> None:
    net = nn.Sequential(nn.Linear(8, 8)).double()
    with torch.no_grad():
        net[0].weight[0, 0] = 1e300
    with pytest.raises(
        WeightsError, match=r"0.weight has 1 NaN or infinite of 64 values in float32"
    ):
        quantize_weights(net, "W8")
